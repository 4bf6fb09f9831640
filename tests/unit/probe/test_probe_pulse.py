"""What the live view says of streams whose times are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vrha.core.gaps import UNANSWERED
from vrha.model.probing import Live, LiveStream, Stream
from vrha.probe.channels import ProbeChannel
from vrha.probe.kernel import Namespace
from vrha.probe.pulse import Pulse

MS = 1_000_000
EVERY_MS = 250

Answer = Callable[[int], int | None]
"""The round-trip time in ms of the probe sent at that time; None: it is lost."""


class Play:
    """A stream of one probe per ms; replies come when they are due."""

    def __init__(self, channel: ProbeChannel, answer: Answer) -> None:
        self._channel = channel
        self._answer = answer
        self._seen: list[Live] = []
        self._pulse = Pulse([channel], 0, self._seen.append, EVERY_MS / 1000, lambda _: 3)
        self._due: dict[int, list[int]] = {}

    def until(self, end_ms: int) -> list[LiveStream]:
        """All that is told in that time."""
        for at in range(len(self._channel.sent), end_ms):
            self._channel.sent.append(at * MS)
            self._channel.received.append(UNANSWERED)
            trip = self._answer(at)
            if trip is not None:
                self._due.setdefault(at + trip, []).append(at)
            for sent in self._due.pop(at, []):
                self._channel.received[sent] = at * MS
                self._channel.answered += 1
            self._pulse.check(at * MS)
        told = [live.streams[0] for live in self._seen]
        assert [live.at_ms for live in self._seen] == [
            EVERY_MS * (i + 1) for i in range(len(self._seen))
        ]
        assert {one.late_ticks for one in told} <= {3}
        return told


@pytest.fixture
def channel() -> Iterator[ProbeChannel]:
    made = ProbeChannel(Stream("s", "udp", "127.0.0.1"), Namespace(None))
    yield made
    made.close()


@pytest.mark.parametrize("trip", [1, 19, 150, 900])
def test_a_long_way_is_no_gap(channel: ProbeChannel, trip: int) -> None:
    told = Play(channel, lambda _: trip).until(4000)
    assert {(one.lost, one.gap_ms, one.longest_gap_ms) for one in told} == {(0, 0.0, 0.0)}
    assert told[-1].rtt_ms == trip
    assert told[-1].sent > 3700


def test_an_outage_grows_and_is_kept(channel: ProbeChannel) -> None:
    told = Play(channel, lambda at: None if 600 <= at < 1900 else 1).until(3000)
    gaps = [(one.lost, one.gap_ms, one.longest_gap_ms) for one in told]
    assert gaps[:2] == [(0, 0.0, 0.0)] * 2
    assert gaps[2:7] == [
        (at - 600 - 20, at - 600, at - 600) for at in (750, 1000, 1250, 1500, 1750)
    ]
    assert gaps[7:] == [(1300, 0.0, 1300.0)] * 4
    assert [one.rtt_ms is None for one in told] == [False] * 3 + [True] * 4 + [False] * 4


def test_who_never_answers_is_silent_after_the_timeout(channel: ProbeChannel) -> None:
    told = Play(channel, lambda _: None).until(3001)
    assert [one.lost for one in told[:4]] == [0, 0, 0, 0]
    assert (told[-1].lost, told[-1].gap_ms) == (2000, 3000.0)


def test_single_losses_are_counted(channel: ProbeChannel) -> None:
    told = Play(channel, lambda at: None if at % 100 == 50 else 2).until(2001)
    assert (told[-1].lost, told[-1].gap_ms, told[-1].longest_gap_ms) == (20, 0.0, 1.0)


def test_a_way_that_gets_longer_has_lost_nothing(channel: ProbeChannel) -> None:
    """While nothing comes that is a gap, but not one that stays."""
    told = Play(channel, lambda at: 1 if at < 950 else 200).until(4000)
    assert told[3].gap_ms == 50.0
    assert {(one.lost, one.gap_ms) for one in told[4:]} == {(0, 0.0)}
    assert told[-1].longest_gap_ms == 0.0


def test_answers_after_the_timeout_are_lost(channel: ProbeChannel) -> None:
    told = Play(channel, lambda at: 1200 if 500 <= at < 600 else 1).until(3000)
    assert (told[-1].lost, told[-1].longest_gap_ms) == (100, 100.0)


def test_a_long_outage_is_not_looked_at_again_and_again(channel: ProbeChannel) -> None:
    class Counted(list[int]):
        looks = 0

        def __getitem__(self, index: int) -> int:  # type: ignore[override]
            Counted.looks += 1
            return super().__getitem__(index)

    channel.received = Counted()  # type: ignore[assignment]
    play = Play(channel, lambda at: 1 if at < 100 else None)
    play.until(20_000)
    assert Counted.looks < 2 * 20_000
