"""What `ping-gap` and its ends tell each other: JSON lines over stdin and stdout of the end.

An end is a `ping-gap run --events`, on this machine or behind `ssh`. It says Hello, tells its time
as often as it is asked, probes once from Begin to Stop or for the duration, and ends with Done or
Failed. It also ends, and quickly, when its stdin closes or nothing was heard for `SILENCE_LIMIT_S`:
whoever asked has gone.
"""

from __future__ import annotations

import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from vrha.codec import decode, encode
from vrha.errors import InputError, VrhaError
from vrha.model.probing import Live, Result, Stream

PROTOCOL = 1
SILENCE_LIMIT_S = 600.0
"""Longer than most outages that one wants to measure over the very path that has failed."""
MAX_LINE = 256 << 20
FLUSH_LIMIT_S = 60.0
_QUEUED = 8


@dataclass(frozen=True, slots=True)
class Begin:
    """Probe `streams`, without `duration_s` until Stop, and tell a Live every `live_every_s`.

    `require_reply_s` as in `Prober.run`; `probes` is the file for the times of each probe.
    """

    streams: tuple[Stream, ...]
    duration_s: float | None
    require_reply_s: float
    live_every_s: float
    probes: str | None = None
    kind: Literal["begin"] = "begin"


@dataclass(frozen=True, slots=True)
class Time:
    """What time is it? Also says that somebody still listens."""

    kind: Literal["time"] = "time"


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop probing and tell the result."""

    kind: Literal["stop"] = "stop"


Order = Begin | Time | Stop


@dataclass(frozen=True, slots=True)
class Hello:
    """The first line of an end."""

    protocol: int
    kind: Literal["hello"] = "hello"


@dataclass(frozen=True, slots=True)
class Now:
    """The realtime clock of the end in ns."""

    realtime_ns: int
    kind: Literal["now"] = "now"


@dataclass(frozen=True, slots=True)
class Ready:
    """Probing has begun and every stream has had a reply."""

    kind: Literal["ready"] = "ready"


@dataclass(frozen=True, slots=True)
class Progress:
    """How it stands."""

    live: Live
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class Done:
    """The last line of an end that measured."""

    result: Result
    kind: Literal["done"] = "done"


@dataclass(frozen=True, slots=True)
class Failed:
    """The last line of an end that could not; `usage` when the request itself was wrong."""

    code: str
    message: str
    hint: str
    usage: bool
    kind: Literal["failed"] = "failed"


Event = Hello | Now | Ready | Progress | Done | Failed


def lines_of(fd: int, silence_limit_s: float | None = None) -> Iterator[bytes]:
    """The lines that come from `fd` until it ends, or nothing came for `silence_limit_s`.

    Raises InputError (`line-too-long`) above MAX_LINE bytes.
    """
    parts: list[bytes] = []
    size = 0
    while silence_limit_s is None or select.select([fd], [], [], silence_limit_s)[0]:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            return
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            yield b"".join((*parts, line))
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE:
            raise InputError("line-too-long", f"a line of more than {MAX_LINE} bytes")


def order_of(line: bytes) -> Order:
    """Raises InputError (`malformed`)."""
    kind: Any = Order
    order: Order = decode(kind, line)
    return order


def event_of(line: bytes) -> Event:
    """Raises InputError (`malformed`)."""
    kind: Any = Event
    event: Event = decode(kind, line)
    return event


class _Outbox:
    """Writes events from a thread of its own: a pipe that is full, as that of an `ssh` over a path
    that has failed, must never hold up the probing."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Event | None] = queue.Queue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def say(self, event: Event) -> None:
        if not (isinstance(event, Progress) and self._queue.qsize() > _QUEUED):
            self._queue.put(event)

    def _write(self) -> None:
        out = sys.stdout.buffer
        with suppress(OSError):
            while (event := self._queue.get()) is not None:
                out.write(encode(event) + b"\n")
                out.flush()

    def close(self) -> None:
        """Wait until all is written."""
        self._queue.put(None)
        self._thread.join(FLUSH_LIMIT_S)


class _Orders:
    """Listens on stdin, answers questions for the time at once."""

    def __init__(self, outbox: _Outbox) -> None:
        self._outbox = outbox
        self._begin: queue.Queue[Begin | VrhaError | None] = queue.Queue()
        self.stop = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for line in lines_of(sys.stdin.fileno(), SILENCE_LIMIT_S):
                self._follow(order_of(line))
        except VrhaError as error:
            self._begin.put(error)
            return
        except OSError:
            pass
        _leave()

    def _follow(self, order: Order) -> None:
        match order:
            case Time():
                self._outbox.say(Now(time.time_ns()))
            case Begin():
                self._begin.put(order)
            case Stop():
                self.stop.set()
                self._begin.put(None)

    def begin(self) -> Begin | None:
        """What to do; None: nothing. Raises what was wrong with the order."""
        order = self._begin.get()
        if isinstance(order, VrhaError):
            raise order
        return order


def _leave() -> NoReturn:
    # Nobody is there to take the result, and the prober may be waiting for late replies.
    os._exit(1)


def attend() -> None:
    """Be an end: follow the orders on stdin, tell on stdout. Raises nothing of its own."""
    outbox = _Outbox()
    outbox.say(Hello(PROTOCOL))
    orders = _Orders(outbox)
    try:
        order = orders.begin()
        if order is not None:
            outbox.say(Done(_probe(order, orders.stop, outbox)))
    except VrhaError as error:
        usage = isinstance(error, InputError)
        outbox.say(Failed(error.code, error.message, error.hint, usage))
    outbox.close()


def _probe(order: Begin, stop: threading.Event, outbox: _Outbox) -> Result:
    from vrha.probe.files import write_probes
    from vrha.probe.prober import Prober

    with Prober(order.streams) as prober:
        result = prober.run(
            order.duration_s,
            stop,
            require_reply_s=order.require_reply_s,
            on_ready=lambda: outbox.say(Ready()),
            on_live=lambda live: outbox.say(Progress(live)),
            live_every_s=order.live_every_s,
            series=True,
        )
        if order.probes is not None:
            write_probes(order.probes, prober.probes())
    return result
