"""The neighbour tables (ARP and neighbour discovery) of an instance, read and carried to another.

Formats: include/uapi/linux/neighbour.h. The kernel bounds the table of all namespaces of a host
together (`net.ipv4.neigh.default.gc_thresh3`, net/core/neighbour.c), so a copy can be refused.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from vrha.linux import netns, rtnetlink
from vrha.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Message,
    Netlink,
    NetlinkError,
    attr,
    attributes,
)
from vrha.model.evidence import Carried
from vrha.model.spec import Address

REACHABLE, STALE, DELAY, PROBE, PERMANENT = 0x02, 0x04, 0x08, 0x10, 0x80
"""NUD_* states in which a neighbour's MAC is known."""

_KNOWN = REACHABLE | STALE | DELAY | PROBE | PERMANENT
_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_NDA_DST, _NDA_LLADDR = 1, 2
_NDMSG = struct.Struct("=BBHiHBB")
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_RTMGRP_NEIGH = 4
_EVENT_SIZE = 1 << 13


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour on a port whose MAC (6 bytes) is known; `state` is one of the above."""

    port: str
    address: Address
    mac: bytes
    state: int


class News:
    """Tells that neighbours may have changed in the namespace where it is made."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, _RTMGRP_NEIGH))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Readable when there is something."""
        return self._socket.fileno()

    def arrived(self) -> bool:
        """Whether there was something since the last call; never blocks."""
        found = False
        while True:
            try:
                self._socket.recv(_EVENT_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                # Some were lost because there were too many: that is news as well.
                if error.errno != errno.ENOBUFS:
                    raise
            found = True


def entries() -> list[Neighbour]:
    """All neighbours with a known MAC in the calling thread's namespace, multicast left out."""
    with rtnetlink.open_route() as netlink:
        ports = {link.index: link.name for link in rtnetlink.links(netlink)}
        found = []
        for family in _FAMILIES.values():
            request = _NDMSG.pack(family, 0, 0, 0, 0, 0, 0)
            for answer in netlink.ask(_RTM_GETNEIGH, request, NLM_F_DUMP):
                _, _, _, index, state, _, _ = _NDMSG.unpack_from(answer)
                fields = attributes(answer[_NDMSG.size :])
                if state & _KNOWN and index in ports and len(fields.get(_NDA_LLADDR, b"")) == 6:
                    address = ip_address(fields[_NDA_DST])
                    found.append(Neighbour(ports[index], address, fields[_NDA_LLADDR], state))
        return found


def copy(source: int, target: int, home: int) -> Carried:
    """Carry the neighbours of one namespace into another; file descriptors as in `put`."""
    with netns.entered(source, home):
        known = entries()
    return put(known, target, home)


def put(known: Sequence[Neighbour], target: int, home: int) -> Carried:
    """Let `target` know these neighbours, by ports of the same name.

    They arrive as reachable, permanent ones as permanent: the target may be muted and need not ask
    anybody. Repeating it renews them. `target` and `home` are file descriptors of namespaces; the
    calling thread ends in `home`. Refused are `no-port` and `table-full` (raise the node's
    gc_thresh3), and `kernel-refused` for anything else.
    """
    refused: Counter[str] = Counter()
    with netns.entered(target, home), rtnetlink.open_route() as netlink:
        indexes = {link.name: link.index for link in rtnetlink.links(netlink)}
        for neighbour in known:
            if neighbour.port not in indexes:
                refused["no-port"] += 1
            elif reason := _refusal(netlink, _learned(indexes[neighbour.port], neighbour)):
                refused[reason] += 1
    return Carried(
        "neighbours", len(known), len(known) - refused.total(), tuple(sorted(refused.items()))
    )


def _learned(index: int, neighbour: Neighbour) -> Message:
    state = PERMANENT if neighbour.state & PERMANENT else REACHABLE
    family = _FAMILIES[neighbour.address.version]
    body = _NDMSG.pack(family, 0, 0, index, state, 0, 0)
    body += attr(_NDA_DST, neighbour.address.packed) + attr(_NDA_LLADDR, neighbour.mac)
    return Message(_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def _refusal(netlink: Netlink, message: Message) -> str:
    try:
        netlink.talk([message])
    except NetlinkError as error:
        return "table-full" if error.errno == errno.ENOBUFS else "kernel-refused"
    return ""
