"""Gaps of a stream of probes, from times alone.

All functions work on nanoseconds of one clock and know nothing of where the times came from.
Terms: a gap is a loss period of RFC 3357 section 4; `outage_ms` is the loss-derived convergence
time of RFC 6412 section 3.5 (lost probes over offered load).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vrha.model.probing import Gap

UNANSWERED = -1
"""Receive time of a probe that was never answered."""

NS_PER_MS = 1_000_000


def find_gaps(sent: Sequence[int], received: Sequence[int], t0: int, end: int) -> tuple[Gap, ...]:
    """The gaps of a stream, in order of time.

    `sent` holds ascending send times, `received` the time of the first reply to each probe or
    UNANSWERED, `t0` the zero of `start_ms`, `end` the time at which probing stopped; all in ns.
    """
    gaps: list[Gap] = []
    first = UNANSWERED
    for index, reply in enumerate(received):
        if reply == UNANSWERED:
            if first == UNANSWERED:
                first = index
        elif first != UNANSWERED:
            gaps.append(_gap(sent[first], sent[index], t0, index - first))
            first = UNANSWERED
    if first != UNANSWERED:
        until = max(end, sent[-1])
        gaps.append(_gap(sent[first], until, t0, len(received) - first, unrestored=True))
    return tuple(gaps)


def _gap(start: int, until: int, t0: int, lost: int, unrestored: bool = False) -> Gap:
    return Gap((start - t0) / NS_PER_MS, (until - start) / NS_PER_MS, lost, unrestored)


def longest_step_ms(times: Sequence[int]) -> float | None:
    """The longest time in ms between two that follow each other in time, UNANSWERED ones left
    out; None with fewer than two."""
    in_order = sorted(at for at in times if at != UNANSWERED)
    steps = (later - earlier for earlier, later in pairwise(in_order))
    longest = max(steps, default=None)
    return None if longest is None else longest / NS_PER_MS
