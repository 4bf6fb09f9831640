"""The ends of a run: processes that probe, on this machine and on others, told what to do here."""

from __future__ import annotations

import math
import os
import queue
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType

from vrha.codec import encode
from vrha.errors import DeadlineError, InputError, PreconditionError, VrhaError
from vrha.model.probing import Live, Result
from vrha.probe.events import (
    PROTOCOL,
    Begin,
    Done,
    Event,
    Failed,
    Hello,
    Now,
    Order,
    Progress,
    Ready,
    Stop,
    Time,
    event_of,
    lines_of,
)
from vrha.probe.process import own_environment

EXCHANGES = 9
HELLO_LIMIT_S = 30.0
READY_LIMIT_S = 30.0
RESULT_LIMIT_S = 60.0
"""As in vrha.probe.process: late replies, then a second per million probes."""
LEAVE_LIMIT_S = 2.0
BEAT_S = 30.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Offset:
    """How far the realtime clock of an end is ahead of ours, and by how much that may be wrong."""

    ns: int
    uncertainty_ns: int


def offset_of(exchanges: Sequence[tuple[int, int, int]]) -> Offset:
    """The offset from exchanges (asked, told by the end, heard), ns of the two realtime clocks.

    The one with the shortest way there and back is the best: the answer came from somewhere in
    between (RFC 5905 section 8).
    """
    asked, told, heard = min(exchanges, key=lambda one: one[2] - one[0])
    return Offset(told - (asked + heard) // 2, (heard - asked) // 2)


class End:
    """A process that probes `order`; `remote` is the host on which it runs, empty for this one.

    `result` is on our clock; `failed` says what kept it from having one. Raises PreconditionError
    (`end-failed`) when the command cannot be run.
    """

    def __init__(self, argv: Sequence[str], order: Begin, remote: str = "", hint: str = "") -> None:
        self.remote = remote
        self.order = order
        self.offset = Offset(0, 0)
        self.ready = False
        self.result: Result | None = None
        self.failed: VrhaError | None = None
        self.known = False
        self._argv = list(argv)
        self._hint = hint
        self._asked = 0
        self._exchanges: list[tuple[int, int, int]] = []
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        try:
            # In a session of its own, or Ctrl-C would reach it before it has been told to stop.
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=None if remote else own_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._stderr.close()
            raise PreconditionError(
                "end-failed", f"cannot run {self._argv[0]}: {error.strerror}", hint
            ) from error

    @property
    def over(self) -> bool:
        return self.result is not None or self.failed is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def who(self) -> str:
        return f"end {self.remote!r}" if self.remote else "the prober"

    def listen(self, heard: queue.Queue[Heard]) -> None:
        """Put all that it says into `heard`, from a thread of its own."""
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()

    def _listen(self, heard: queue.Queue[Heard]) -> None:
        assert self._process.stdout is not None
        try:
            for line in lines_of(self._process.stdout.fileno()):
                at = time.time_ns()
                heard.put(Heard(self, event_of(line), at))
        except VrhaError as error:
            heard.put(Heard(self, Failed("end-failed", str(error), self._hint, False), 0))
        except (OSError, ValueError):
            pass
        heard.put(Heard(self, None, 0))

    def tell(self, order: Order) -> None:
        """Send an order; one that has gone does not mind."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(encode(order) + b"\n")
            self._process.stdin.flush()

    def take(self, heard: Heard) -> Live | None:
        """Learn what it said; how it stands, if it said that."""
        match heard.event:
            case Hello(protocol) if protocol != PROTOCOL:
                self.fail("end-version", f"speaks version {protocol} and not {PROTOCOL}")
            case Hello():
                self.known = not self.remote
                if self.remote:
                    self._ask()
            case Now(told) if not self.known:
                self._exchanged(told, heard.at_ns)
            case Ready():
                self.ready = True
            case Progress(live):
                return live
            case Done(result):
                t0 = result.t0_realtime_ns - self.offset.ns
                self.result = replace(result, t0_realtime_ns=t0)
            case Failed(code, message, hint, usage):
                kind = InputError if usage else PreconditionError
                prefix = f"{self.who}: " if self.remote else ""
                self.failed = self.failed or kind(code, prefix + message, hint)
            case None if not self.over:
                self.fail("end-failed", f"ended with {self._code()}: {self._words()}")
        return None

    def _ask(self) -> None:
        self._asked = time.time_ns()
        self.tell(Time())

    def _exchanged(self, told: int, heard: int) -> None:
        self._exchanges.append((self._asked, told, heard))
        if len(self._exchanges) < EXCHANGES:
            self._ask()
        else:
            self.offset = offset_of(self._exchanges)
            self.known = True

    def fail(self, code: str, message: str) -> None:
        """There will be no result."""
        self.failed = PreconditionError(code, f"{self.who} {message}", self._hint)

    def _code(self) -> int | None:
        if not self._ended(LEAVE_LIMIT_S):
            return None
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return None if status is None else status.si_status

    def _ended(self, limit_s: float) -> bool:
        """Whether it ends in time; it stays a zombie, so that its number remains its own."""
        fd = os.pidfd_open(self._process.pid)
        try:
            return bool(select.select([fd], [], [], limit_s)[0])
        finally:
            os.close(fd)

    def _words(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").strip()[-2000:] or "no word"

    def close(self) -> None:
        """Let it go; what does not go by itself is killed. Idempotent."""
        if self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._ended(LEAVE_LIMIT_S)
        # Also what a command of --rsh has left behind: the session is ours alone.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stderr.close()


@dataclass(frozen=True, slots=True)
class Heard:
    """What came from an end and when (ns of our realtime clock); None when it has gone."""

    end: End
    event: Event | None
    at_ns: int


class Ends:
    """All ends of a run. Use as a context manager: none remains after it."""

    def __init__(self) -> None:
        self._heard: queue.Queue[Heard] = queue.Queue()
        self.all: list[End] = []

    def add(self, end: End) -> None:
        self.all.append(end)
        end.listen(self._heard)

    def __enter__(self) -> Ends:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for end in self.all:
            end.close()

    def begin(self, stop: threading.Event) -> None:
        """Have all begin at once; returns when each has had replies, or on `stop`.

        Raises what keeps one from it: what it said, DeadlineError (`end-late`), PreconditionError
        (`end-failed`, `end-version`; `nothing-measured` on `stop` before the first probe).
        """
        self._await(lambda end: end.known, HELLO_LIMIT_S, stop)
        if stop.is_set():
            raise PreconditionError("nothing-measured", "stopped before it began")
        for end in self.all:
            end.tell(end.order)
        self._await(lambda end: end.ready, READY_LIMIT_S, stop)

    def _await(self, done: Callable[[End], bool], limit_s: float, stop: threading.Event) -> None:
        deadline = time.monotonic() + limit_s
        while not (stop.is_set() or all(done(end) or end.over for end in self.all)):
            if time.monotonic() > deadline:
                late = ", ".join(end.who for end in self.all if not done(end))
                raise DeadlineError("end-late", f"not begun in {limit_s:g} s: {late}")
            self._next()
            for end in self.all:
                if end.failed is not None:
                    raise end.failed

    def _next(self) -> Live | None:
        with suppress(queue.Empty):
            heard = self._heard.get(timeout=POLL_S)
            return heard.end.take(heard)
        return None

    def measure(self, stop: threading.Event, on_live: Callable[[Live], None]) -> None:
        """Wait until each has a result or has failed; `stop` has them stop."""
        durations = [end.order.duration_s for end in self.all]
        limit = math.inf
        if None not in durations:
            limit = time.monotonic() + max(filter(None, durations)) + RESULT_LIMIT_S
        beat = time.monotonic() + BEAT_S
        told = False
        while not all(end.over for end in self.all):
            if stop.is_set() and not told:
                told = True
                limit = time.monotonic() + RESULT_LIMIT_S
                self._tell(Stop())
            live = self._next()
            if live is not None:
                on_live(live)
            if time.monotonic() > beat:
                beat += BEAT_S
                self._tell(Time())
            if time.monotonic() > limit:
                for end in self.all:
                    if not end.over:
                        end.fail("end-late", "gave no result in time")

    def _tell(self, order: Order) -> None:
        for end in self.all:
            if not end.over:
                end.tell(order)
