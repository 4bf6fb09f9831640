"""Leases in a real zone: what is muted, when, and for how long, when something is stopped or cut.

Three nodes with watchers, all of them voters, one router. Probes of 1 ms go through it both ways,
and a listener on the tenant's segment asks every millisecond who owns the gateway. Each row is one
fault that lasts for `--outage`; `control` is the same without a fault.

`silent`: from the fault to the first lost probe, the earlier of both ways. For what is frozen, cut
or killed it must come before the node may be replaced (`safe`, in the parameters).
`back`: from the end of the fault to the last lost probe.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.sim.nemesis import Cut, Fault, Kill, Pause
from tests.system.labnemesis import LabNemesis, is_calm
from tests.system.zonekit import Zone, wait_for, zone
from tools.benchmarks import options, report
from tools.benchmarks.probing import under_probes
from vrha.core.ownership.timing import PROFILES
from vrha.errors import StepError, VrhaError

GATEWAY = "10.1.1.1"
_BACK_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--outage", type=options.count, default=5, help="of each fault, in s")
    parser.add_argument("--runs", type=options.count, default=3)
    names = list(_faults("n1", (), 0.0))
    parser.add_argument("--fault", action="append", choices=names, help="only this; repeatable")


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises what making a lab raises."""
    names = arguments.fault or list(_faults("n1", (), 0.0))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with zone("seed-10x10", "bench-own", watched=True, failover={"enabled": False}) as made:
        for number in range(arguments.runs):
            for name in rows:
                report.progress(f"run {number + 1} of {arguments.runs}: {name}")
                rows[name].append(_measure(made, name, arguments.outage * 1000.0))
    timing = PROFILES["default"]
    params = {
        "outage_ms": arguments.outage * 1000,
        "interval_ms": 1,
        "profile": "default",
        "safe_ms": round(timing.safe_ms, 1),
    }
    return report.result("ownership", params, [{"row": n, "runs": r} for n, r in rows.items()])


def _faults(node: str, others: tuple[str, ...], ms: float) -> dict[str, tuple[Fault, ...]]:
    """What happens to the node that serves, or around it."""
    return {
        "control": (),
        "orchestrator killed": (Kill("orchestrator", ms),),
        "broker killed": (Kill("broker", ms),),
        "both killed": (Kill("orchestrator", ms), Kill("broker", ms)),
        "agent frozen": (Pause(f"agent-{node}", ms),),
        "another voter frozen": tuple(Pause(other, ms) for other in others[:1]),
        "watcher restarted": (),
        "watcher frozen": (Pause(node, ms),),
        "watcher killed": (Kill(node, ms),),
        "cut off": (Cut((node,), (), ms),),
        "cut off one way": (Cut((node,), (), ms, both=False),),
    }


def _measure(made: Zone, name: str, ms: float) -> dict[str, Any]:
    node = made.router().node
    others = tuple(each for each in made.lab.nodes if each != node)
    before = _mutes(made)
    moments: list[int] = []

    def operate() -> None:
        with _striking(made) as strike:
            moments.append(time.time_ns())
            if name == "control":
                time.sleep(ms / 1000)
            elif name == "watcher restarted":
                made.lab.watcher(node).kill(signal.SIGTERM)
                made.lab.watcher(node).start()
            for fault in _faults(node, others, ms)[name]:
                strike(fault)
        wait_for(lambda: is_calm(made), _BACK_S, "a zone that serves")

    try:
        row, _ = under_probes(made.lab, made.streams(), GATEWAY, operate, "vm2")
    except (AssertionError, VrhaError) as error:
        raise StepError("not-measured", f"{name}: {error}") from error
    _, ended = row["operation_at_ms"]
    began = row["operation_at_ms"][0]
    gaps = [gap for found in row["gaps_ms"].values() for gap in found]
    row["silent_ms"] = round(min(start for start, _ in gaps) - began, 1) if gaps else None
    last = max((start + length for start, length in gaps), default=0.0)
    row["back_ms"] = round(last - began - ms, 1) if gaps and ms else None
    row["ended_ms"] = ended
    after = _mutes(made)
    row["mutes"] = {
        each: count - (before[each][1] if before[each][0] == pid else 0)
        for each, (pid, count) in after.items()
    }
    return row


@contextlib.contextmanager
def _striking(made: Zone) -> Iterator[Callable[[Fault], None]]:
    """Faults in the block; at its end all of them are over."""
    with LabNemesis(made.lab) as nemesis:
        yield nemesis.strike
        wait_for(lambda: not nemesis.pending, 3600, "the end of the fault")


def _mutes(made: Zone) -> dict[str, tuple[int, int]]:
    """By node: which process has counted, and how many."""
    told = {node: made.lab.watcher_status(node) for node in made.lab.nodes}
    return {node: (said["pid"], said["counts"].get("mutes", 0)) for node, said in told.items()}


def table(result: report.Result) -> str:
    """A line for each fault."""
    lines = []
    for row in result["rows"]:
        runs = row["runs"]
        if not runs:
            continue
        lost = [sum(run["lost"].values()) for run in runs]
        lines.append(
            [
                row["row"],
                str(len(runs)),
                report.spread(lost, 0),
                report.spread([run["longest_gap_ms"] for run in runs], 0),
                report.spread([r["silent_ms"] for r in runs if r["silent_ms"] is not None], 0),
                report.spread([r["back_ms"] for r in runs if r["back_ms"] is not None], 0),
                str(sum(sum(run["mutes"].values()) for run in runs)),
                f"{max(run['owners_overlap_ms'] for run in runs):g}",
            ]
        )
    head = [f"fault of {result['params']['outage_ms'] / 1000:g} s", "runs", "lost", "longest gap"]
    head += ["silent", "back", "mutes", "two owners, ms"]
    legend = "median / worst; ms but counts; lost probes of both ways together"
    return f"{report.columns(head, lines)}\n{legend}"
