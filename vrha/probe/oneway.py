"""Which way a lost probe died: our responder is asked what came to it.

A lost probe that came died on the way back; one that did not died on the way there, which ends in
the socket buffer of the responder. Only what is proven is said: a responder that was started
meanwhile, or had to forget, tells from when on it knows.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrha.core.gaps import UNANSWERED
from vrha.core.loss import UNKNOWN
from vrha.errors import VrhaError
from vrha.probe.kernel import NS_PER_S, Namespace
from vrha.probe.wire import QUESTION, QUESTION_BYTES, Report, pack_question

ASK_LIMIT_S = 1.0
TRIES_S = (0.1, 0.2, 0.3)
"""How long the answer to a question may take before it is asked again, and at last given up."""

REFUSED = "answer refused by the far end's kernel"
DRIFT = 1000
"""Two clocks differ by at most one part in that many: each is slewed by up to 500 ppm
(adjtimex(2))."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A stream of UDP probes; times as of its channel, ascending `sent`.

    Whoever has the socket address `address` is asked from within `namespace` about `cookie`.
    `errors` of the stream are counted by name.
    """

    namespace: Namespace
    family: socket.AddressFamily
    address: Any
    cookie: bytes
    sent: Sequence[int]
    received: Sequence[int]
    errors: Counter[str]


def arrived(asked: Sequence[Asked], limit_s: float = ASK_LIMIT_S) -> list[Sequence[int] | None]:
    """What of each stream came to the far end, in the form that `vrha.core.loss.analyse` takes;
    None: nothing is known. Answers that the far end's kernel would not send go to the errors.

    A stream is asked about when something was lost, unless all was: then nobody is there to ask.
    All are asked at the same time, for `limit_s` seconds at most, 0.6 s when nobody says anything.
    Raises nothing: a far end that cannot be asked, or is not our responder, says nothing.
    """
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(contextlib.closing(_Talk(one))) for one in asked]
        for talk in talks:
            talk.begin()
        _converse(talks, time.monotonic_ns() + round(limit_s * NS_PER_S))
        return [talk.result() for talk in talks]


def _converse(talks: Sequence[_Talk], deadline: int) -> None:
    poll = select.poll()
    by_fd = {talk.fd: talk for talk in talks if not talk.over}
    for fd in by_fd:
        poll.register(fd, select.POLLIN)
    while True:
        now = time.monotonic_ns()
        for talk in by_fd.values():
            talk.tend(now)
        due = min((talk.due for talk in by_fd.values() if not talk.over), default=0)
        wait_ns = min(due, deadline) - now
        if wait_ns <= 0:
            return
        for fd, _ in poll.poll(wait_ns / 1_000_000):
            by_fd[fd].hear()


class _Talk:
    """The questions about one stream, page by page."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._socket: socket.socket | None = None
        self._tries = 0
        self._next = 0
        self._from = 0
        self._since = 0
        self._floor = 0
        self._refused = 0
        self._heard = False
        self._ranges: list[tuple[int, int]] = []
        self.due = 0
        self.over = True

    @property
    def fd(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def begin(self) -> None:
        """Make ready to ask, where there is something to ask and somebody."""
        received = self._asked.received
        if UNANSWERED not in received or max(received) == UNANSWERED:
            return
        self._next = self._from = received.index(UNANSWERED)
        with contextlib.suppress(OSError, VrhaError):
            with self._asked.namespace:
                self._socket = socket.socket(
                    self._asked.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
                )
            self._socket.connect(self._asked.address)
            self.over = False

    def tend(self, now: int) -> None:
        """Ask (again) when it is time, or give up."""
        if self.over or now < self.due:
            return
        if self._tries == len(TRIES_S):
            self.over = True
            return
        self.due = now + round(TRIES_S[self._tries] * NS_PER_S)
        self._tries += 1
        # An error may be that of an earlier try: only an answer counts.
        with contextlib.suppress(OSError):
            assert self._socket is not None
            self._socket.send(pack_question(self._asked.cookie, self._next))

    def hear(self) -> None:
        """Take what was said, errors by ICMP included."""
        with contextlib.suppress(OSError):
            assert self._socket is not None
            while not self.over:
                data = self._socket.recv(QUESTION_BYTES + 1)
                if data.startswith(QUESTION):
                    # An echo that knows nothing of us.
                    self.over = True
                    return
                report = Report.unpack(data, self._asked.cookie)
                if report is not None and report.asked_from == self._next:
                    self._take(report, time.monotonic_ns())

    def _take(self, report: Report, now: int) -> None:
        age = report.age_us * 1000
        self._since = max(self._since, now - age + age // DRIFT)
        self._floor = max(self._floor, report.floor)
        self._refused = report.refused
        self._heard = True
        self._ranges += report.ranges
        count = len(self._asked.sent)
        self._next = min(report.ranges[-1][1] + 1, count) if report.more else count
        self.over = self._next == count
        self._tries = self.due = 0

    def result(self) -> Sequence[int] | None:
        """What is proven: what was answered came, and so did what is on record; what is not on
        record did not, as far as the record is complete and was told."""
        sent, received = self._asked.sent, self._asked.received
        if UNANSWERED not in received:
            return array("b", [1]) * len(sent)
        if not self._heard:
            return None
        known = array("b", [UNKNOWN]) * len(sent)
        first = max(self._from, self._floor, bisect_left(sent, self._since))
        _fill(known, first, self._next, 0)
        for low, high in self._ranges:
            _fill(known, low, high + 1, 1)
        for seq, at in enumerate(received):
            if at != UNANSWERED:
                known[seq] = 1
        if self._refused:
            self._asked.errors[REFUSED] += self._refused
        return known

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _fill(known: array[int], first: int, end: int, value: int) -> None:
    end = min(end, len(known))
    if first < end:
        known[first:end] = array("b", [value]) * (end - first)
