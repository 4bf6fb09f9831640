"""Limits, settling, marks, ends of one run, and two runs side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vrha.core.compare import compare
from vrha.core.marks import parse_mark, phase_line, with_phases
from vrha.core.merge import merge
from vrha.core.verdict import exceeded, notes, settled
from vrha.errors import InputError
from vrha.model.probing import (
    ConnectionsResult,
    Gap,
    Limits,
    Loss,
    Mark,
    Record,
    Result,
    Series,
    Stream,
    StreamResult,
)


def stream(name: str, *gaps: Gap, rtt: float = 0.2) -> StreamResult:
    lost = sum(gap.lost for gap in gaps)
    loss = Loss(
        *(10_000, lost, 0, gaps, max((gap.length_ms for gap in gaps), default=0.0), float(lost)),
        *(2.0, 1.0, rtt, rtt * 2, bool(gaps) and gaps[-1].unrestored),
    )
    return StreamResult(Stream(name, "udp", "10.0.0.1"), "10.0.0.1", loss, 0, (), 0)


def result(
    *streams: StreamResult, t0: int = 10**18, connections: tuple[ConnectionsResult, ...] = ()
) -> Result:
    return Result(streams, t0, 1, 10_000.0, 0, True, True, 0, 10.0, connections)


LONG = ConnectionsResult(
    Stream("long", "tcp-echo", "10.0.0.1", count=5), "10.0.0.1", 5, 4, 80.0, 99
)
EARLY, LATE = Gap(1000.0, 12.0, 12), Gap(8000.0, 3.0, 3)


def test_limits() -> None:
    found = result(stream("a", EARLY, LATE), stream("b"), connections=(LONG,))
    assert exceeded(found, Limits()) == ()
    assert exceeded(found, Limits(gap_ms=12.0, lost=15, total_ms=15.0)) == (
        "long: a stall of 80.0 ms, allowed 12 ms",
    )
    assert exceeded(found, Limits(gap_ms=11.0, lost=0, total_ms=14.0)) == (
        "a: 15 lost, allowed 0",
        "a: a gap of 12.0 ms, allowed 11 ms",
        "a: gaps of 15.0 ms in all, allowed 14 ms",
        "long: 1 connections dead, allowed 0",
        "long: a stall of 80.0 ms, allowed 11 ms",
    )


def test_a_run_that_has_not_settled_does_not_count() -> None:
    early, late = result(stream("a", EARLY)), result(stream("a", EARLY, LATE))
    assert settled(early, 5000.0)
    assert settled(result(stream("a")), 5000.0)
    assert not settled(late, 5000.0)
    assert not settled(result(stream("a", replace(EARLY, unrestored=True))), 0.1)
    assert exceeded(late, Limits(settle_ms=5000.0)) == ()
    assert exceeded(late, Limits(lost=99, settle_ms=5000.0)) == (
        "the run does not count: 5 s of full rate must follow the last gap, and 2.0 s did",
    )


def test_the_noise_floor_is_said() -> None:
    lines = notes(result(stream("a")), stream("control", Gap(5.0, 2.0, 2)))
    assert any(line.startswith("noise floor") and "2 of 10000 lost" in line for line in lines)


@pytest.mark.parametrize(
    ("line", "at", "text"),
    [
        ("1700000000.5 flip", 1_700_000_000.5, "flip"),
        ("1700000000500 flip", 1_700_000_000.5, "flip"),
        ("1700000000500000 flip", 1_700_000_000.5, "flip"),
        ("1700000000500000000 flip", 1_700_000_000.5, "flip"),
        ("2023-11-14T22:13:20.5Z flip now", 1_700_000_000.5, "flip now"),
        ("2023-11-14T22:13:20.5 flip", 1_700_000_000.5, "flip"),
        ("2023-11-15T00:13:20.5+02:00 flip", 1_700_000_000.5, "flip"),
        ("destroy the old one\n", 42.0, "destroy the old one"),
        ("-", 42.0, ""),
        ("1700000000.5 -", 1_700_000_000.5, ""),
        ("1700000000.5", 1_700_000_000.5, ""),
        ("esc\x1b[31m", 42.0, "esc[31m"),
    ],
)
def test_lines_of_marks(line: str, at: float, text: str) -> None:
    assert parse_mark(line, 42.0) == (pytest.approx(at, abs=1e-4), text)


@pytest.mark.parametrize("line", ["", "  \n", "2023-13-44T99:00:00 flip"])
def test_lines_that_are_no_marks(line: str) -> None:
    with pytest.raises(InputError, match="bad-mark"):
        parse_mark(line, 42.0)


def test_gaps_say_in_which_phases_they_are() -> None:
    gaps = (Gap(50.0, 5.0, 5), Gap(95.0, 10.0, 10), Gap(150.0, 1.0, 1), Gap(250.0, 1.0, 1))
    marks = (Mark(200.0, ""), Mark(100.0, "flip"), Mark(60.0, "sync"))
    told = with_phases(result(stream("a", *gaps)), marks)
    assert [gap.phases for gap in told.streams[0].loss.gaps] == [
        (),
        ("sync", "flip"),
        ("flip",),
        (),
    ]
    assert phase_line(told.streams[0].loss.gaps[2]) == "1.0 ms, during flip"
    assert phase_line(gaps[0]) == "5.0 ms"


def test_ends_are_put_on_one_time_line() -> None:
    series = Series(10.0, (5, 5), (0, 1), (0.1, None), (0.2, None))
    here = result(stream("a", EARLY))
    there = result(replace(stream("b", EARLY), series=series), t0=10**18 + 500 * 10**6)
    both = merge((there, here))
    assert [one.loss.gaps[0].start_ms for one in both.streams] == [1500.0, 1000.0]
    assert both.stream("b").series == Series(
        10.0,
        (0,) * 50 + (5, 5),
        (0,) * 50 + (0, 1),
        (None,) * 50 + (0.1, None),
        (None,) * 50 + (0.2, None),
    )
    assert (both.t0_realtime_ns, both.duration_ms) == (10**18, 10_500.0)
    assert merge((here,)) == here
    with pytest.raises(InputError, match="twice: a"):
        merge((here, here))
    with pytest.raises(InputError, match="no-stream"):
        merge(())


def test_what_became_better_and_worse() -> None:
    before = Record(result(stream("a", EARLY), stream("gone"), connections=(LONG,)))
    better = replace(LONG, alive=5, longest_stall_ms=82.0)
    after = Record(result(stream("a", LATE, rtt=0.9), stream("new"), connections=(better,)))
    found = compare(before, after)
    trends = {(row.stream, row.figure): row.trend for row in found.rows}
    assert trends["a", "lost"] == trends["a", "longest gap"] == "better"
    assert trends["a", "gaps"] == trends["a", "longest silence"] == "same"
    assert trends["a", "rtt median"] == "worse"
    assert trends["long", "dead connections"] == "better"
    assert trends["long", "longest stall"] == "same"
    assert (found.only_a, found.only_b) == (("gone",), ("new",))
    assert {row.figure for row in found.worse} == {"rtt median", "rtt max"}
