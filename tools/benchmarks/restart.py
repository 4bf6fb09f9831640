"""Lost probes of `restart network with cleanup`, by strategy, interleaved with control runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from tools.benchmarks import report
from tools.benchmarks.zone import MeasuredZone, zone
from vrha.errors import InputError
from vrha.model.runs import Strategy

CONTROL = "control"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strategies", default="serial,parallel", help="comma-separated")
    parser.add_argument("--scenario", default="seed-10x10")
    parser.add_argument("--runs", type=int, default=10)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError for an unknown strategy, VrhaError when the lab cannot be made."""
    strategies = parse_strategies(arguments.strategies)
    with zone(arguments.scenario, f"bench-{os.getpid()}", report.progress) as measured:
        rows = measure(measured, strategies, arguments.runs)
    params = {"scenario": arguments.scenario, "interval_ms": 1, "runs": arguments.runs}
    return report.result("restart", params, rows)


def parse_strategies(text: str) -> tuple[Strategy, ...]:
    try:
        return tuple(Strategy(word) for word in text.split(","))
    except ValueError as error:
        known = ", ".join(Strategy)
        raise InputError("unknown-strategy", f"{error}", f"Strategies: {known}.") from error


def measure(
    measured: MeasuredZone, strategies: Sequence[Strategy], runs: int
) -> list[dict[str, Any]]:
    """Rows of runs, interleaved in time so that a drift of the machine hits all alike."""
    rows: dict[str, list[dict[str, Any]]] = {CONTROL: [], **{s.value: [] for s in strategies}}
    for number in range(1, runs + 1):
        rows[CONTROL].append(measured.control())
        for strategy in strategies:
            row = measured.restart(strategy)
            rows[strategy.value].append(row)
            measured.progress(
                f"run {number} of {runs}: {strategy.value}: lost {worst(row, 'egress')} egress, "
                f"{worst(row, 'ingress')} ingress, longest gap {row['longest_gap_ms']:.1f} ms"
            )
    return [{"row": name, "runs": values} for name, values in rows.items()]


def worst(row: dict[str, Any], direction: str) -> int:
    """Lost probes of the worse 1 ms stream of a direction."""
    return max(int(row["lost"][f"{direction}_{kind}"]) for kind in ("icmp", "udp"))


def table(result: report.Result) -> str:
    lines = []
    for row in result["rows"]:
        runs = row["runs"]
        lines.append(
            [
                row["row"],
                str(len(runs)),
                report.spread((worst(r, "egress") for r in runs), 0),
                report.spread((worst(r, "ingress") for r in runs), 0),
                report.spread(r["longest_gap_ms"] for r in runs),
                str(sum(1 for r in runs if r["unrestored"])),
                report.spread((r["late_ticks"] for r in runs), 0),
                str(sum(len(r.get("leaked", [])) for r in runs)),
            ]
        )
    header = [
        "strategy",
        "runs",
        "lost egress (median / worst)",
        "lost ingress",
        "longest gap ms",
        "stayed black",
        "late ticks",
        "leaked",
    ]
    return report.columns(header, lines)
