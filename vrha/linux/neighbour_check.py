"""Whether the neighbours of an instance answer it: the upstream gateways, and those it knows.

Each question carries the instance's own address and MAC, so a neighbour that still had another
MAC in its cache is corrected by being asked (net/ipv4/arp.c, arp_process; RFC 4861 section 7.2.3).
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from vrha.errors import StepError
from vrha.linux import frames, netns, rtnetlink
from vrha.linux.addresses import mac_bytes, port_addresses
from vrha.linux.closing import SlowCloser
from vrha.linux.netlink import NLM_F_DUMP, Netlink, attributes
from vrha.linux.packetsocket import ADVERTISEMENT, ARP_REPLY, open_packets
from vrha.model.spec import Address, InstanceSpec, PortSpec

TRIES = 3
TRY_S = 0.1
"""Seconds that each try waits."""
NEIGHBOURS = 8
"""How many known neighbours of each port are asked."""

_RTM_GETNEIGH = 30
_NDA_DST, _NDA_LLADDR, _NDA_CACHEINFO = 1, 2, 3
_NDMSG = struct.Struct("=BxxxiHBB")
_CONFIRMED_ONCE = 0x02 | 0x04 | 0x08 | 0x10
"""NUD_REACHABLE, STALE, DELAY, PROBE: not what was set by hand (permanent), nor what failed."""


@dataclass(frozen=True, slots=True)
class PortAnswers:
    """Which neighbours of a port answered the instance, and which did not."""

    port: str
    answered: tuple[Address, ...]
    silent: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """An entry of the neighbour table; `age` since it was last confirmed, in ticks."""

    index: int
    address: Address
    mac: bytes
    age: int


@dataclass(slots=True)
class _Question:
    port: str
    address: Address
    frame: bytes
    sock: socket.socket
    is_answer: Callable[[bytes], bool]
    answered: bool = False


def neighbour_check(
    spec: InstanceSpec, inner: int, home: int, closer: SlowCloser
) -> tuple[PortAnswers, ...]:
    """Ask the gateways and up to 8 known neighbours of each port, three times within 300 ms.

    `inner` and `home` are file descriptors of the namespaces of the instance and of the node. The
    neighbours are those which the instance's table shows, the last confirmed ones first. Raises
    StepError `neighbour-check-failed`.
    """
    sockets: list[socket.socket] = []
    try:
        with netns.entered(inner, home):
            with rtnetlink.open_route() as route:
                known = _table(route)
            questions = [q for port in spec.ports for q in _questions(spec, port, known, sockets)]
        for _ in range(TRIES):
            waiting = [question for question in questions if not question.answered]
            if not waiting:
                break
            for question in waiting:
                question.sock.send(question.frame)
            _collect(waiting, time.monotonic() + TRY_S)
    except OSError as error:
        raise StepError(
            "neighbour-check-failed", f"cannot ask the neighbours of {spec.ref}: {error}"
        ) from error
    finally:
        for sock in sockets:
            closer.close(sock)
    return tuple(_answers(port.name, questions) for port in spec.ports)


def _answers(port: str, questions: Iterable[_Question]) -> PortAnswers:
    asked = [question for question in questions if question.port == port]
    return PortAnswers(
        port,
        tuple(question.address for question in asked if question.answered),
        tuple(question.address for question in asked if not question.answered),
    )


def _table(route: Netlink) -> list[_Known]:
    """Neighbours that were there at some time, the last confirmed ones first."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in route.ask(_RTM_GETNEIGH, _NDMSG.pack(family, 0, 0, 0, 0), NLM_F_DUMP):
            _, index, state, _, _ = _NDMSG.unpack_from(body)
            fields = attributes(body[_NDMSG.size :])
            mac, times = fields.get(_NDA_LLADDR, b""), fields.get(_NDA_CACHEINFO)
            if state & _CONFIRMED_ONCE and len(mac) == 6 and times:
                age = struct.unpack_from("=I", times)[0]
                found.append(_Known(index, ip_address(fields[_NDA_DST]), mac, age))
    return sorted(found, key=lambda known: known.age)


def _questions(
    spec: InstanceSpec, port: PortSpec, known: Iterable[_Known], sockets: list[socket.socket]
) -> list[_Question]:
    """All questions of a port; the sockets that they need are added to `sockets`."""
    index = socket.if_nametoindex(port.name)
    uplink = spec.router.uplink
    gateways = uplink.gateways if uplink is not None and port.is_uplink else ()
    others = [k for k in known if k.index == index and k.address not in gateways][:NEIGHBOURS]
    targets = [(g, b"") for g in gateways] + [(k.address, k.mac) for k in others]
    own: dict[int, socket.socket] = {}
    questions = []
    for address, mac in targets:
        if address.version not in own:
            own[address.version] = _open(port, address)
            sockets.append(own[address.version])
        question = _question(port, address, mac, own[address.version])
        if question is not None:
            questions.append(question)
    return questions


def _open(port: PortSpec, address: Address) -> socket.socket:
    if isinstance(address, IPv4Address):
        return open_packets(port.name, frames.ETH_P_ARP, ARP_REPLY)
    return open_packets(port.name, frames.ETH_P_IPV6, ADVERTISEMENT)


def _question(port: PortSpec, address: Address, to: bytes, sock: socket.socket) -> _Question | None:
    """None when the port has no address from which it could ask."""
    mac, source = mac_bytes(port), _source(port, address)
    if isinstance(address, IPv4Address) and isinstance(source, IPv4Address):
        v4 = address
        return _Question(
            port.name,
            v4,
            frames.arp_question(mac, source, v4, to or frames.BROADCAST),
            sock,
            lambda frame: frame[:6] == mac and frames.arp_answers(frame, v4),
        )
    if isinstance(address, IPv6Address) and isinstance(source, IPv6Address):
        v6 = address
        return _Question(
            port.name,
            v6,
            frames.neighbour_question(mac, source, v6, to),
            sock,
            lambda frame: frame[:6] == mac and frames.advertisement_answers(frame, v6),
        )
    return None


def _source(port: PortSpec, address: Address) -> Address | None:
    """The port's own address in the network of `address`, else any of that family."""
    own = [a for a in port_addresses(port) if a.version == address.version]
    fitting = [a for a in own if address in a.network]
    return next((a.ip for a in fitting + own), None)


def _collect(waiting: Iterable[_Question], until: float) -> None:
    """Take answers until all questions have one or the time is up."""
    while True:
        left = [question for question in waiting if not question.answered]
        seconds = until - time.monotonic()
        if not left or seconds <= 0:
            return
        readable, _, _ = select.select({question.sock for question in left}, [], [], seconds)
        for sock in readable:
            with contextlib.suppress(BlockingIOError):
                frame = sock.recv(256)
                for question in left:
                    if question.sock is sock and question.is_answer(frame):
                        question.answered = True
