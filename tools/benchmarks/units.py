"""The units under the real systemd, in a box: what dies is noticed, muted, back, swept; and when.

Rows: the agent is killed (-9) or hung (SIGSTOP), the watcher likewise, both are killed; the power
is cut and the machine boots again; the agent cannot come back while the node is cut off. A client
behind the router pings through it every ms.

`died` is when the kernel was done with the process, `noticed` when the watcher said so (pidfd), by
its own clock; `muted` the last ping that was answered; `silent` the longest time without an answer;
`back` until the daemon serves, by its own word to init; `swept` until no link, namespace or file of
an instance is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tests.systemd import unitskit
from tests.systemd.box import missing
from tools.benchmarks import options, report
from vrha.errors import PreconditionError

_COLUMNS = {
    "died ms": "died_ms",
    "noticed ms": "noticed_ms",
    "muted ms": "muted_ms",
    "silent ms": "silent_ms",
    "agent back ms": "agent_back_ms",
    "watcher back ms": "watcher_back_ms",
    "swept ms": "swept_ms",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=options.count, default=20, help="of each fault")


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises PreconditionError `no-box` when this machine cannot boot a systemd."""
    if lacks := missing():
        raise PreconditionError("no-box", f"no systemd in a box here: {lacks}")
    rows: dict[str, list[Mapping[str, Any]]] = {}
    with unitskit.node() as node:
        faults: dict[str, Callable[[], unitskit.Fault]] = {"control": node.quiet}
        faults |= {name: partial(node.fault, units) for name, units in unitskit.FAULTS.items()}
        _rounds(faults, arguments.runs, rows)
        _rounds({"reboot": node.reboot}, arguments.runs, rows)
        node.renew()
        _rounds({"gone": node.gone}, arguments.runs, rows, node.renew)
    params = {"runs": arguments.runs, "grace_s": unitskit.GRACE_S, "interval_ms": 1}
    return report.result("units", params, [{"row": name, "runs": r} for name, r in rows.items()])


def _rounds(
    takes: Mapping[str, Callable[[], unitskit.Fault]],
    runs: int,
    rows: dict[str, list[Mapping[str, Any]]],
    after: Callable[[], object] = int,
) -> None:
    """Each of `takes` in turn, so that a drift of the machine hits all alike."""
    for number in range(runs):
        for name, take in takes.items():
            try:
                seen = take().told()
            except AssertionError as error:
                seen = {"failed": str(error)}
                report.progress(f"{name}: {error}")
            rows.setdefault(name, []).append(seen)
        after()
        report.progress(f"{', '.join(takes)}: {number + 1} of {runs}")


def table(result: report.Result) -> str:
    """Median and worst of each figure."""
    lines = []
    for row in result["rows"]:
        good = [run for run in row["runs"] if "failed" not in run]
        cells = [
            report.spread([run[key] for run in good if run.get(key)]) for key in _COLUMNS.values()
        ]
        lost = sum(run["lost"] for run in good)
        sent = sum(run["sent"] for run in good)
        kept = sum(run["same_dnsmasq"] for run in good)
        lines.append(
            [row["row"], f"{len(good)} of {len(row['runs'])}", *cells, f"{lost} of {sent}"]
        )
        lines[-1].append(f"{kept} of {len(good)}" if sent else "-")
    head = ["fault (median / worst)", "good", *_COLUMNS, "pings lost", "dnsmasq lived on"]
    return report.columns(head, lines)
