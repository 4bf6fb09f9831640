"""How a run stands while it lasts, without looking at all of it again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from statistics import median

from vrha.core.gaps import NS_PER_MS, UNANSWERED
from vrha.model.probing import Live, LiveStream
from vrha.probe.channels import Channel, ProbeChannel
from vrha.probe.established import EstablishedChannel
from vrha.probe.kernel import NS_PER_S

LEAST_GAP_NS = 20 * NS_PER_MS
"""Silence that may still be a reply that was not fetched yet."""
GAP_PROBES = 3


class Pulse:
    """Tells `on_live` every `every_s` seconds how it stands; `late` gives late ticks."""

    def __init__(
        self,
        channels: Sequence[Channel],
        t0: int,
        on_live: Callable[[Live], None],
        every_s: float,
        late: Callable[[Channel], int],
    ) -> None:
        self._streams = [_follow(channel) for channel in channels]
        self._channels = channels
        self._t0 = t0
        self._on_live = on_live
        self._every = round(every_s * NS_PER_S)
        self._late = late
        self._next = t0 + self._every

    def check(self, now: int) -> None:
        """Tell it when it is time."""
        if now < self._next:
            return
        self._next = now + self._every
        streams = tuple(
            each.live(now, self._late(channel))
            for each, channel in zip(self._streams, self._channels, strict=True)
        )
        self._on_live(Live((now - self._t0) / NS_PER_MS, streams))


def _follow(channel: Channel) -> _Probes | _Connections:
    if isinstance(channel, ProbeChannel):
        return _Probes(channel)
    assert isinstance(channel, EstablishedChannel)
    return _Connections(channel)


class _Probes:
    """Each probe is looked at once: when it was answered, or is known to be lost."""

    def __init__(self, channel: ProbeChannel) -> None:
        self._channel = channel
        interval = round(channel.stream.interval_ms * NS_PER_MS)
        self._least_gap = max(LEAST_GAP_NS, GAP_PROBES * interval)
        self._timeout = round(channel.stream.timeout_ms * NS_PER_MS)
        self._usual = self._timeout
        self._next = 0
        self._answered = 0
        self._last_answered = -1
        self._lost = 0
        self._longest = 0
        self._run_start = -1

    def live(self, now: int, late: int) -> LiveStream:
        sent = self._channel.sent
        self._find_last_answered()
        trips = self._settle(now, self._patience())
        if trips:
            self._usual = round(median(trips))
        gap, lost = self._goes_on(now, self._patience())
        return LiveStream(
            name=self._channel.stream.name,
            sent=len(sent),
            lost=self._lost + lost,
            gap_ms=gap / NS_PER_MS,
            longest_gap_ms=max(self._longest, gap) / NS_PER_MS,
            rtt_ms=self._usual / NS_PER_MS if trips else None,
            late_ticks=late,
        )

    def _patience(self) -> int:
        """For how long it is no wonder that a probe has no answer."""
        return max(self._least_gap, min(2 * self._usual, self._timeout))

    def _find_last_answered(self) -> None:
        # Without the counter each look at a long outage would go back to its start.
        if self._channel.answered == self._answered:
            return
        self._answered = self._channel.answered
        received = self._channel.received
        index = len(received) - 1
        while index > self._last_answered and received[index] == UNANSWERED:
            index -= 1
        self._last_answered = index

    def _settle(self, now: int, patience: int) -> list[int]:
        """Count what is known by now; the round-trip times of what was answered in time.

        A probe is lost when it has waited for longer than is usual and a later one was answered,
        and after its timeout.
        """
        sent, received = self._channel.sent, self._channel.received
        trips = []
        for index in range(self._next, len(sent)):
            start, reply = sent[index], received[index]
            if reply != UNANSWERED and reply - start <= self._timeout:
                trips.append(reply - start)
                if self._run_start >= 0:
                    self._longest = max(self._longest, start - self._run_start)
                    self._run_start = -1
            elif now - start > (patience if index < self._last_answered else self._timeout):
                self._lost += 1
                if self._run_start < 0:
                    self._run_start = start
            else:
                self._next = index
                return trips
        self._next = len(sent)
        return trips

    def _goes_on(self, now: int, patience: int) -> tuple[int, int]:
        """The gap that lasts, and what it has lost beyond what was counted."""
        sent = self._channel.sent
        if self._last_answered >= self._next:
            return 0, 0
        start = self._run_start
        if start < 0 and self._next < len(sent):
            start = sent[self._next]
        if start < 0 or now - start <= patience:
            return 0, 0
        return now - start, max(0, bisect_left(sent, now - patience) - self._next)


class _Connections:
    def __init__(self, channel: EstablishedChannel) -> None:
        self._channel = channel
        interval = round(channel.stream.interval_ms * NS_PER_MS)
        self._least_gap = max(LEAST_GAP_NS, GAP_PROBES * interval)

    def live(self, now: int, late: int) -> LiveStream:
        connections = self._channel.connections
        silent = max((now - one.last for one in connections if not one.error), default=0)
        longest = max((one.longest for one in connections if not one.error), default=0)
        return LiveStream(
            name=self._channel.stream.name,
            sent=len(connections),
            lost=sum(1 for one in connections if one.error),
            gap_ms=silent / NS_PER_MS if silent > self._least_gap else 0.0,
            longest_gap_ms=max(longest, silent) / NS_PER_MS,
            rtt_ms=None,
            late_ticks=late,
        )
