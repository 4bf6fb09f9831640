"""Figures of a stream beyond its gaps: convergence, order, lateness, ways, series."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.core.gaps import UNANSWERED
from vrha.core.loss import analyse
from vrha.core.series import series_of, width_ms
from vrha.model.probing import Loss

MS = 1_000_000
T0 = 5_000_000_000
RTT = MS // 5


def stream(count: int, lost: range = range(0), held: dict[int, int] | None = None) -> Loss:
    """`count` probes at 1 ms; those of `held` are answered so many ms late."""
    sent = [T0 + i * MS for i in range(count)]
    late = held or {}
    received = [
        UNANSWERED if i in lost else at + RTT + late.get(i, 0) * MS for i, at in enumerate(sent)
    ]
    return analyse(sent, received, t0=T0, end=T0 + count * MS, interval_ms=1.0, timeout_ms=1000.0)


def test_an_outage_has_both_convergence_times() -> None:
    loss = stream(1000, range(200, 300))
    assert (loss.outage_ms, loss.rate_outage_ms) == (100.0, 100.0)
    assert (loss.first_lost_ms, loss.restored_ms) == (200.0, 300.0)
    assert (loss.rtt_before.count, loss.rtt_during.count, loss.rtt_after.count) == (200, 0, 700)


def test_two_outages_within_five_seconds_are_one_convergence() -> None:
    lost = [*range(1000, 1050), *range(3000, 3020)]
    sent = [T0 + i * MS for i in range(4000)]
    received = [UNANSWERED if i in lost else at + RTT for i, at in enumerate(sent)]
    loss = analyse(sent, received, t0=T0, end=T0 + 4000 * MS, interval_ms=1.0)
    assert loss.outage_ms == 70.0
    assert loss.rate_outage_ms == 2020.0


def test_outages_more_than_five_seconds_apart_are_two() -> None:
    lost = [*range(1000, 1050), *range(7000, 7020)]
    sent = [T0 + i * MS for i in range(8000)]
    received = [UNANSWERED if i in lost else at + RTT for i, at in enumerate(sent)]
    loss = analyse(sent, received, t0=T0, end=T0 + 8000 * MS, interval_ms=1.0)
    assert loss.rate_outage_ms == 50.0


def test_a_rate_that_does_not_come_back_has_no_length() -> None:
    loss = stream(1000, range(900, 1000))
    assert loss.rate_outage_ms is None
    assert loss.restored_ms is None


def test_a_clean_run_has_no_outage() -> None:
    loss = stream(1000)
    assert (loss.rate_outage_ms, loss.lost, loss.reordered, loss.late) == (0.0, 0, 0, 0)
    assert loss.rtt_before.count == 1000
    assert loss.first_lost_ms is loss.restored_ms is None


def test_probes_that_were_never_sent_are_no_outage() -> None:
    sent = [T0 + i * MS for i in range(1000) if not 300 <= i < 400]
    received = [at + RTT for at in sent]
    loss = analyse(sent, received, t0=T0, end=T0 + 1000 * MS, interval_ms=1.0)
    assert (loss.lost, loss.rate_outage_ms) == (0, 0.0)
    assert loss.longest_pause_ms == 101.0


def test_packets_that_were_held_are_below_rate_and_not_lost() -> None:
    loss = stream(1000, held={i: 250 - i for i in range(200, 250)})
    assert (loss.lost, loss.rate_outage_ms) == (0, 50.0)
    assert loss.longest_silence_ms == pytest.approx(51.0)


def test_a_reply_after_its_timeout_is_late_and_lost() -> None:
    loss = stream(3000, held={100: 1500, 101: 999})
    assert (loss.late, loss.lost) == (1, 1)
    assert loss.gaps[0].start_ms == 100.0
    assert loss.reordered == 1


def test_replies_out_of_order_are_counted_as_in_rfc_4737() -> None:
    assert stream(100, held={10: 5}).reordered == 1
    assert stream(100, held={10: 5, 11: 5}).reordered == 2


def test_the_way_on_which_probes_died() -> None:
    sent = [T0 + i * MS for i in range(10)]
    received = [UNANSWERED if i in (2, 3, 4, 8) else at + RTT for i, at in enumerate(sent)]
    arrived = [i not in (2, 3) for i in range(10)]
    loss = analyse(sent, received, t0=T0, end=T0 + 10 * MS, interval_ms=1.0, arrived=arrived)
    assert [(gap.lost, gap.lost_forth) for gap in loss.gaps] == [(3, 2), (1, 0)]
    assert loss.lost_forth == 2


def test_an_empty_stream_is_analysed() -> None:
    loss = analyse([], [], t0=T0, end=T0, interval_ms=1.0)
    assert (loss.sent, loss.lost, loss.rate_outage_ms) == (0, 0, 0.0)
    assert series_of([], [], t0=T0, end=T0 + 10 * MS).sent == (0,) * 10


outcomes = st.lists(st.one_of(st.none(), st.integers(0, 3000)), max_size=300)


@given(outcomes, st.one_of(st.none(), st.just(1000.0)))
def test_gaps_and_series_account_for_every_probe(
    trips: list[int | None], timeout_ms: float | None
) -> None:
    sent = [T0 + i * MS for i in range(len(trips))]
    received = [
        UNANSWERED if trip is None else at + trip * MS for at, trip in zip(sent, trips, strict=True)
    ]
    end = T0 + len(trips) * MS
    loss = analyse(sent, received, t0=T0, end=end, interval_ms=1.0, timeout_ms=timeout_ms)
    limit = float("inf") if timeout_ms is None else timeout_ms
    late = sum(1 for trip in trips if trip is not None and trip > limit)
    assert loss.late == late
    assert loss.lost == late + trips.count(None) == sum(gap.lost for gap in loss.gaps)
    ends = [gap.start_ms + gap.length_ms for gap in loss.gaps]
    assert all(end <= gap.start_ms for end, gap in zip(ends, loss.gaps[1:], strict=False))
    parts = (loss.rtt_before, loss.rtt_during, loss.rtt_after)
    assert sum(part.count for part in parts) == loss.sent - loss.lost
    series = series_of(sent, received, t0=T0, end=end, timeout_ms=timeout_ms, most=7)
    assert len(series.sent) <= 7
    assert (sum(series.sent), sum(series.lost)) == (loss.sent, loss.lost)
    answered = [n - lost for n, lost in zip(series.sent, series.lost, strict=True)]
    assert [n > 0 for n in answered] == [rtt is not None for rtt in series.rtt_max_ms]


@given(st.permutations(range(12)))
def test_reordering_against_its_definition(order: list[int]) -> None:
    """RFC 4737 section 3.3: a packet is reordered when one sent later has already come."""
    received = [T0 + place * MS for place in order]
    by_arrival = sorted(range(12), key=lambda i: received[i])
    newest, reordered = -1, 0
    for i in by_arrival:
        reordered += i < newest
        newest = max(newest, i)
    sent = [T0 - 1 - 12 + i for i in range(12)]
    found = analyse(sent, received, t0=T0 - 20, end=T0, interval_ms=1.0).reordered
    assert found == reordered


@pytest.mark.parametrize(
    ("length", "width"), [(0.0, 1.0), (1000.0, 1.0), (1001.0, 2.0), (60_000, 100.0)]
)
def test_the_width_of_bins(length: float, width: float) -> None:
    assert width_ms(length, 1000) == width
