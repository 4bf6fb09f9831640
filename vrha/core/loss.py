"""What a stream of probes tells, from times alone.

All functions work on nanoseconds of one clock and know nothing of where the times came from.
Terms: loss periods by RFC 3357 section 4, convergence by RFC 6412 (the rate-derived method of
section 3.5.1, the loss-derived one of 3.5.2, the forwarding delay threshold of 3.7.6), reordering
by RFC 4737 section 3.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise
from operator import sub

from vrha.core.gaps import NS_PER_MS, UNANSWERED, find_gaps, longest_step_ms
from vrha.model.probing import Gap, Loss, Rtt

SAMPLE_MS, SAMPLE_PROBES = 10.0, 10
"""The packet sampling interval (RFC 6412 section 3.7.4): whichever is longer."""
UNKNOWN = -1
"""In `arrived`: the far end cannot say."""
SUSTAINED_MS = 5000.0
"""Full rate for that long ends a convergence event (RFC 6412 section 3.7.5)."""


def analyse(
    sent: Sequence[int],
    received: Sequence[int],
    *,
    t0: int,
    end: int,
    interval_ms: float,
    duplicates: int = 0,
    timeout_ms: float | None = None,
    arrived: Sequence[int] | None = None,
) -> Loss:
    """Everything that a stream tells.

    `sent`, `received`, `t0` and `end` as in `find_gaps`. A reply after more than `timeout_ms`
    counts as late and its probe as lost. `arrived[i]` is 1 when the far end saw probe i, 0 when it
    did not, UNKNOWN when it cannot say; None when it was not asked or said nothing. Raises
    ValueError on sequences of different length.
    """
    if len(sent) != len(received) or (arrived is not None and len(arrived) != len(sent)):
        raise ValueError(f"{len(sent)} send times but {len(received)} receive times")
    late = _late(sent, received, timeout_ms)
    if late:
        received = array("q", received)
        for index in late:
            received[index] = UNANSWERED
    gaps = find_gaps(sent, received, t0, end)
    if arrived is not None and gaps:
        gaps = _attributed(gaps, sent, received, arrived)
    trips = [back - start for start, back in zip(sent, received, strict=True) if back >= 0]
    everything = _rtt(trips)
    before, during, after = (
        _phases(gaps, sent, received, t0) if gaps else (everything, Rtt(), Rtt())
    )
    lost = sum(gap.lost for gap in gaps)
    return Loss(
        sent=len(sent),
        lost=lost,
        duplicates=duplicates,
        gaps=gaps,
        longest_gap_ms=max((gap.length_ms for gap in gaps), default=0.0),
        outage_ms=lost * interval_ms,
        longest_silence_ms=longest_step_ms(received),
        longest_pause_ms=longest_step_ms(sent),
        rtt_median_ms=everything.median_ms,
        rtt_max_ms=everything.max_ms,
        unrestored=bool(gaps) and gaps[-1].unrestored,
        late=len(late),
        reordered=_reordered(received),
        rate_outage_ms=_rate_outage(sent, received, t0, end, interval_ms, everything.median_ms),
        lost_forth=_lost_forth(gaps),
        first_lost_ms=gaps[0].start_ms if gaps else None,
        restored_ms=_restored(gaps),
        rtt_before=before,
        rtt_during=during,
        rtt_after=after,
    )


def _late(sent: Sequence[int], received: Sequence[int], timeout_ms: float | None) -> list[int]:
    if timeout_ms is None:
        return []
    limit = round(timeout_ms * NS_PER_MS)
    # An unanswered probe has a negative trip.
    return [i for i, trip in enumerate(map(sub, received, sent)) if trip > limit]


def _attributed(
    gaps: Sequence[Gap], sent: Sequence[int], received: Sequence[int], arrived: Sequence[int]
) -> tuple[Gap, ...]:
    """The gaps, each with how many of its probes never came to the far end."""
    told = []
    lost = (i for i, reply in enumerate(received) if reply == UNANSWERED)
    for gap in gaps:
        mine = [next(lost) for _ in range(gap.lost)]
        known = all(arrived[i] != UNKNOWN for i in mine)
        forth = sum(1 for i in mine if not arrived[i]) if known else None
        told.append(Gap(gap.start_ms, gap.length_ms, gap.lost, gap.unrestored, forth, gap.phases))
    return tuple(told)


def _lost_forth(gaps: Sequence[Gap]) -> int | None:
    ways = [gap.lost_forth for gap in gaps]
    known = [way for way in ways if way is not None]
    return sum(known) if known and len(known) == len(ways) else None


def _rtt(trips: list[int]) -> Rtt:
    if not trips:
        return Rtt()
    trips.sort()
    count = len(trips)
    middle = count // 2
    median = trips[middle] if count % 2 else (trips[middle - 1] + trips[middle]) / 2
    p99 = trips[min(count - 1, count * 99 // 100)]
    return Rtt(count, median / NS_PER_MS, p99 / NS_PER_MS, trips[-1] / NS_PER_MS)


def _phases(
    gaps: Sequence[Gap], sent: Sequence[int], received: Sequence[int], t0: int
) -> tuple[Rtt, Rtt, Rtt]:
    """Round-trip times before the first gap, from there to the end of the last one, and after."""
    first = t0 + round(gaps[0].start_ms * NS_PER_MS)
    last = t0 + round((gaps[-1].start_ms + gaps[-1].length_ms) * NS_PER_MS)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for start, back in zip(sent, received, strict=True):
        if back >= 0:
            parts[0 if start < first else 1 if start < last else 2].append(back - start)
    return _rtt(parts[0]), _rtt(parts[1]), _rtt(parts[2])


def _reordered(received: Sequence[int]) -> int:
    """Replies that came after one to a later probe."""
    answered = [at for at in received if at != UNANSWERED]
    if all(earlier <= later for earlier, later in pairwise(answered)):
        return 0
    count, first_later = 0, answered[-1]
    for at in reversed(answered):
        count += at > first_later
        first_later = min(first_later, at)
    return count


def _restored(gaps: Sequence[Gap]) -> float | None:
    if not gaps or gaps[-1].unrestored:
        return None
    return gaps[-1].start_ms + gaps[-1].length_ms


def _rate_outage(
    sent: Sequence[int],
    received: Sequence[int],
    t0: int,
    end: int,
    interval_ms: float,
    rtt_ms: float | None,
) -> float | None:
    """Length of the longest convergence event, in sampling intervals; None: it did not end.

    A sampling interval is below full rate when at least two replies fewer came than were due, or
    none: one may fall into the neighbouring interval.
    """
    if not sent:
        return 0.0
    width = round(max(SAMPLE_MS, SAMPLE_PROBES * interval_ms) * NS_PER_MS)
    shift = t0 + round((rtt_ms or 0.0) * NS_PER_MS)
    bins = max(1, (end - t0) // width)
    due, came = [0] * (bins + 1), [0] * (bins + 1)
    for at in sent:
        due[min((at - t0) // width, bins)] += 1
    for at in received:
        if at >= 0:
            came[max(0, min((at - shift) // width, bins))] += 1
    below = [i for i in range(bins) if due[i] and (came[i] < due[i] - 1 or not came[i])]
    if not below:
        return 0.0
    if below[-1] == bins - 1 and received[-1] < 0:
        return None
    longest = first = 0
    for index, last in enumerate(below):
        following = below[index + 1] if index + 1 < len(below) else None
        if following is None or (following - last) * width >= SUSTAINED_MS * NS_PER_MS:
            longest = max(longest, last + 1 - below[first])
            first = index + 1
    return longest * width / NS_PER_MS
