"""How a run stands while it lasts, without looking at all of it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from vrha.core.gaps import NS_PER_MS, UNANSWERED
from vrha.model.probing import Live, LiveStream
from vrha.probe.channels import Channel, ProbeChannel
from vrha.probe.established import EstablishedChannel
from vrha.probe.kernel import NS_PER_S

LEAST_GAP_NS = 20 * NS_PER_MS
"""Silence that may still be a reply on its way, or one that was not fetched yet."""
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
    def __init__(self, channel: ProbeChannel) -> None:
        self._channel = channel
        interval = round(channel.stream.interval_ms * NS_PER_MS)
        self._least_gap = max(LEAST_GAP_NS, GAP_PROBES * interval)
        self._counted = 0
        self._last_answered = -1
        self._lost = 0
        self._longest = 0
        self._run_start = -1

    def live(self, now: int, late: int) -> LiveStream:
        sent, received = self._channel.sent, self._channel.received
        trips = []
        index = self._counted
        while index < len(sent) and sent[index] < now - self._least_gap:
            if received[index] == UNANSWERED:
                self._lost += 1
                if self._run_start < 0:
                    self._run_start = sent[index]
            else:
                trips.append(received[index] - sent[index])
                if self._run_start >= 0:
                    self._longest = max(self._longest, sent[index] - self._run_start)
                    self._run_start = -1
            index += 1
        self._counted = index
        gap = self._gap(now)
        self._longest = max(self._longest, gap)
        return LiveStream(
            name=self._channel.stream.name,
            sent=len(sent),
            lost=self._lost,
            gap_ms=gap / NS_PER_MS,
            longest_gap_ms=self._longest / NS_PER_MS,
            rtt_ms=median(trips) / NS_PER_MS if trips else None,
            late_ticks=late,
        )

    def _gap(self, now: int) -> int:
        """How long nothing has been answered."""
        sent, received = self._channel.sent, self._channel.received
        index = len(sent) - 1
        while index > self._last_answered and received[index] == UNANSWERED:
            index -= 1
        self._last_answered = max(self._last_answered, index)
        if self._last_answered + 1 >= len(sent):
            return 0
        gap = now - sent[self._last_answered + 1]
        return gap if gap > self._least_gap else 0


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
