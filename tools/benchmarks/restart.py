"""Lost probes of `restart network with cleanup`, by strategy, interleaved with control runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from tools.benchmarks import options, peers, report
from tools.benchmarks.keepalived import versions
from tools.benchmarks.rows import CONTROL, Row, measure, table
from tools.benchmarks.zone import MeasuredZone, zone
from vrha.errors import InputError
from vrha.model.runs import Strategy

__all__ = ["add_arguments", "run", "table"]

DEFAULT = "handover,parallel,serial"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = ",".join([*Strategy, *peers.PEERS])
    parser.add_argument("--strategies", default=DEFAULT, help=f"of {known} ({DEFAULT})")
    parser.add_argument("--scenario", default="seed-10x10")
    parser.add_argument("--runs", type=options.count, default=10)
    add_entries(parser)


def add_entries(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--entries",
        type=options.amounts,
        action="extend",
        metavar="N[,N]",
        help="connections of others that a handover carries as well, a row each (0)",
    )


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError for an unknown strategy, VrhaError when the lab cannot be made."""
    names = parse_strategies(arguments.strategies)
    others = list(dict.fromkeys(arguments.entries or [0]))
    lab = f"bench-{os.getpid()}"
    with ExitStack() as stack:
        measured = stack.enter_context(zone(arguments.scenario, lab, report.progress))
        wanted = rows_of(measured, [Strategy(n) for n in names if n not in peers.PEERS], others)
        wanted += [
            peers.row_of(stack, name, arguments.scenario, f"{lab}-{number}", report.progress)
            for number, name in enumerate(n for n in names if n in peers.PEERS)
        ]
        rows = measure(wanted, arguments.runs, report.progress)
    params: dict[str, Any] = {"scenario": arguments.scenario, "interval_ms": 1}
    params |= {"runs": arguments.runs, "entries": others}
    if any(name in peers.PEERS for name in names):
        params["versions"] = versions()
    return report.result("restart", params, rows)


def parse_strategies(text: str) -> tuple[str, ...]:
    """Names of rows, each once. Raises InputError `unknown-strategy`."""
    known = [*map(str, Strategy), *peers.PEERS]
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in known:
            raise InputError(
                "unknown-strategy", f"no strategy {name!r}", f"Strategies: {', '.join(known)}."
            )
    return names


def rows_of(
    measured: MeasuredZone, strategies: Sequence[Strategy], others: Sequence[int] = (0,)
) -> list[Row]:
    """The control row, then one per strategy; of a handover one per number of `others`."""
    rows = [Row(CONTROL, measured.control)]
    for strategy in strategies:
        numbers = others if strategy is Strategy.HANDOVER else (0,)
        rows += [
            Row(row_name(strategy, number), partial(measured.restart, strategy, number))
            for number in numbers
        ]
    return rows


def row_name(name: str, others: int) -> str:
    """`handover+20000`: with so many connections of others."""
    return f"{name}+{others}" if others else str(name)
