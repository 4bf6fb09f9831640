"""What an agent of vrha leaves: everything carries the instance in its name or alias."""

from __future__ import annotations

from collections.abc import Sequence

from vrha.core.cleanup.profile import Profile
from vrha.core.names import (
    PORT_PREFIX,
    folder_name,
    host_port,
    parse_tag,
    ref_of_folder,
    ref_of_namespace,
)
from vrha.model.spec import InstanceRef

INSTANCES = "instances"
"""Folder below the state folder with one of each instance."""
_CONFIGURATION = "--conf-file="


def _owner(ref: InstanceRef | None) -> str | None:
    return folder_name(ref) if ref is not None else None


def _of_namespace(name: str) -> str | None:
    return _owner(ref_of_namespace(name))


def _of_port(name: str, alias: str) -> str | None:
    """Both must agree: a name alone may be another's, and so may a copied alias."""
    tag = parse_tag(alias)
    if tag is None or not name.startswith(PORT_PREFIX) or name != host_port(tag.ref, tag.port):
        return None
    return _owner(tag.ref)


def _of_process(arguments: Sequence[str], state_dir: str) -> str | None:
    beginning = f"{_CONFIGURATION}{state_dir}/{INSTANCES}/"
    for argument in arguments:
        if argument.startswith(beginning):
            return _owner(ref_of_folder(argument[len(beginning) :].partition("/")[0]))
    return None


def _of_file(path: str) -> str | None:
    folder, _, name = path.partition("/")
    return _owner(ref_of_folder(name)) if folder == INSTANCES else None


def _router_of(owner: str) -> str:
    ref = ref_of_folder(owner)
    return ref.router if ref is not None else owner


VRHA = Profile(
    name="vrha",
    summary="instances of an agent of vrha",
    state_dir="/var/lib/vrha-agent",
    namespace_owner=_of_namespace,
    port_owner=_of_port,
    process_owner=_of_process,
    file_places=(f"{INSTANCES}/*",),
    file_owner=_of_file,
    router_of=_router_of,
    governed=True,
)
