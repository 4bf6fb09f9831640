"""What somebody measured against what was done: outages against faults of known length."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vrha.model.probing import StreamResult

NS_PER_MS = 1_000_000
WITHIN_MS = 2.0
MARGIN_NS = 2 * NS_PER_MS
"""How far outside a fault an outage may lie and still be its own; faults lie further apart."""

Way = Literal["forth", "back", "both", ""]
"""The direction in which packets died; empty when nobody knows."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was made: each end is the middle of the commit that did it, in ns of
    CLOCK_MONOTONIC; by `unsure_ms` its true length may differ at most."""

    way: Way
    wanted_ms: float
    began: int
    ended: int
    unsure_ms: float

    @property
    def length_ms(self) -> float:
        return (self.ended - self.began) / NS_PER_MS


@dataclass(frozen=True, slots=True)
class Outage:
    """What a prober saw, `start` in ns of CLOCK_MONOTONIC."""

    start: int
    length_ms: float
    lost: int
    way: Way = ""

    @property
    def end(self) -> int:
        return self.start + round(self.length_ms * NS_PER_MS)


def outages_of(result: StreamResult, t0: int) -> list[Outage]:
    """The gaps of a stream of ping-gap; `t0` is the run's on the monotonic clock."""
    return [
        Outage(
            t0 + round(gap.start_ms * NS_PER_MS),
            gap.length_ms,
            gap.lost,
            _way(gap.lost, gap.lost_forth),
        )
        for gap in result.loss.gaps
    ]


def _way(lost: int, lost_forth: int | None) -> Way:
    if lost_forth is None:
        return ""
    if lost_forth == lost:
        return "forth"
    return "both" if lost_forth else "back"


def judge(
    faults: Sequence[Fault], outages: Iterable[Outage]
) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """A run of the bench's JSON for each fault, and outages that no fault explains.

    Of several outages in one fault the longest is what was measured of it, the others are not
    explained. A fault in which no probe was lost was measured as 0 ms, and not seen. Those without
    a fault are [ms after the first fault began, ms].
    """
    of_fault: list[list[Outage]] = [[] for _ in faults]
    strange: list[Outage] = []
    for outage in outages:
        for fault, found in zip(faults, of_fault, strict=True):
            if outage.start <= fault.ended + MARGIN_NS and outage.end >= fault.began - MARGIN_NS:
                found.append(outage)
                break
        else:
            strange.append(outage)
    rows = []
    for fault, found in zip(faults, of_fault, strict=True):
        found.sort(key=lambda outage: outage.length_ms, reverse=True)
        rows.append(_row(fault, found[0] if found else None))
        strange += found[1:]
    zero = faults[0].began if faults else 0
    without = [[round((o.start - zero) / NS_PER_MS, 3), round(o.length_ms, 3)] for o in strange]
    return rows, sorted(without)


def _row(fault: Fault, outage: Outage | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "way": fault.way,
        "wanted_ms": fault.wanted_ms,
        "true_ms": round(fault.length_ms, 3),
        "unsure_ms": round(fault.unsure_ms, 3),
        "seen": outage is not None,
        "measured_ms": round(outage.length_ms, 3) if outage else 0.0,
        "lost": outage.lost if outage else 0,
    }
    if outage is not None:
        row["start_error_ms"] = round((outage.start - fault.began) / NS_PER_MS, 3)
        row["told_way"] = outage.way
    return row


def errors_ms(rows: Iterable[dict[str, Any]]) -> list[float]:
    """Measured minus true length of each fault, also of those not seen."""
    return [row["measured_ms"] - row["true_ms"] for row in rows]


def within(rows: Iterable[dict[str, Any]]) -> str:
    """The share of faults whose measured length is within 2 ms of the true one."""
    errors = errors_ms(rows)
    if not errors:
        return "-"
    good = sum(abs(error) <= WITHIN_MS for error in errors)
    return f"{100 * good / len(errors):.1f} %"


def tail(values: Iterable[float], digits: int = 2) -> str:
    """`median / 95th percentile / worst` of absolute values; a dash for none."""
    numbers = sorted(abs(value) for value in values)
    if not numbers:
        return "-"
    # The nearest rank: the smallest value that at least 95 % do not exceed.
    p95 = numbers[-(-95 * len(numbers) // 100) - 1]
    middle = statistics.median(numbers)
    return " / ".join(f"{number:.{digits}f}" for number in (middle, p95, numbers[-1]))


def directions(rows: Iterable[dict[str, Any]]) -> str:
    """For how many of the faults seen the direction was told rightly; `not told` if never told."""
    seen = [row for row in rows if row["seen"]]
    if not any(row["told_way"] for row in seen):
        return "not told"
    return f"{sum(row['told_way'] == row['way'] for row in seen)} of {len(seen)}"
