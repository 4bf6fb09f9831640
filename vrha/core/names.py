"""Kernel names and tags of an instance: everything of ours is recognisable without a database."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from vrha.model.spec import InstanceRef

NAMESPACE_PREFIX = "vrha-"
PORT_PREFIX = "vrh"
"""Of every host-side port. What carries it and is not in the set `active` is muted."""

_GROUP_BIT = 0x4000_0000
"""Keeps our link groups away from the small numbers that people choose by hand."""

_FOLDER = re.compile(r"([a-z0-9](?:[a-z0-9-]*[a-z0-9])?)-([0-9]{1,18})")
_ALIAS = re.compile(r"vrha:([a-z0-9-]+):([0-9]{1,18}):([0-9]{1,18}):([a-z][0-9]{1,2})")


@dataclass(frozen=True, slots=True)
class PortTag:
    """What the alias of a host-side port says."""

    ref: InstanceRef
    epoch: int
    port: str

    def __str__(self) -> str:
        return f"vrha:{self.ref.router}:{self.ref.generation}:{self.epoch}:{self.port}"


def _hash(ref: InstanceRef) -> str:
    return hashlib.sha256(str(ref).encode()).hexdigest()[:8]


def namespace_name(ref: InstanceRef) -> str:
    """Name of the instance's network namespace below /run/netns."""
    return f"{NAMESPACE_PREFIX}{ref.router}-{ref.generation}"


def folder_name(ref: InstanceRef) -> str:
    """Name of the instance's folder below `<state>/instances`."""
    return f"{ref.router}-{ref.generation}"


def ref_of_namespace(name: str) -> InstanceRef | None:
    """The instance whose namespace carries this name; None when it is not one of ours."""
    return (
        ref_of_folder(name[len(NAMESPACE_PREFIX) :]) if name.startswith(NAMESPACE_PREFIX) else None
    )


def ref_of_folder(name: str) -> InstanceRef | None:
    """The instance whose state folder carries this name; None when it is not one of ours."""
    match = _FOLDER.fullmatch(name)
    return InstanceRef(match[1], int(match[2])) if match else None


def host_port(ref: InstanceRef, port: str) -> str:
    """Name of the host-side end of a port, at most 15 bytes (IFNAMSIZ - 1)."""
    return f"{host_port_prefix(ref)}{port}"


def host_port_prefix(ref: InstanceRef) -> str:
    """What the names of all host-side ports of the instance begin with."""
    return f"{PORT_PREFIX}{_hash(ref)}-"


def link_group(ref: InstanceRef) -> int:
    """Link group of all host-side ports of the instance, so that one message deletes them."""
    return _GROUP_BIT | int(_hash(ref), 16) & (_GROUP_BIT - 1)


def host_mac(ref: InstanceRef, index: int) -> bytes:
    """MAC of the host-side end of the port with this index, as 6 bytes.

    It begins with fe so that a bridge, which takes the lowest MAC of its ports
    (net/bridge/br_stp_if.c, br_stp_recalculate_bridge_id), never takes ours.
    """
    return bytes([0xFE]) + bytes.fromhex(_hash(ref)) + bytes([index & 0xFF])


def parse_tag(alias: str) -> PortTag | None:
    """The tag in the alias of a link; None when the link is not ours."""
    match = _ALIAS.fullmatch(alias)
    if match is None:
        return None
    return PortTag(InstanceRef(match[1], int(match[2])), int(match[3]), match[4])
