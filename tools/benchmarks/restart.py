"""Lost probes of `restart network with cleanup`, by strategy, interleaved with control runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tools.benchmarks import report
from tools.benchmarks.zone import MeasuredZone, Progress, zone
from vrha.errors import InputError
from vrha.model.runs import Strategy

CONTROL = "control"
EGRESS = ("egress_icmp", "egress_udp", "snat_udp")
INGRESS = ("ingress_icmp", "ingress_udp")
FRESH = ("fresh_egress", "fresh_ingress", "fresh_snat")
"""1 ms streams of a direction, of either kind of NAT."""

Row = tuple[str, Callable[[], dict[str, Any]]]
"""Name of a row, and what takes one run of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strategies", default="serial,parallel", help="comma-separated")
    parser.add_argument("--scenario", default="seed-10x10")
    parser.add_argument("--runs", type=int, default=10)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError for an unknown strategy, VrhaError when the lab cannot be made."""
    strategies = parse_strategies(arguments.strategies)
    with zone(arguments.scenario, f"bench-{os.getpid()}", report.progress) as measured:
        rows = measure(rows_of(measured, strategies), arguments.runs, report.progress)
    params = {"scenario": arguments.scenario, "interval_ms": 1, "runs": arguments.runs}
    return report.result("restart", params, rows)


def parse_strategies(text: str) -> tuple[Strategy, ...]:
    try:
        return tuple(Strategy(word) for word in text.split(","))
    except ValueError as error:
        known = ", ".join(Strategy)
        raise InputError("unknown-strategy", f"{error}", f"Strategies: {known}.") from error


def rows_of(measured: MeasuredZone, strategies: Sequence[Strategy]) -> list[Row]:
    """The control row, then one per strategy."""
    return [
        (CONTROL, measured.control),
        *((strategy.value, partial(measured.restart, strategy)) for strategy in strategies),
    ]


def measure(rows: Sequence[Row], runs: int, progress: Progress) -> list[dict[str, Any]]:
    """Rows of runs, interleaved in time so that a drift of the machine hits all alike."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in rows}
    for number in range(1, runs + 1):
        for name, take in rows:
            one = take()
            found[name].append(one)
            progress(f"run {number} of {runs}: {name}: {told(one)}")
    return [{"row": name, "runs": values} for name, values in found.items()]


def told(run: dict[str, Any]) -> str:
    """A run in words."""
    return (
        f"lost {worst(run, EGRESS)} egress, {worst(run, INGRESS)} ingress, "
        f"{worst(run, FRESH)} fresh, longest gap {run['longest_gap_ms']:.1f} ms, "
        f"{run['tcp_alive']} of {run['tcp_total']} connections alive, "
        f"longest stall {max(_stalls([run]), default=0.0):.1f} ms"
    )


def worst(run: dict[str, Any], streams: Sequence[str]) -> int:
    """Lost probes of the worst of these streams, those that the scenario has."""
    return max(int(run["lost"][name]) for name in streams if name in run["lost"])


def table(result: report.Result) -> str:
    lines = [[row["row"], str(len(row["runs"])), *_cells(row["runs"])] for row in result["rows"]]
    header = [
        "strategy",
        "runs",
        "lost egress (median / worst)",
        "lost ingress",
        "lost fresh",
        "longest gap ms",
        "TCP alive",
        "longest stall ms",
        "stayed black",
        "late ticks",
        "leaked",
    ]
    return report.columns(header, lines)


def _cells(runs: Sequence[dict[str, Any]]) -> list[str]:
    return [
        *(report.spread((worst(r, of) for r in runs), 0) for of in (EGRESS, INGRESS, FRESH)),
        report.spread(r["longest_gap_ms"] for r in runs),
        f"{sum(r['tcp_alive'] for r in runs)} of {sum(r['tcp_total'] for r in runs)}",
        report.spread(_stalls(runs)),
        str(sum(1 for r in runs if r["unrestored"])),
        report.spread((r["late_ticks"] for r in runs), 0),
        str(sum(len(r.get("leaked", [])) for r in runs)),
    ]


def _stalls(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Longest stall of each run in which a connection was alive at the end."""
    return [r["tcp_longest_stall_ms"] for r in runs if r["tcp_longest_stall_ms"] is not None]
