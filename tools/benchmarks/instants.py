"""From instants to durations: how long each stream was out, and what the time was spent on.

Pure. Instants are Unix times in seconds, of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PHASES = ("detect", "decide", "act", "neighbour")

FAILOVER = (("node-silent",), ("node-out", "taken-over"), ("announced",), ("restored",))
"""What ends the phases of a failover, by kind of event, the first that is known: the verdict;
deposed and waited out, or the right in the store right after that; the replacement has been
announced; the last stream is answered again."""
VRRP = (("advert",), (), ("announced",), ("restored",))
"""The same of a VRRP pair, by what is on the wire: the backup's first advert, which it sends
when it becomes master. It decides nothing."""


def outages(gaps_ms: Mapping[str, Sequence[Sequence[float]]], fault_ms: float) -> dict[str, float]:
    """By stream: its longest gap of those that were not over at the fault; 0 without any.

    Gaps are [start, length] in ms; `fault_ms` on the same time line.
    """
    return {
        name: max((length for start, length in gaps if start + length > fault_ms), default=0.0)
        for name, gaps in gaps_ms.items()
    }


def restored_ms(gaps_ms: Mapping[str, Sequence[Sequence[float]]], fault_ms: float) -> float | None:
    """When the longest gaps of all streams were over, on the time line of the gaps.

    None when nothing was out.
    """
    ends = []
    for gaps in gaps_ms.values():
        after = [(length, start + length) for start, length in gaps if start + length > fault_ms]
        if after:
            ends.append(max(after)[1])
    return max(ends, default=None)


def split(
    fault: float, instants: Mapping[str, float], ends: Sequence[Sequence[str]] = FAILOVER
) -> dict[str, float]:
    """Milliseconds of each phase from `fault` on; `ends` names what ends each.

    A phase whose end is not known is left out, and what it took is in the next one. None is
    shorter than 0: where an instant lies before that of the phase before, it ended with that.
    """
    found: dict[str, float] = {}
    since = fault
    for phase, names in zip(PHASES, ends, strict=True):
        known = next((instants[name] for name in names if name in instants), None)
        if known is not None:
            until = max(known, since)
            found[phase] = round((until - since) * 1000, 3)
            since = until
    return found


def longest(run: Mapping[str, Any], streams: Sequence[str]) -> float:
    """The longest outage of these streams, of those that the scenario has; ms."""
    return max((run["outage_ms"][name] for name in streams if name in run["outage_ms"]), default=0)
