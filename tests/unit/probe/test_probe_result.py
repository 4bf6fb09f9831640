"""Streams are checked; results say what a bench, a reader and a CI job need."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from vrha.codec import decode, encode
from vrha.core.verdict import exceeded, notes
from vrha.errors import InputError
from vrha.model.probing import (
    ConnectionsResult,
    Gap,
    Limits,
    Loss,
    Record,
    Result,
    Stream,
    StreamResult,
)
from vrha.probe.prober import Prober
from vrha.probe.report import show


def stream_result(
    name: str, gaps: tuple[Gap, ...] = (), interval_ms: float = 1.0, late: int = 0
) -> StreamResult:
    lost = sum(gap.lost for gap in gaps)
    return StreamResult(
        stream=Stream(name, "udp", "10.0.0.1", interval_ms=interval_ms),
        address="10.0.0.1",
        loss=Loss(
            sent=1000 - late,
            lost=lost,
            duplicates=0,
            gaps=gaps,
            longest_gap_ms=max((gap.length_ms for gap in gaps), default=0.0),
            outage_ms=lost * interval_ms,
            longest_silence_ms=1.5,
            longest_pause_ms=1.0,
            rtt_median_ms=0.1,
            rtt_max_ms=0.3,
            unrestored=bool(gaps) and gaps[-1].unrestored,
        ),
        late_ticks=late,
        errors=(),
        receive_drops=0,
    )


def result(*streams: StreamResult) -> Result:
    return Result(
        streams=streams,
        t0_realtime_ns=1,
        t0_monotonic_ns=2,
        duration_ms=1000.0,
        late_ticks=max(one.late_ticks for one in streams),
        realtime=True,
        memory_locked=True,
        clock_steps=0,
        cpu_us_per_probe=20.0,
    )


OUTAGE = Gap(100.0, 57.25, 57)
BLACK = Gap(400.0, 600.0, 600, unrestored=True)


def test_bench_fields() -> None:
    measured = result(
        stream_result("egress_udp", (OUTAGE,)),
        stream_result("ingress_udp", (BLACK,), late=3),
        stream_result("connect", (Gap(0.0, 900.0, 90),), interval_ms=10.0),
    )
    assert measured.to_bench() == {
        "sent": {"egress_udp": 1000, "ingress_udp": 997, "connect": 1000},
        "lost": {"egress_udp": 57, "ingress_udp": 600, "connect": 90},
        "gaps_ms": {
            "egress_udp": [[100.0, 57.25]],
            "ingress_udp": [[400.0, 600.0]],
            "connect": [[0.0, 900.0]],
        },
        "longest_gap_ms": 600.0,
        "late_ticks": 3,
        "unrestored": ["ingress_udp"],
    }


def connections(name: str, alive: int, stall: float | None) -> ConnectionsResult:
    stream = Stream(name, "tcp-echo", "10.0.0.1", 8, interval_ms=10.0, count=3)
    return ConnectionsResult(stream, "10.0.0.1", 3, alive, stall, 300)


def test_bench_fields_of_connections_are_over_all_streams() -> None:
    measured = replace(
        result(stream_result("egress_udp")),
        connections=(
            connections("a", 3, 10.5),
            connections("b", 2, 12.25),
            connections("c", 0, None),
        ),
    )
    fields = measured.to_bench()
    assert fields["lost"] == {"egress_udp": 0}
    assert (fields["tcp_total"], fields["tcp_alive"]) == (9, 5)
    assert fields["tcp_longest_stall_ms"] == 12.25
    dead = replace(measured, connections=(connections("c", 0, None),)).to_bench()
    assert (dead["tcp_alive"], dead["tcp_longest_stall_ms"]) == (0, None)


def test_connections_alone_are_a_result() -> None:
    measured = replace(
        result(stream_result("x")), streams=(), connections=(connections("a", 1, 70.0),)
    )
    assert decode(Result, encode(measured)) == measured
    assert (measured.longest_gap_ms, measured.lost) == (0.0, 0)
    out = io.StringIO()
    show(Record(measured, notes=notes(measured)), out)
    assert "longest stall ms" in out.getvalue()
    assert "outage" not in out.getvalue()
    assert exceeded(measured, Limits(lost=1, gap_ms=60)) == (
        "a: 2 connections dead, allowed 1",
        "a: a stall of 70.0 ms, allowed 60 ms",
    )


def test_result_survives_json() -> None:
    measured = result(stream_result("a", (OUTAGE, BLACK)))
    assert decode(Result, encode(measured)) == measured


@pytest.mark.parametrize(
    "stream",
    [
        Stream("a", "smtp", "x"),  # type: ignore[arg-type]
        Stream("", "udp", "x"),
        Stream("a", "udp", ""),
        Stream("a", "udp", "x", port=0),
        Stream("a", "udp", "x", port=65536),
        Stream("a", "udp", "x", interval_ms=0.0),
        Stream("a", "udp", "x", interval_ms=float("nan")),
        Stream("a", "udp", "x", interval_ms=1e9),
        Stream("a", "tcp-echo", "x", count=0),
        Stream("a", "tcp-echo", "x", count=10_000),
        Stream("a", "udp", "x", count=2),
    ],
)
def test_bad_streams_are_refused(stream: Stream) -> None:
    with pytest.raises(InputError) as caught:
        Prober([stream])
    assert caught.value.code == "bad-stream"


def test_no_stream_and_twice_the_same_name_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to probe"):
        Prober([])
    with pytest.raises(InputError, match="twice: a"):
        Prober([Stream("a", "udp", "127.0.0.1"), Stream("a", "udp", "127.0.0.1", port=9)])


def test_more_connections_than_the_machine_allows_are_refused() -> None:
    streams = [Stream(str(i), "tcp-connect", "127.0.0.1", interval_ms=0.1) for i in range(2000)]
    with pytest.raises(InputError) as caught:
        Prober(streams)
    assert caught.value.code == "too-many-connections"


def test_a_machine_that_is_too_slow_is_told_with_by_how_much() -> None:
    lines = notes(result(stream_result("a", late=250)))
    assert "250 of 1000 probes (25.0 %)" in lines[0]
    assert "does not hold 1 ms" in lines[0]
    assert "1.33 ms on average" in lines[0]
    assert not [line for line in notes(result(stream_result("a", late=3))) if "warning" in line]


def test_limits() -> None:
    measured = result(stream_result("a", (OUTAGE,)), stream_result("b"))
    assert exceeded(measured, Limits(lost=57, gap_ms=57.25)) == ()
    assert exceeded(measured, Limits(lost=56)) == ("a: 57 lost, allowed 56",)
    assert exceeded(measured, Limits(gap_ms=50)) == ("a: a gap of 57.2 ms, allowed 50 ms",)


def test_report_names_gaps_and_what_never_came_back() -> None:
    out = io.StringIO()
    show(Record(result(stream_result("a[b]", (OUTAGE, BLACK)))), out)
    text = out.getvalue()
    assert "a[b]: gap of 57.2 ms, at 100.0 ms, 57 lost\n" in text
    assert "a[b]: gap of 600.0 ms, at 400.0 ms, 600 lost, never restored\n" in text
