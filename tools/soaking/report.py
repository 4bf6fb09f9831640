"""What is told of the faults: a line for each, a table by kind, raw values as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from tools.soaking.rounds import Outcome

_HEAD = (
    "kind",
    "count",
    "felt",
    "lost",
    "median ms",
    "worst ms",
    "stall ms",
    "tcp",
    "by hand",
    "left",
    "two owners",
    "bad",
)


def line(out: Outcome) -> str:
    """One fault for people."""
    felt = f"gap {out.gap_ms:.0f} ms, lost {out.lost}, tcp {out.tcp_alive}/{out.tcp_total}"
    decided = "; ".join(out.decided) or "nothing"
    hand = f"; by hand: {out.by_hand}" if out.by_hand else ""
    bad = f" VIOLATION {'; '.join(out.violations)}" if out.violations else ""
    return f"{out.number} {out.kind}: {felt}; decided: {decided}{hand}{bad}"


def details(out: Outcome) -> Iterator[str]:
    """What was done exactly, and what was left."""
    yield from (f"    {fault}" for fault in out.faults)
    yield from (f"    lost {count} of {stream}" for stream, count in out.lost_by.items())
    yield from (f"    {each}" for each in out.left[:20])


def table(outcomes: Sequence[Outcome]) -> str:
    """One row for each kind; pairs together, for there are too many kinds of them."""
    rows: list[tuple[str, ...]] = [_HEAD]
    groups: dict[str, list[Outcome]] = {}
    for out in outcomes:
        groups.setdefault("two at once" if "+" in out.kind else out.kind, []).append(out)
    for kind, group in sorted(groups.items()):
        gaps = [out.gap_ms for out in group]
        alive, total = sum(o.tcp_alive for o in group), sum(o.tcp_total for o in group)
        figures = [
            len(group),
            sum(bool(o.lost) for o in group),
            sum(o.lost for o in group),
            f"{statistics.median(gaps):.0f}",
            f"{max(gaps):.0f}",
            f"{max(out.stall_ms for out in group):.0f}",
            f"{alive}/{total}",
            sum(bool(o.by_hand) for o in group),
            sum(len(o.left) for o in group),
            sum(o.doubles for o in group),
            sum(bool(o.violations) for o in group),
        ]
        rows.append((kind, *map(str, figures)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def document(seed: int, names: Sequence[str], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything, for the file."""
    return {
        "seed": seed,
        "kinds": list(names),
        "injections": sum(len(out.faults) for out in outcomes),
        "violations": sum(bool(out.violations) for out in outcomes),
        "rounds": [out.as_json() for out in outcomes],
    }
