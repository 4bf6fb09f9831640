"""Lost probes of moving a router from node to node, interleaved with control runs."""

from __future__ import annotations

import argparse
import os
from functools import partial

from tools.benchmarks import options, report
from tools.benchmarks.restart import add_entries, row_name
from tools.benchmarks.rows import CONTROL, Row, measure, table
from tools.benchmarks.zone import zone
from vrha.errors import InputError

__all__ = ["add_arguments", "run", "table"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenario", default="seed-10x10")
    parser.add_argument("--runs", type=options.count, default=10)
    add_entries(parser)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError `one-node`, VrhaError when the lab cannot be made."""
    others = list(dict.fromkeys(arguments.entries or [0]))
    with zone(arguments.scenario, f"bench-{os.getpid()}", report.progress) as measured:
        if len(measured.lab.nodes) < 2:
            raise InputError("one-node", f"{arguments.scenario} has no second node to move to")
        rows = [Row(CONTROL, measured.control)]
        rows += [Row(row_name("move", each), partial(measured.move, each)) for each in others]
        taken = measure(rows, arguments.runs, report.progress)
    params = {"scenario": arguments.scenario, "interval_ms": 1, "runs": arguments.runs}
    return report.result("move", params | {"entries": others}, taken)
