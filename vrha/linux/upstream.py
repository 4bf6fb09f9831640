"""Whether the upstream gateways answer on the uplink bridge of this node.

The question goes out from the bridge device itself, since the replacement that is being tested
is muted. So the answer is the node's, and holds for all that are tested at about the same time.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from vrha.linux import frames
from vrha.linux.closing import SlowCloser
from vrha.model.spec import Address
from vrha.model.state import Upstream

TRIES = 3
TRY_S = 0.1
"""Seconds that each try waits."""
FRESH_S = 0.5
"""For how many seconds an answer holds for others. Closing a packet socket is an RCU wait, and
until then it hears all that is asked: hundreds of instances built at once must not all have one."""


class Answered:
    """Which gateways have answered lately."""

    def __init__(self) -> None:
        self._at: dict[tuple[str, tuple[Address, ...]], float] = {}

    def note(self, bridge: str, gateways: Sequence[Address]) -> None:
        """All of them have answered just now."""
        self._at[bridge, tuple(gateways)] = time.monotonic()

    def lately(self, bridge: str, gateways: Sequence[Address]) -> bool:
        """Whether all of them have."""
        return time.monotonic() - self._at.get((bridge, tuple(gateways)), -FRESH_S) < FRESH_S


@dataclass(frozen=True, slots=True)
class _Question:
    frame: bytes
    is_answer: Callable[[bytes], bool]


class UpstreamProbe:
    """Questions that are under way to all gateways; `start` asks, `finish` waits for answers."""

    def __init__(
        self, bridge: str, mac: bytes, gateways: Sequence[Address], answered: Answered
    ) -> None:
        self._bridge = bridge
        self._gateways = tuple(gateways)
        self._answers = answered
        self._known = answered.lately(bridge, gateways)
        self._open = [] if self._known else [_question(mac, gateway) for gateway in gateways]
        self._sockets: list[socket.socket] = []
        self._failed = False

    def start(self) -> None:
        """Send the first question of each gateway."""
        if not self._open:
            return
        try:
            for ether_type in (frames.ETH_P_ARP, frames.ETH_P_IPV6):
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                self._sockets.append(sock)
                sock.bind((self._bridge, ether_type))
                sock.setblocking(False)
            self._ask()
        except OSError:
            self._failed = True

    def finish(self, closer: SlowCloser) -> Upstream:
        """Wait until all gateways have answered, asking again up to three times in 300 ms."""
        if self._known:
            return Upstream.REACHABLE
        if not self._open:
            return Upstream.NONE
        try:
            for attempt in range(TRIES):
                if self._failed:
                    break
                if attempt:
                    self._ask()
                if self._answered(time.monotonic() + TRY_S):
                    self._answers.note(self._bridge, self._gateways)
                    return Upstream.REACHABLE
            return Upstream.UNREACHABLE
        except OSError:
            return Upstream.UNREACHABLE
        finally:
            for sock in self._sockets:
                closer.close(sock)

    def _ask(self) -> None:
        for question in self._open:
            self._sockets[0].send(question.frame)

    def _answered(self, until: float) -> bool:
        while self._open:
            left = until - time.monotonic()
            readable, _, _ = select.select(self._sockets, [], [], max(0.0, left))
            if not readable:
                return False
            for sock in readable:
                frame = sock.recv(256)
                self._open = [q for q in self._open if not q.is_answer(frame)]
        return True


def _question(mac: bytes, gateway: Address) -> _Question:
    if isinstance(gateway, IPv4Address):
        v4 = gateway
        return _Question(frames.arp_probe(mac, v4), lambda frame: frames.arp_answers(frame, v4))
    v6 = gateway
    return _Question(
        frames.neighbour_solicitation(mac, v6),
        lambda frame: frames.advertisement_answers(frame, v6),
    )
