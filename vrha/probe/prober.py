"""The prober: many streams of probes at absolute times from one process.

Missed ticks are counted and never made up for by a burst: a burst would hide an outage.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol

from vrha.core.gaps import NS_PER_MS, analyse
from vrha.errors import InputError, UnreachableError
from vrha.model.probing import Result, Stream, StreamResult
from vrha.probe.channels import (
    CONNECT_LIMIT_NS,
    Arrivals,
    Channel,
    ConnectChannel,
    EchoChannel,
    Inbox,
    ProbeChannel,
)
from vrha.probe.established import EstablishedChannel, Pacer
from vrha.probe.fresh import AHEAD, FRESH_LIMIT_NS, FreshChannel
from vrha.probe.kernel import (
    NS_PER_S,
    Batch,
    Clock,
    Namespace,
    Privileges,
    Timer,
    allow_open_files,
    steady,
)

__all__ = ["GRACE_S", "Prober", "Result", "Stream", "StreamResult"]

GRACE_S = 0.6
"""How long after the last probe a reply still counts."""

MAX_DURATION_S = 7 * 24 * 3600
PRIORITY = 10
DRAIN_NS = 5 * NS_PER_MS
"""Kernel timestamps make the moment of fetching replies irrelevant; fetching many is cheaper."""
POLL_S = DRAIN_NS / NS_PER_S
PACE_MS = 1.0
"""How often messages of long connections are sent, at most: not each of them needs a wake-up."""


class _Sender(Protocol):
    def probe(self) -> None: ...


class _Lane:
    """What is sent at one interval, driven by one timer."""

    def __init__(self, interval_ms: float, senders: Sequence[_Sender]) -> None:
        self.interval_ns = round(interval_ms * NS_PER_MS)
        self.senders = tuple(senders)
        self.timer = Timer()
        self.ticks = 0
        self.late = 0
        self.limit: int | None = None

    def start(self, t0: int, duration_s: float | None) -> None:
        if duration_s is not None:
            self.limit = max(1, round(duration_s * NS_PER_S) // self.interval_ns)
        self.timer.start(t0, self.interval_ns)

    @property
    def done(self) -> bool:
        return self.limit is not None and self.ticks >= self.limit

    def fire(self) -> None:
        """Send one probe per stream for the newest tick; the ticks before it were missed."""
        expired = self.timer.expirations()
        if not expired or self.done:
            return
        before, self.ticks = self.ticks, self.ticks + expired
        if self.limit is not None and self.ticks > self.limit:
            self.late += self.limit - before
            return
        self.late += expired - 1
        for sender in self.senders:
            sender.probe()


class Prober:
    """Probes `streams`; sockets are opened here, so that what cannot work fails before it starts.

    Raises InputError (`bad-stream`, `no-stream`), NotFoundError (`unknown-host`,
    `netns-not-found`), PreconditionError (`icmp-not-permitted`, `netns-not-permitted`,
    `too-many-connections`), UnreachableError (`no-route`, `not-connected`). Use as a context
    manager, run once.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        _check_streams(streams)
        self._epoll = select.epoll()
        self._inbox = Inbox()
        # Reading a connection sends the acknowledgement. On one where only the far end may speak
        # it must not come from this end's leisure: late ones make a router that lost the flow
        # learn it again.
        self._prompt = Inbox()
        self._epoll.register(self._prompt.fileno(), select.EPOLLIN)
        self._channels: list[Channel] = []
        self._lanes: dict[int, _Lane] = {}
        self._pacers: list[Pacer] = []
        try:
            for stream in streams:
                self._channels.append(self._open(stream))
            self._probes = [c for c in self._channels if isinstance(c, ProbeChannel)]
            self._established = [c for c in self._channels if isinstance(c, EstablishedChannel)]
            self._make_lanes()
        except BaseException:
            self.close()
            raise
        self._echoes = [c for c in self._channels if isinstance(c, EchoChannel)]
        self._connects = [c for c in self._channels if isinstance(c, ConnectChannel)]
        self._batch = Batch()

    def _open(self, stream: Stream) -> Channel:
        namespace = Namespace(stream.netns)
        try:
            match stream.kind:
                case "tcp-connect":
                    return ConnectChannel(stream, namespace, self._epoll)
                case "tcp-echo":
                    return EstablishedChannel(stream, namespace, self._inbox)
                case "tcp-push":
                    return EstablishedChannel(stream, namespace, self._prompt)
                case "udp-fresh":
                    return FreshChannel(stream, namespace, self._inbox)
                case "icmp" | "udp":
                    return EchoChannel(stream, namespace)
                case "http" | "https" | "dns":
                    raise InputError("bad-stream", f"{stream.kind} is not known here")
        except BaseException:
            namespace.close()
            raise

    def _make_lanes(self) -> None:
        for interval in sorted({c.stream.interval_ms for c in self._probes}):
            self._add_lane(interval, [c for c in self._probes if c.stream.interval_ms == interval])
        echoes = [c for c in self._established if c.stream.kind == "tcp-echo"]
        for interval in sorted({c.stream.interval_ms for c in echoes}):
            same = [c for c in echoes if c.stream.interval_ms == interval]
            tick = min(interval, PACE_MS)
            pacer = Pacer(interval, tick, same)
            self._pacers.append(pacer)
            self._add_lane(tick, [pacer])

    def _add_lane(self, interval_ms: float, senders: Sequence[_Sender]) -> None:
        lane = _Lane(interval_ms, senders)
        self._lanes[lane.timer.fd] = lane

    def __enter__(self) -> Prober:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all sockets; they would keep a removed namespace alive."""
        for channel in self._channels:
            channel.close()
        for lane in self._lanes.values():
            lane.timer.close()
        self._channels, self._lanes = [], {}
        self._epoll.close()
        self._inbox.close()
        self._prompt.close()

    def run(
        self,
        duration_s: float | None = None,
        stop: threading.Event | None = None,
        *,
        require_reply_s: float | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> Result:
        """Probe for `duration_s` seconds, or until `stop` is set, then wait for late replies.

        `on_ready` is called once probing has begun; with `require_reply_s`, once every stream
        has had a reply. Raises UnreachableError (`no-reply`) when one has had none by then,
        InputError (`bad-duration`). Needs 16 bytes of memory per probe.
        """
        if duration_s is not None and not 0 < duration_s < MAX_DURATION_S:
            raise InputError(
                "bad-duration", f"duration {duration_s} s is not in 0..{MAX_DURATION_S}"
            )
        stop = stop or threading.Event()
        clock = Clock()
        with steady(PRIORITY) as privileges:
            cpu = time.thread_time_ns()
            t0 = time.monotonic_ns() + 2 * NS_PER_MS
            start = _Start(self._channels, t0, require_reply_s, on_ready)
            for pacer in self._pacers:
                pacer.begin(t0)
            for channel in self._established:
                channel.begin(t0)
            for fd, lane in self._lanes.items():
                lane.start(t0, duration_s)
                self._epoll.register(fd, select.EPOLLIN)
            t0_real = t0 + clock.offset
            end = self._probe(t0, duration_s, stop, clock, start)
            self._await_late_replies(clock)
            cpu = time.thread_time_ns() - cpu
        return self._result(t0, t0_real, end, clock, privileges, cpu)

    def _probe(
        self, t0: int, duration_s: float | None, stop: threading.Event, clock: Clock, start: _Start
    ) -> int:
        """Send until the end; its time."""
        end = None if duration_s is None else t0 + round(duration_s * NS_PER_S)
        drain_at = t0
        while True:
            for fd, _ in self._epoll.poll(POLL_S):
                lane = self._lanes.get(fd)
                if lane is not None:
                    lane.fire()
                elif fd == self._prompt.fileno():
                    self._prompt.drain(self._arrivals(clock))
                else:
                    self._connected(fd)
            now = time.monotonic_ns()
            if now >= drain_at:
                drain_at = now + DRAIN_NS
                self._drain(clock)
                start.check(now)
            if end is not None and now >= end and all(lane.done for lane in self._lanes.values()):
                return end
            if stop.is_set():
                return now if end is None else min(now, end)

    def _await_late_replies(self, clock: Clock) -> None:
        for fd, lane in self._lanes.items():
            self._epoll.unregister(fd)
            lane.timer.stop()
        now = time.monotonic_ns()
        limit = now + round(GRACE_S * NS_PER_S)
        connect_limit = now + CONNECT_LIMIT_NS
        while now < limit or (now < connect_limit and any(c.pending for c in self._connects)):
            for fd, _ in self._epoll.poll(POLL_S):
                self._connected(fd)
            self._drain(clock)
            now = time.monotonic_ns()
            for channel in self._connects:
                channel.expire(now)

    def _connected(self, fd: int) -> None:
        now = time.monotonic_ns()
        for channel in self._connects:
            if channel.finish(fd, now):
                return

    def _drain(self, clock: Clock) -> None:
        arrivals = self._arrivals(clock)
        for channel in self._echoes:
            channel.drain(arrivals)
        self._inbox.drain(arrivals)
        self._prompt.drain(arrivals)

    def _arrivals(self, clock: Clock) -> Arrivals:
        instead = time.monotonic_ns() if clock.stepped() else None
        return Arrivals(self._batch, clock.offset, instead)

    def _result(
        self, t0: int, t0_real: int, end: int, clock: Clock, privileges: Privileges, cpu: int
    ) -> Result:
        late = {sender: lane.late for lane in self._lanes.values() for sender in lane.senders}
        streams = tuple(
            StreamResult(
                stream=channel.stream,
                address=channel.address[0],
                loss=analyse(
                    channel.sent,
                    channel.received,
                    t0=t0,
                    end=end,
                    interval_ms=channel.stream.interval_ms,
                    duplicates=channel.duplicates,
                ),
                late_ticks=late[channel],
                errors=tuple(sorted(channel.errors.items())),
                receive_drops=channel.receive_drops,
            )
            for channel in self._probes
        )
        connections = tuple(channel.result(end) for channel in self._established)
        probes = sum(one.loss.sent for one in streams) + sum(one.messages for one in connections)
        return Result(
            streams=streams,
            t0_realtime_ns=t0_real,
            t0_monotonic_ns=t0,
            duration_ms=(end - t0) / NS_PER_MS,
            late_ticks=max(late.values(), default=0),
            realtime=privileges.realtime,
            memory_locked=privileges.memory_locked,
            clock_steps=clock.steps,
            cpu_us_per_probe=round(cpu / 1000 / max(probes, 1), 2),
            connections=connections,
        )


class _Start:
    """Tells when probing has begun, and refuses to go on without replies where they are asked."""

    def __init__(
        self,
        channels: Sequence[Channel],
        t0: int,
        require_reply_s: float | None,
        on_ready: Callable[[], None] | None,
    ) -> None:
        self._channels = channels
        self._t0 = t0
        self._require_s = require_reply_s
        self._on_ready = on_ready
        self._waiting = True

    def check(self, now: int) -> None:
        if not self._waiting or now < self._t0:
            return
        silent = [c for c in self._channels if not c.has_answered] if self._require_s else []
        if not silent:
            self._waiting = False
            if self._on_ready is not None:
                self._on_ready()
        elif self._require_s and now - self._t0 > self._require_s * NS_PER_S:
            raise UnreachableError(
                "no-reply",
                f"no reply in the first {self._require_s:g} s: "
                + ", ".join(f"{c.stream.name} ({_said(c)})" for c in silent),
                "UDP needs `ping-gap serve` on the target; TCP a listener; check firewalls.",
            )


def _said(channel: Channel) -> str:
    said = ", ".join(sorted(channel.errors))
    return channel.address[0] + (f": {said}" if said else "")


def _check_streams(streams: Sequence[Stream]) -> None:
    if not streams:
        raise InputError("no-stream", "nothing to probe")
    for stream in streams:
        stream.check()
    names = [stream.name for stream in streams]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("bad-stream", f"stream names occur twice: {', '.join(twice)}")
    _room_for_connections(streams)


def _room_for_connections(streams: Sequence[Stream]) -> None:
    """In an outage all attempts of a second are open at once."""
    need = 64 + 3 * len(streams) + sum(map(_sockets, streams))
    allowed = allow_open_files(need)
    if allowed < need:
        raise InputError(
            "too-many-connections",
            f"the streams may need {need} open files, but the limit is {allowed}",
            "Use a longer interval or raise `ulimit -n`.",
        )


def _sockets(stream: Stream) -> int:
    """The most that a stream may have open at once."""
    match stream.kind:
        case "tcp-connect":
            return int(CONNECT_LIMIT_NS / NS_PER_MS / stream.interval_ms) + 1
        case "udp-fresh":
            return int(FRESH_LIMIT_NS / NS_PER_MS / stream.interval_ms) + 1 + AHEAD
        case _:
            return stream.count
