"""The prober: many streams of probes at absolute times from one process.

Missed ticks are counted and never made up for by a burst: a burst would hide an outage.
"""

from __future__ import annotations

import select
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol

from vrha.core.gaps import NS_PER_MS, UNANSWERED
from vrha.core.loss import analyse
from vrha.core.series import series_of
from vrha.errors import InputError
from vrha.model.probing import Live, Result, Series, Stream, StreamResult
from vrha.probe.attempts import AttemptChannel
from vrha.probe.channels import Arrivals, Channel, EchoChannel, Inbox, ProbeChannel
from vrha.probe.dns import DnsChannel
from vrha.probe.established import EstablishedChannel, Pacer
from vrha.probe.fresh import FreshChannel
from vrha.probe.kernel import (
    NS_PER_S,
    Batch,
    Clock,
    Namespace,
    Timer,
    steady,
)
from vrha.probe.oneway import Asked, arrived
from vrha.probe.pulse import Pulse
from vrha.probe.start import Start, check_streams

__all__ = ["Prober", "Result", "Stream", "StreamResult"]

LINGER_NS = 50 * NS_PER_MS
"""How long after the last reply a second one to the same probe is awaited."""

MAX_DURATION_S = 7 * 24 * 3600
PRIORITY = 10
DRAIN_NS = 5 * NS_PER_MS
"""Kernel timestamps make the moment of fetching replies irrelevant; fetching many is cheaper."""
POLL_S = DRAIN_NS / NS_PER_S
PACE_MS = 1.0
"""How often messages of long connections are sent, at most: not each of them needs a wake-up."""


MOST_BINS, LEAST_BINS = 20_000, 500
"""Of all series together, and of each: a plot is no wider, and a report must stay small."""


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
        check_streams(streams)
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
        self._t0 = 0
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
        self._attempts = [c for c in self._channels if isinstance(c, AttemptChannel)]
        self._batch = Batch()

    def _open(self, stream: Stream) -> Channel:
        namespace = Namespace(stream.netns)
        try:
            match stream.kind:
                case "tcp-connect":
                    return AttemptChannel(stream, namespace, self._epoll)
                case "http" | "https":
                    return _http(stream, namespace, self._epoll)
                case "dns":
                    return DnsChannel(stream, namespace, self._inbox)
                case "tcp-echo":
                    return EstablishedChannel(stream, namespace, self._inbox)
                case "tcp-push":
                    return EstablishedChannel(stream, namespace, self._prompt)
                case "udp-fresh":
                    return FreshChannel(stream, namespace, self._inbox)
                case "icmp" | "udp":
                    return EchoChannel(stream, namespace)
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
        on_live: Callable[[Live], None] | None = None,
        live_every_s: float = 0.25,
        series: bool = False,
    ) -> Result:
        """Probe for `duration_s` seconds, or until `stop` is set, then wait for late replies.

        `on_ready` is called once probing has begun; with `require_reply_s`, once every stream
        has had a reply. `on_live` is told every `live_every_s` how it stands; it must be quick.
        With `series` the result says how each stream went over time. Where UDP probes were lost our
        responder is asked which way they died. Raises UnreachableError (`no-reply`) when a stream
        has had no reply by `require_reply_s` or the end, InputError (`bad-duration`). Needs
        16 bytes of memory per probe.
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
            start = Start(self._channels, t0, require_reply_s, on_ready)
            checks = [start.check]
            if on_live is not None:
                pulse = Pulse(self._channels, t0, on_live, live_every_s, self._late_of)
                checks.append(pulse.check)
            for pacer in self._pacers:
                pacer.begin(t0)
            for channel in self._established:
                channel.begin(t0)
            for fd, lane in self._lanes.items():
                lane.start(t0, duration_s)
                self._epoll.register(fd, select.EPOLLIN)
            t0_real = t0 + clock.offset
            end = self._probe(t0, duration_s, stop, clock, checks)
            self._await_late_replies(clock)
            start.at_end()
            cpu = time.thread_time_ns() - cpu
        self._t0 = t0
        streams = self._stream_results(t0, end, series)
        connections = tuple(channel.result(end) for channel in self._established)
        probes = sum(one.loss.sent for one in streams) + sum(one.messages for one in connections)
        return Result(
            streams=streams,
            t0_realtime_ns=t0_real,
            t0_monotonic_ns=t0,
            duration_ms=(end - t0) / NS_PER_MS,
            late_ticks=max((lane.late for lane in self._lanes.values()), default=0),
            realtime=privileges.realtime,
            memory_locked=privileges.memory_locked,
            clock_steps=clock.steps,
            cpu_us_per_probe=round(cpu / 1000 / max(probes, 1), 2),
            connections=connections,
        )

    def probes(self) -> Iterator[tuple[Stream, array[int], array[int]]]:
        """After a run: the send and receive times of each stream, in ns after t0; the receive time
        of an unanswered probe is UNANSWERED."""
        for channel in self._probes:
            sent = array("q", (at - self._t0 for at in channel.sent))
            received = array(
                "q", (at - self._t0 if at != UNANSWERED else UNANSWERED for at in channel.received)
            )
            yield channel.stream, sent, received

    def _probe(
        self,
        t0: int,
        duration_s: float | None,
        stop: threading.Event,
        clock: Clock,
        checks: Sequence[Callable[[int], None]],
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
                for check in checks:
                    check(now)
            if end is not None and now >= end and all(lane.done for lane in self._lanes.values()):
                return end
            if stop.is_set():
                return now if end is None else min(now, end)

    def _await_late_replies(self, clock: Clock) -> None:
        for fd, lane in self._lanes.items():
            self._epoll.unregister(fd)
            lane.timer.stop()
        now = quiet_since = time.monotonic_ns()
        limit = now + round(max(c.stream.timeout_ms for c in self._channels) * NS_PER_MS)
        while now < limit and now - quiet_since < LINGER_NS:
            for fd, _ in self._epoll.poll(POLL_S):
                self._connected(fd)
            self._drain(clock)
            now = time.monotonic_ns()
            for channel in self._attempts:
                channel.expire(now)
            if any(channel.awaits(now) for channel in self._probes):
                quiet_since = now

    def _connected(self, fd: int) -> None:
        now = time.monotonic_ns()
        for channel in self._attempts:
            if channel.take(fd, now):
                return

    def _drain(self, clock: Clock) -> None:
        arrivals = self._arrivals(clock)
        for channel in self._echoes:
            channel.drain(arrivals)
        self._inbox.drain(arrivals)
        self._prompt.drain(arrivals)

    def _arrivals(self, clock: Clock) -> Arrivals:
        instead = time.monotonic_ns() if clock.stepped() else None
        return Arrivals(self._batch, clock.offset, instead, clock.before, clock.sampled_at)

    def _late_of(self, channel: object) -> int:
        for lane in self._lanes.values():
            if any(sender is channel for sender in lane.senders):
                return lane.late
        return 0

    def _stream_results(self, t0: int, end: int, series: bool) -> tuple[StreamResult, ...]:
        ways = self._ways()
        return tuple(
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
                    timeout_ms=channel.stream.timeout_ms,
                    arrived=ways.get(channel.stream.name),
                ),
                late_ticks=self._late_of(channel),
                errors=tuple(sorted(channel.errors.items())),
                receive_drops=channel.receive_drops,
                series=self._series(channel, t0, end) if series else None,
            )
            for channel in self._probes
        )

    def _ways(self) -> dict[str, Sequence[int] | None]:
        """What came to the far end of each stream that our responder may answer."""
        asked = {
            channel.stream.name: Asked(
                channel.namespace,
                channel.family,
                channel.address,
                channel.cookie,
                channel.sent,
                channel.received,
                channel.errors,
            )
            for channel in self._probes
            if channel.cookie is not None
        }
        return dict(zip(asked, arrived(tuple(asked.values())), strict=True))

    def _series(self, channel: ProbeChannel, t0: int, end: int) -> Series:
        return series_of(
            channel.sent,
            channel.received,
            t0=t0,
            end=end,
            interval_ms=channel.stream.interval_ms,
            timeout_ms=channel.stream.timeout_ms,
            most=max(LEAST_BINS, MOST_BINS // len(self._probes)),
        )


def _http(stream: Stream, namespace: Namespace, poller: select.epoll) -> Channel:
    # TLS is slow to load, and most runs do without.
    from vrha.probe.http import HttpChannel

    return HttpChannel(stream, namespace, poller)
