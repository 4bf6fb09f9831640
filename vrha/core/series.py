"""A stream over time, in bins wide enough to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from vrha.core.gaps import NS_PER_MS
from vrha.model.probing import Series

STEPS = (1.0, 2.0, 5.0)


def series_of(
    sent: Sequence[int],
    received: Sequence[int],
    *,
    t0: int,
    end: int,
    interval_ms: float = 1.0,
    timeout_ms: float | None = None,
    most: int = 1000,
) -> Series:
    """At most `most` bins from `t0` to `end`, none shorter than the interval; arguments as in
    `vrha.core.loss.analyse`."""
    until = max(end, sent[-1] + 1) if sent else end
    bin_ms = width_ms(max((until - t0) / NS_PER_MS, interval_ms * most), most)
    width = round(bin_ms * NS_PER_MS)
    count = max(0, until - t0 - 1) // width + 1
    limit = float("inf") if timeout_ms is None else timeout_ms * NS_PER_MS
    asked, lost = [0] * count, [0] * count
    trips: list[list[int]] = [[] for _ in range(count)]
    for start, back in zip(sent, received, strict=True):
        place = max(0, (start - t0) // width)
        asked[place] += 1
        if back < 0 or back - start > limit:
            lost[place] += 1
        else:
            trips[place].append(back - start)
    return Series(
        bin_ms,
        tuple(asked),
        tuple(lost),
        tuple(_ms(median(each)) if each else None for each in trips),
        tuple(_ms(max(each)) if each else None for each in trips),
    )


def width_ms(length_ms: float, most: int) -> float:
    """The smallest of 1, 2, 5, 10, ... ms of which at most `most` cover the length."""
    scale = 1.0
    while True:
        for step in STEPS:
            if step * scale * most >= length_ms:
                return step * scale
        scale *= 10


def _ms(nanoseconds: float) -> float:
    return round(nanoseconds / NS_PER_MS, 3)
