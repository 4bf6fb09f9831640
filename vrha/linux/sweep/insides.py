"""What links and addresses there are in the namespaces of each owner."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from vrha.linux import netns, rtnetlink
from vrha.linux.netlink import NLM_F_DUMP, Netlink, attributes
from vrha.linux.sweep.inner import open_place
from vrha.linux.sweep.site import Site

_RTM_GETADDR = 22
_IFA_ADDRESS, _IFA_LOCAL, _RT_SCOPE_UNIVERSE = 1, 2, 0
_IFADDRMSG = struct.Struct("=BBBBI")


@dataclass(frozen=True, slots=True)
class Inner:
    """One namespace of an owner. `addresses` are those that others reach, as bytes."""

    owner: str
    links: frozenset[str]
    addresses: frozenset[bytes]


def look(at: Site) -> list[Inner]:
    """All namespaces of all owners; one that is going away meanwhile is left out."""
    found = []
    names = {inode: name for name, inodes in at.scan.names.items() for inode in inodes}
    home = netns.current()
    try:
        for inode, claim in at.claims.items():
            with suppress(OSError):
                place = open_place(at, inode, names.get(inode, ""))
                try:
                    with netns.entered(place, home), rtnetlink.open_route() as route:
                        links = frozenset(link.name for link in rtnetlink.links(route))
                        found.append(Inner(claim.owner, links, addresses(route)))
                finally:
                    os.close(place)
    finally:
        os.close(home)
    return found


def addresses(route: Netlink) -> frozenset[bytes]:
    """Addresses of global scope in the namespace of the socket. Raises NetlinkError."""
    found = set()
    request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for body in route.ask(_RTM_GETADDR, request, NLM_F_DUMP):
        _, _, _, scope, _ = _IFADDRMSG.unpack_from(body)
        fields = attributes(body[_IFADDRMSG.size :])
        address = fields.get(_IFA_LOCAL, fields.get(_IFA_ADDRESS))
        if scope == _RT_SCOPE_UNIVERSE and address is not None:
            found.add(address)
    return frozenset(found)
