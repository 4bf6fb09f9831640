"""What links and addresses there are in the namespaces of each owner."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import closing, suppress
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
    names = {inode: name for name, inodes in at.scan.names.items() for inode in inodes}
    with closing(_Visitor(at)) as visitor:
        found = [visitor.visit(i, names.get(i, ""), c.owner) for i, c in at.claims.items()]
    return [each for each in found if each is not None]


def of_others(at: Site) -> list[Inner]:
    """Namespaces with names that are nobody's of the profile; their owner is empty."""
    with closing(_Visitor(at)) as visitor:
        found = [
            visitor.visit(inodes[-1], name, "")
            for name, inodes in at.scan.names.items()
            if inodes and inodes[-1] not in at.claims and inodes[-1] != at.scan.home
        ]
    return [each for each in found if each is not None]


class _Visitor:
    def __init__(self, at: Site) -> None:
        self._at = at
        self._home = netns.current()

    def close(self) -> None:
        os.close(self._home)

    def visit(self, inode: int, name: str, owner: str) -> Inner | None:
        with suppress(OSError):
            place = open_place(self._at, inode, name)
            try:
                with netns.entered(place, self._home), rtnetlink.open_route() as route:
                    links = frozenset(link.name for link in rtnetlink.links(route))
                    return Inner(owner, links, addresses(route))
            finally:
                os.close(place)
        return None


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
