"""The units under the real systemd, in a box: what dies is noticed, muted, back, swept; and when.

Rows: the agent is killed (-9) or hung (SIGSTOP), the watcher likewise, both are killed; the power
is cut and the machine boots again; the agent cannot come back while the node is cut off. A client
behind the router pings through it every ms.

`died` is when the kernel was done with the process, `noticed` when the watcher said so (pidfd), by
its own clock; `muted` the last ping that was answered; `silent` the longest time without an answer;
`back` until the daemon serves, by its own word to init; `swept` until no link, namespace or file of
an instance is there.

What there is so far is written after each round, so that a series that is cut short keeps it;
interrupted (Ctrl-C, SIGTERM) it is shown, too.
"""

from __future__ import annotations

import argparse
import time
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
    params = {"runs": arguments.runs, "grace_s": unitskit.GRACE_S, "interval_ms": 1}
    began = time.monotonic()

    def found() -> report.Result:
        told = [{"row": name, "runs": runs} for name, runs in rows.items()]
        return report.result("units", params, told)

    try:
        with unitskit.node() as node:
            for number in range(arguments.runs):
                node.renew(own_dnsmasq=True)
                for name, take in _takes(node).items():
                    rows.setdefault(name, []).append(_taken(name, take))
                if arguments.json:
                    report.write_json(arguments.json, found())
                took = time.monotonic() - began
                left = took / (number + 1) * (arguments.runs - number - 1)
                report.progress(
                    f"round {number + 1} of {arguments.runs}, {took:.0f} s, {left:.0f} s more"
                )
    except KeyboardInterrupt:
        report.progress("interrupted; this is what there is, and nothing is left behind")
    return found()


def _takes(node: unitskit.Node) -> dict[str, Callable[[], unitskit.Fault]]:
    """One round: each fault in turn, so that a drift of the machine hits all alike."""
    takes: dict[str, Callable[[], unitskit.Fault]] = {"control": node.quiet}
    takes |= {name: partial(node.fault, units) for name, units in unitskit.FAULTS.items()}

    def gone() -> unitskit.Fault:
        # A reboot took the router away.
        node.renew()
        return node.gone()

    return takes | {"reboot": node.reboot, "gone": gone}


def _taken(name: str, take: Callable[[], unitskit.Fault]) -> Mapping[str, Any]:
    began = time.monotonic()
    try:
        seen = take().told()
    except AssertionError as error:
        seen = {"failed": str(error)}
    report.progress(f"  {name}: {time.monotonic() - began:.1f} s {seen.get('failed', '')}".rstrip())
    return seen


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
