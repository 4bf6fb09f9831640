"""Which way a lost probe died: our responder is asked what came to it."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vrha.core.gaps import UNANSWERED
from vrha.core.loss import UNKNOWN
from vrha.probe.kernel import Namespace
from vrha.probe.wire import QUESTION, Report, pack_question

AGAIN_S = 0.1
"""A question without an answer is asked again after that."""
US = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """A stream of which something was lost; times as of its channel."""

    namespace: Namespace
    family: socket.AddressFamily
    address: Any
    cookie: bytes
    sent: Sequence[int]
    received: Sequence[int]


def arrived(asked: Sequence[Asked], limit_s: float = 1.0) -> list[Sequence[int] | None]:
    """What of each stream came to the far end, in the form that `vrha.core.loss.analyse` takes.

    All are asked at the same time, for `limit_s` seconds at most. None: the far end says nothing,
    or is not our responder.
    """
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(contextlib.closing(_Talk(one))) for one in asked]
        poll = select.poll()
        by_fd = {talk.fd: talk for talk in talks if talk.fd >= 0}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        until = time.monotonic() + limit_s
        while not all(talk.over for talk in talks) and (now := time.monotonic()) < until:
            for talk in talks:
                talk.ask(now)
            for fd, _ in poll.poll(AGAIN_S / 4 * 1000):
                by_fd[fd].hear()
        return [talk.result() for talk in talks]


class _Talk:
    """The questions about one stream, page by page."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._next = asked.received.index(UNANSWERED)
        self._asked_at = 0.0
        self._complete_since = 0
        self._floor = 0
        self._ranges: list[tuple[int, int]] = []
        self.complete = False
        self.over = False
        self.fd = -1
        try:
            with asked.namespace:
                self._socket = socket.socket(asked.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            self.over = True
            return
        self.fd = self._socket.fileno()
        with contextlib.suppress(OSError):
            self._socket.connect(asked.address)

    def ask(self, now: float) -> None:
        if not self.over and now - self._asked_at >= AGAIN_S:
            self._asked_at = now
            with contextlib.suppress(OSError):
                self._socket.send(pack_question(self._asked.cookie, self._next))

    def hear(self) -> None:
        with contextlib.suppress(OSError):
            while not self.over:
                data = self._socket.recv(2048)
                if data.startswith(QUESTION):
                    # An echo that knows nothing of us.
                    self.over = True
                    return
                report = Report.unpack(data, self._asked.cookie)
                if report is not None and report.asked_from == self._next:
                    self._take(report)

    def _take(self, report: Report) -> None:
        since = time.monotonic_ns() - report.age_us * US
        self._complete_since = max(self._complete_since, since)
        self._floor = max(self._floor, report.floor)
        self._ranges += report.ranges
        if report.more:
            self._next = report.ranges[-1][1] + 1
            self._asked_at = 0.0
            self.ask(time.monotonic())
        else:
            self.complete = self.over = True

    def result(self) -> Sequence[int] | None:
        if not self.complete:
            return None
        sent = self._asked.sent
        known = array("b", (UNKNOWN if at < self._complete_since else 0 for at in sent))
        for seq in range(min(self._floor, len(known))):
            known[seq] = UNKNOWN
        for first, last in self._ranges:
            for seq in range(first, min(last + 1, len(known))):
                known[seq] = 1
        return known

    def close(self) -> None:
        if self.fd >= 0:
            self._socket.close()
