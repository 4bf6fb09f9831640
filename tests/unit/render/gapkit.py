"""Runs of ping-gap to report on."""

from __future__ import annotations

from vrha.model.probing import (
    ConnectionsResult,
    Gap,
    Limits,
    Loss,
    Mark,
    Record,
    Result,
    Rtt,
    Series,
    Stream,
    StreamResult,
)

END_MS = 60_000.0
BIN_MS = 100.0
MARKS = (Mark(9_000.0, "sync"), Mark(10_000.0, "flip"), Mark(10_100.0, ""))


def stream(name: str, gaps: tuple[Gap, ...] = (), series: bool = True) -> StreamResult:
    lost = sum(gap.lost for gap in gaps)
    rtt = Rtt(30_000, 0.2, 0.9, 4.0)
    loss = Loss(
        sent=60_000,
        lost=lost,
        duplicates=1,
        gaps=gaps,
        longest_gap_ms=max((gap.length_ms for gap in gaps), default=0.0),
        outage_ms=float(lost),
        longest_silence_ms=13.0,
        longest_pause_ms=1.2,
        rtt_median_ms=0.2,
        rtt_max_ms=4.0,
        unrestored=bool(gaps) and gaps[-1].unrestored,
        rate_outage_ms=20.0 if gaps else 0.0,
        rtt_before=rtt,
        rtt_after=rtt,
    )
    bins = round(END_MS / BIN_MS)
    over_time = Series(
        BIN_MS,
        (100,) * bins,
        (0,) * bins,
        tuple(None if i == 100 else 0.2 for i in range(bins)),
        tuple(None if i == 100 else 0.3 + i % 9 / 10 for i in range(bins)),
    )
    probes = Stream(name, "udp", "203.0.113.1")
    return StreamResult(probes, "203.0.113.1", loss, 3, (), 0, over_time if series else None)


def gaps(count: int) -> tuple[Gap, ...]:
    """That many, the first of 12 ms during the flip, the others of 1 ms."""
    first = Gap(10_001.0, 12.0, 12, False, 12, ("flip",))
    return (first, *(Gap(11_000.0 + 200 * i, 1.0, 1) for i in range(count - 1)))[:count]


def record(
    *streams: StreamResult,
    marks: tuple[Mark, ...] = MARKS,
    limits: Limits | None = None,
    exceeded: tuple[str, ...] = (),
    settled: bool | None = True,
    title: str = "failover of r1",
) -> Record:
    long = Stream("long", "tcp-echo", "203.0.113.1", count=5)
    connections = (ConnectionsResult(long, "203.0.113.1", 5, 4, 80.0, 9999),)
    result = Result(
        *(streams, 1_700_000_000_000_000_000, 5, END_MS, 3, True, True, 0, 9.0, connections)
    )
    return Record(
        result=result,
        marks=marks,
        limits=limits or Limits(),
        settled=settled,
        exceeded=exceeded,
        notes=("warning: something", "60.0 s; resolution is the interval"),
        host="lab",
        kernel="6.1",
        tool="ping-gap 0.2.0",
        began="2023-11-14T22:13:20+00:00",
        title=title,
    )
