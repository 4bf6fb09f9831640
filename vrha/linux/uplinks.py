"""Whether the uplinks of a node still carry: their upstream gateways are asked again and again.

The questions go out from the bridge itself, as those of `vrha.linux.upstream`, so it does not
matter whether any router on it may speak. Once a gateway has answered it is asked by unicast
(RFC 1122 section 2.3.2.1): a broadcast would reach every port of the bridge ten times a second.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from vrha.core.names import PORT_PREFIX
from vrha.linux import frames
from vrha.linux.closing import SlowCloser
from vrha.linux.packetsocket import ADVERTISEMENT, ARP_REPLY, open_packets
from vrha.model.spec import Address
from vrha.model.state import Upstream

UNANSWERED = 3
"""Questions in a row without an answer: the gateway is out of reach. They are counted, and not the
time: a process that stood still has not asked."""
_NOBODY = IPv4Address(0)


@dataclass(slots=True)
class _Uplink:
    """One bridge. `found`: MACs of gateways that have answered."""

    mac: bytes
    gateways: frozenset[Address]
    sockets: list[socket.socket]
    cables: tuple[str, ...] = ()
    found: dict[Address, bytes] = field(default_factory=dict)
    unanswered: int = 0


class Uplinks:
    """The bridges of the network namespace in which it is used; one thread uses it."""

    def __init__(self) -> None:
        self._uplinks: dict[str, _Uplink] = {}
        self._closer = SlowCloser()

    def close(self) -> None:
        self.follow({})
        self._closer.drain()

    def follow(self, wanted: Mapping[str, frozenset[Address]]) -> None:
        """From now on it is about these bridges and their gateways."""
        for name in [n for n, u in self._uplinks.items() if wanted.get(n) != u.gateways]:
            for sock in self._uplinks.pop(name).sockets:
                self._closer.close(sock)
        for name, gateways in wanted.items():
            if name not in self._uplinks:
                # One that is not there yet is looked at again the next time.
                with contextlib.suppress(OSError):
                    self._uplinks[name] = _opened(name, gateways)
        for name, uplink in self._uplinks.items():
            uplink.cables = _cables(name)

    def ask(self) -> None:
        """Send a question to each gateway."""
        for uplink in self._uplinks.values():
            for gateway in uplink.gateways:
                # After a silence everybody is asked: the gateway may have another MAC now.
                to = None if uplink.unanswered else uplink.found.get(gateway)
                # A bridge that is down answers by silence.
                with contextlib.suppress(OSError):
                    uplink.sockets[0].send(_question(uplink.mac, gateway, to))
            uplink.unanswered += 1

    def hear(self, seconds: float) -> None:
        """Take answers; returns with the first ones, after that time at the latest."""
        poll = select.poll()
        by_fd = {}
        for uplink in self._uplinks.values():
            for sock in uplink.sockets:
                poll.register(sock, select.POLLIN)
                by_fd[sock.fileno()] = (uplink, sock)
        for fd, _ in poll.poll(seconds * 1000):
            uplink, sock = by_fd[fd]
            with contextlib.suppress(OSError):
                while True:
                    _take(uplink, sock.recv(256))

    def states(self) -> dict[str, Upstream]:
        """What is known of each bridge; nothing of one whose gateways have never answered.

        To be called when the answers to the last questions have had their time.
        """
        return {name: _state(uplink) for name, uplink in self._uplinks.items() if uplink.found}


def _opened(name: str, gateways: frozenset[Address]) -> _Uplink:
    mac = bytes.fromhex(Path(f"/sys/class/net/{name}/address").read_text().strip().replace(":", ""))
    sockets: list[socket.socket] = []
    try:
        for kind, checks in ((frames.ETH_P_ARP, ARP_REPLY), (frames.ETH_P_IPV6, ADVERTISEMENT)):
            sockets.append(open_packets(name, kind, checks))
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return _Uplink(mac, gateways, sockets)


def _cables(bridge: str) -> tuple[str, ...]:
    """The ports of the bridge that lead out of the node."""
    try:
        ports = [path.name for path in Path(f"/sys/class/net/{bridge}/brif").iterdir()]
    except OSError:
        return ()
    return tuple(name for name in ports if not name.startswith(PORT_PREFIX))


def _question(mac: bytes, gateway: Address, to: bytes | None) -> bytes:
    if isinstance(gateway, IPv4Address):
        return frames.arp_question(mac, _NOBODY, gateway, to or frames.BROADCAST)
    return frames.neighbour_solicitation(mac, gateway)


def _take(uplink: _Uplink, frame: bytes) -> None:
    for gateway in uplink.gateways:
        is_v4 = isinstance(gateway, IPv4Address)
        answers = frames.arp_answers if is_v4 else frames.advertisement_answers
        if answers(frame, gateway):  # type: ignore[arg-type]
            uplink.found[gateway] = frame[6:12]
            uplink.unanswered = 0


def _state(uplink: _Uplink) -> Upstream:
    if uplink.cables and not any(_has_carrier(cable) for cable in uplink.cables):
        return Upstream.UNREACHABLE
    return Upstream.UNREACHABLE if uplink.unanswered >= UNANSWERED else Upstream.REACHABLE


def _has_carrier(name: str) -> bool:
    try:
        return Path(f"/sys/class/net/{name}/carrier").read_text().strip() == "1"
    except OSError:
        # Of a link that is down the kernel says nothing (EINVAL).
        return False


def gateways_of(uplinks: Iterable[tuple[str, Iterable[Address]]]) -> dict[str, frozenset[Address]]:
    """By bridge, of the routers on it: those of IPv4, where there are any."""
    found: dict[str, set[Address]] = {}
    for bridge, gateways in uplinks:
        found.setdefault(bridge, set()).update(gateways)
    chosen = {}
    for bridge, every in found.items():
        v4 = {each for each in every if isinstance(each, IPv4Address)}
        if v4 or every:
            chosen[bridge] = frozenset(v4 or every)
    return chosen
