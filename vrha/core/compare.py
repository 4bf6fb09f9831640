"""Two runs side by side: what became better, what became worse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vrha.model.probing import ConnectionsResult, Record, StreamResult

Trend = Literal["better", "same", "worse"]
TOLERANCE = 0.1
"""Share by which a time may differ and still be the same."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a stream in both runs; less is better. None: it was not measured."""

    stream: str
    figure: str
    unit: str
    a: float | None
    b: float | None
    trend: Trend


@dataclass(frozen=True, slots=True)
class Comparison:
    """`rows` of the streams that both runs have, then the names that only one of them has."""

    rows: tuple[Row, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def worse(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.trend == "worse")


def compare(a: Record, b: Record) -> Comparison:
    """What `b` shows beside `a`, the baseline."""
    one, other = _by_name(a), _by_name(b)
    rows: list[Row] = []
    for name, was in one.items():
        now = other.get(name)
        if isinstance(was, StreamResult) and isinstance(now, StreamResult):
            rows += _streams(was, now)
        elif isinstance(was, ConnectionsResult) and isinstance(now, ConnectionsResult):
            rows += _connections(was, now)
    both = {row.stream for row in rows}
    return Comparison(
        tuple(rows),
        tuple(name for name in one if name not in both),
        tuple(name for name in other if name not in both),
    )


def _by_name(record: Record) -> dict[str, StreamResult | ConnectionsResult]:
    found: list[StreamResult | ConnectionsResult] = [*record.result.streams]
    found += record.result.connections
    return {one.stream.name: one for one in found}


def _streams(was: StreamResult, now: StreamResult) -> Iterator[Row]:
    name, a, b = was.stream.name, was.loss, now.loss
    tick = max(was.stream.interval_ms, now.stream.interval_ms)
    yield _count(name, "lost", a.lost, b.lost)
    yield _count(name, "gaps", len(a.gaps), len(b.gaps))
    yield _time(name, "longest gap", a.longest_gap_ms, b.longest_gap_ms, tick)
    yield _time(name, "outage", a.outage_ms, b.outage_ms, tick)
    yield _time(name, "rate-derived", a.rate_outage_ms, b.rate_outage_ms, tick)
    yield _time(name, "longest silence", a.longest_silence_ms, b.longest_silence_ms, tick)
    yield _time(name, "rtt median", a.rtt_median_ms, b.rtt_median_ms, 0.05)
    yield _time(name, "rtt max", a.rtt_max_ms, b.rtt_max_ms, tick)


def _connections(was: ConnectionsResult, now: ConnectionsResult) -> Iterator[Row]:
    name = was.stream.name
    yield _count(name, "dead connections", was.total - was.alive, now.total - now.alive)
    tick = max(was.stream.interval_ms, now.stream.interval_ms)
    yield _time(name, "longest stall", was.longest_stall_ms, now.longest_stall_ms, tick)


def _count(name: str, figure: str, a: int, b: int) -> Row:
    return Row(name, figure, "", a, b, "same" if a == b else "better" if b < a else "worse")


def _time(name: str, figure: str, a: float | None, b: float | None, least: float) -> Row:
    """Times that differ by no more than `least` ms, or a tenth, are the same."""
    trend: Trend
    if a is None or b is None:
        # Not measured is the worst: the rate did not return, nobody answered, nothing lives.
        trend = "same" if a is b else "better" if a is None else "worse"
    elif abs(a - b) <= max(least, TOLERANCE * max(a, b)):
        trend = "same"
    else:
        trend = "better" if b < a else "worse"
    return Row(name, figure, "ms", a, b, trend)
