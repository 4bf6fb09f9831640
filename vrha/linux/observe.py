"""What instances a node holds, read from the kernel and the state folder alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vrha import codec
from vrha.core.names import (
    PortTag,
    host_port_prefix,
    namespace_name,
    parse_tag,
    ref_of_folder,
    ref_of_namespace,
)
from vrha.errors import InputError
from vrha.linux import dnsmasq, netns, rtnetlink
from vrha.linux.files import SPEC, InstanceFolders
from vrha.linux.netlink import Netlink
from vrha.model.spec import InstanceRef
from vrha.model.state import Activity, ObservedInstance


def observed(
    route: Netlink, folders: InstanceFolders, active: frozenset[str], relays: frozenset[str]
) -> tuple[ObservedInstance, ...]:
    """All instances of which anything is there: a port, a namespace or a folder."""
    tags: dict[InstanceRef, list[PortTag]] = {}
    for link in rtnetlink.links(route):
        tag = parse_tag(link.alias)
        if tag is not None and link.name == f"{host_port_prefix(tag.ref)}{tag.port}":
            tags.setdefault(tag.ref, []).append(tag)
    named = {ref_of_namespace(name) for name in netns.names()}
    kept = {ref_of_folder(name) for name in folders.folders()}
    refs = {ref for ref in named | kept | set(tags) if ref is not None}
    return tuple(_observe(ref, tags.get(ref, []), folders, active, relays) for ref in sorted(refs))


def _observe(
    ref: InstanceRef,
    tags: list[PortTag],
    folders: InstanceFolders,
    active: frozenset[str],
    relays: frozenset[str],
) -> ObservedInstance:
    spec = outline(folders, ref)
    epoch = max((tag.epoch for tag in tags), default=spec.epoch if spec else 0)
    prefix = host_port_prefix(ref)
    try:
        inner = netns.open_named(namespace_name(ref))
    except FileNotFoundError:
        return ObservedInstance(ref, epoch, Activity.PARTIAL, dnsmasq_alive=False)
    try:
        alive = dnsmasq.pid_of(folders.path(ref), inner) is not None
    finally:
        os.close(inner)
    present = {f"{prefix}{tag.port}" for tag in tags}
    wanted = {f"{prefix}{port.name}" for port in spec.ports} if spec else set()
    speaking = {name for name in active if name.startswith(prefix)}
    activity = Activity.PARTIAL
    if wanted and present == wanted and not speaking:
        activity = Activity.MUTED
    elif wanted and present == wanted == speaking:
        activity = Activity.RELAY if wanted <= relays else Activity.ACTIVE
    return ObservedInstance(ref, epoch, activity, alive)


@dataclass(frozen=True, slots=True)
class _Port:
    name: str


@dataclass(frozen=True, slots=True)
class Outline:
    """What is needed of a spec: reading ten thousand rules of each would take seconds."""

    epoch: int
    ports: tuple[_Port, ...]


def outline(folders: InstanceFolders, ref: InstanceRef) -> Outline | None:
    """Of the spec of a complete instance; None when it is not complete."""
    body = folders.read(ref, SPEC)
    try:
        return codec.decode(Outline, body) if body is not None else None
    except InputError:
        return None
