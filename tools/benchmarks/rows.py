"""Rows of runs taken in turn, and the tables of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.benchmarks import report
from vrha.errors import VrhaError

CONTROL = "control"
EGRESS = ("egress_icmp", "egress_udp", "snat_udp")
INGRESS = ("ingress_icmp", "ingress_udp")
FRESH = ("fresh_egress", "fresh_ingress", "fresh_snat")
"""1 ms streams of a direction, of either kind of NAT."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """Its name and what takes one run of it; `missing` says why there is nothing to take."""

    name: str
    take: Callable[[], dict[str, Any]] | None = None
    missing: str = ""


def measure(rows: Sequence[Row], runs: int, progress: Progress) -> list[dict[str, Any]]:
    """Rows of runs as `measure_as` takes them, of the streams of one router."""
    return measure_as(rows, runs, progress, told)


def measure_as(
    rows: Sequence[Row], runs: int, progress: Progress, tell: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """Rows of runs, interleaved in time so that a drift of the machine hits all alike.

    A run that fails is one with the reason, and the others go on. `tell` puts a run into words.
    """
    found: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    for row in rows:
        if row.missing:
            progress(f"{row.name}: missing: {row.missing}")
    for number in range(1, runs + 1):
        for row in rows:
            if row.take is not None:
                one = _taken(row.take)
                found[row.name].append(one)
                progress(f"run {number} of {runs}: {row.name}: {tell(one)}")
    return [
        {"row": row.name}
        | ({"missing": row.missing} if row.missing else {})
        | {"runs": found[row.name]}
        for row in rows
    ]


def _taken(take: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return take()
    except VrhaError as error:
        return {"failed": str(error)} | ({"words": error.hint} if error.hint else {})
    except Exception as error:
        # A bug in one row must not cost the others what took an hour.
        return {"failed": f"{type(error).__name__}: {error}", "words": traceback.format_exc()}


def told(run: dict[str, Any]) -> str:
    """A run in words."""
    if "failed" in run:
        return f"failed: {run['failed']}"
    return (
        f"lost {worst(run, EGRESS)} egress, {worst(run, INGRESS)} ingress, "
        f"{worst(run, FRESH)} fresh, longest gap {run['longest_gap_ms']:.1f} ms, "
        f"{run['tcp_alive']} of {run['tcp_total']} connections alive, "
        f"longest stall {max(_stalls([run]), default=0.0):.1f} ms"
    )


def worst(run: dict[str, Any], streams: Sequence[str]) -> int:
    """Lost probes of the worst of these streams, those that the scenario has."""
    return max(int(run["lost"][name]) for name in streams if name in run["lost"])


def lost_in_all(run: dict[str, Any]) -> int:
    """Lost probes of all streams together."""
    return sum(int(lost) for lost in run["lost"].values())


def table(result: report.Result) -> str:
    """What was lost, and below it how long it took."""
    rows = result["rows"]
    lost = [[row["row"], *_counts(row), *_cells(good(row))] for row in rows]
    taken = [row for row in rows if any("phases_ms" in run for run in good(row))]
    parts = [report.columns(_LOST, lost)]
    if taken:
        lines = [[row["row"], *_durations(good(row))] for row in taken]
        parts.append(report.columns(_DURATIONS, lines))
    parts += [f"{row['row']}: missing: {row['missing']}" for row in rows if "missing" in row]
    return "\n\n".join(parts)


def good(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a row that did not fail."""
    return [run for run in row["runs"] if "failed" not in run]


_LOST = (
    "row",
    "runs",
    "failed",
    "lost egress (median / worst)",
    "lost ingress",
    "lost fresh",
    "longest gap ms",
    "TCP alive",
    "longest stall ms",
    "two owners ms",
    "stayed black",
    "late ticks",
    "leaked",
)
_PHASES = ("build", "checkin", "sync", "before_flip", "flip", "verify", "retire", "total")
_DURATIONS = ("median / worst, ms", *(name.replace("_", " ") for name in _PHASES), "entries")


def _counts(row: dict[str, Any]) -> list[str]:
    runs = len(row["runs"])
    return [str(runs), str(runs - len(good(row)))]


def _cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    if not runs:
        return ["-"] * (len(_LOST) - 3)
    return [
        *(report.spread((worst(r, of) for r in runs), 0) for of in (EGRESS, INGRESS, FRESH)),
        report.spread(r["longest_gap_ms"] for r in runs),
        f"{sum(r['tcp_alive'] for r in runs)} of {sum(r['tcp_total'] for r in runs)}",
        report.spread(_stalls(runs)),
        report.spread(r["owners_overlap_ms"] for r in runs if "owners_overlap_ms" in r),
        str(sum(1 for r in runs if r["unrestored"])),
        report.spread((r["late_ticks"] for r in runs), 0),
        str(sum(len(r.get("leaked", [])) for r in runs)),
    ]


def _durations(runs: Sequence[dict[str, Any]]) -> list[str]:
    def cell(name: str) -> str:
        digits = 2 if name == "flip" else 0
        return report.spread(
            (r["phases_ms"][name] for r in runs if name in r.get("phases_ms", {})), digits
        )

    return [
        *(cell(name) for name in _PHASES),
        report.spread((r["count"] for r in runs if "count" in r), 0),
    ]


def _stalls(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Longest stall of each run in which a connection was alive at the end."""
    return [r["tcp_longest_stall_ms"] for r in runs if r["tcp_longest_stall_ms"] is not None]
