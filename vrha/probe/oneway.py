"""Asks the responders, once probing has ended, which of the lost probes had come to them.

A lost probe that came died on the way back; one that did not died on the way there, the socket
buffer of the responder included. A responder that was started meanwhile, or had to forget, says
from when on it knows: of a probe sent before that, nothing is said unless it is on record.
"""

from __future__ import annotations

import selectors
import socket
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from vrha.core.gaps import UNANSWERED
from vrha.errors import VrhaError
from vrha.probe.kernel import NS_PER_S, Namespace
from vrha.probe.wire import QUESTION_BYTES, Report, pack_question

ASK_LIMIT_S = 1.0
TRIES_S = (0.1, 0.2, 0.3)
"""How long the answer to a question may take before it is asked again, and at last given up."""

MOST_AT_ONCE = 256
"""Streams asked for at once, to not run out of open files."""

DRIFT = 1000
"""Two clocks differ by at most one part in that many: each is slewed by up to 500 ppm
(adjtimex(2))."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A stream of UDP probes with a cookie: probe i was sent at `sent[i]`, and the first answer
    came at `received[i]` or is UNANSWERED (ns, CLOCK_MONOTONIC).

    The responder at the socket address `address` is asked from within `namespace`.
    """

    name: str
    namespace: Namespace
    family: socket.AddressFamily
    address: tuple[Any, ...]
    cookie: bytes
    sent: Sequence[int]
    received: Sequence[int]


@dataclass(frozen=True, slots=True)
class FarEnd:
    """What the far end of a stream knows. `arrived[i]` says whether probe i came, None: not known.

    `duplicates` are probes that came once more, `refused` answers that its kernel would not send.
    """

    arrived: list[bool | None]
    duplicates: int = 0
    refused: int = 0


def at_far_end(streams: Sequence[Asked], limit_s: float = ASK_LIMIT_S) -> dict[str, FarEnd]:
    """What came of each stream, by its name. Where nothing was lost, nobody is asked.

    Takes up to `limit_s` for MOST_AT_ONCE streams; 0.6 s when no responder understands. Raises
    nothing: a stream whose responder cannot be asked is one of which nothing is known.
    """
    asking = [one for one in streams if UNANSWERED in one.received]
    found: dict[str, FarEnd] = {one.name: _known(one, None) for one in streams}
    for at in range(0, len(asking), MOST_AT_ONCE):
        found |= _ask(asking[at : at + MOST_AT_ONCE], limit_s)
    return found


def _ask(streams: Sequence[Asked], limit_s: float) -> dict[str, FarEnd]:
    deadline = time.monotonic_ns() + round(limit_s * NS_PER_S)
    open_ones: list[_Inquiry] = []
    with selectors.DefaultSelector() as selector:
        try:
            for stream in streams:
                with suppress(OSError, VrhaError):
                    one = _Inquiry(stream)
                    open_ones.append(one)
                    selector.register(one.sock, selectors.EVENT_READ, one)
            _converse(selector, open_ones, deadline)
        finally:
            for one in open_ones:
                one.sock.close()
    return {one.stream.name: _known(one.stream, one) for one in open_ones}


def _converse(
    selector: selectors.BaseSelector, open_ones: Sequence[_Inquiry], deadline: int
) -> None:
    while True:
        now = time.monotonic_ns()
        for one in open_ones:
            one.tend(now)
        due = min((one.due for one in open_ones if not one.done), default=0)
        until = min(due, deadline)
        if until <= now:
            return
        for key, _ in selector.select((until - now) / NS_PER_S):
            key.data.read()


class _Inquiry:
    """The questions about one stream, page by page."""

    def __init__(self, stream: Asked) -> None:
        self.stream = stream
        self.since_ns = 0
        """From when on the responder knows all that came; the latest it may have been."""
        self.floor = 0
        self.known_to = 0
        """It has said all about the sequence numbers below."""
        self.ranges: list[tuple[int, int]] = []
        self.last: Report | None = None
        self.done = False
        self.due = 0
        self._tries = 0
        with stream.namespace:
            self.sock = socket.socket(stream.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.sock.connect(stream.address)
        except BaseException:
            self.sock.close()
            raise

    def tend(self, now: int) -> None:
        """Ask (again) when it is time, or give up."""
        if self.done or now < self.due:
            return
        if self._tries == len(TRIES_S):
            self.done = True
            return
        self.due = now + round(TRIES_S[self._tries] * NS_PER_S)
        self._tries += 1
        # What the kernel says of it may come from another try: the next one tells.
        with suppress(OSError):
            self.sock.send(pack_question(self.stream.cookie, self.known_to))

    def read(self) -> None:
        with suppress(OSError):
            while not self.done:
                data = self.sock.recv(QUESTION_BYTES + 1)
                report = Report.unpack(data, self.stream.cookie)
                if report is not None and report.asked_from == self.known_to:
                    self._take(report, time.monotonic_ns())

    def _take(self, report: Report, now: int) -> None:
        age = report.age_us * 1000
        self.since_ns = max(self.since_ns, now - age + age // DRIFT)
        self.floor = max(self.floor, report.floor)
        self.last = report
        self.ranges += report.ranges
        count = len(self.stream.sent)
        self.known_to = min(report.ranges[-1][1] + 1, count) if report.more else count
        self.done = self.known_to == count
        self._tries, self.due = 0, 0


def _known(stream: Asked, said: _Inquiry | None) -> FarEnd:
    """What is proven: what was answered came, and so did what is on record; what is not on record
    did not, where the record is complete."""
    count = len(stream.sent)
    arrived: list[bool | None] = [None] * count
    twice = refused = 0
    if said is not None and said.last is not None:
        twice, refused = said.last.duplicates, said.last.refused
        first = max(said.floor, bisect_left(stream.sent, said.since_ns))
        arrived[first : said.known_to] = [False] * max(said.known_to - first, 0)
        for low, high in said.ranges:
            end = min(high + 1, count)
            arrived[low:end] = [True] * max(end - low, 0)
    for i, received in enumerate(stream.received):
        if received != UNANSWERED:
            arrived[i] = True
    return FarEnd(arrived, twice, refused)
