"""Lost probes and time of draining a node of many small routers, which two other nodes take."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from statistics import median
from typing import Any

from tools.benchmarks import manyrouters, options, phases, report
from tools.benchmarks.probing import SETTLE_S, WARM_S
from tools.benchmarks.rows import CONTROL, Row, good, lost_in_all, measure_as
from tools.benchmarks.zone import Progress, await_serving, daemons, leaked
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.errors import DeadlineError, InputError, StepError
from vrha.lab.zone import Lab
from vrha.model.rollouts import RolloutKind, RolloutRequest, RolloutStatus, RolloutView
from vrha.model.spec import Desired
from vrha.model.views import RunView
from vrha.probe.process import ProbeProcess

ROLLOUT_S = 600.0
AT_ONCE, BACK_AT_ONCE = 8, 4
CONTROL_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--routers", type=options.count, default=50)
    parser.add_argument("--max-parallel", type=options.counts, default=[1, 4, 8], metavar="N[,N]")
    parser.add_argument("--interval-ms", type=float, default=50.0, help="of probes (50)")
    parser.add_argument("--runs", type=options.count, default=1)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError `too-many-routers`, VrhaError when the lab cannot be made."""
    number, interval = arguments.routers, arguments.interval_ms
    if number > manyrouters.MOST:
        raise InputError("too-many-routers", f"{number} routers; at most {manyrouters.MOST}")
    if not 1 <= interval <= 1000:
        raise InputError("bad-interval", f"an interval of {interval} ms is not in 1..1000")
    with crowded(number, f"bench-{os.getpid()}", report.progress, interval) as node:
        rows = [Row(CONTROL, node.control)]
        rows += [Row(f"drain-{n}", partial(node.drain, n)) for n in arguments.max_parallel]
        taken = measure_as(rows, arguments.runs, report.progress, told)
    params = {"routers": number, "interval_ms": interval, "runs": arguments.runs}
    return report.result("drain", params | {"max_parallel": arguments.max_parallel}, taken)


@contextmanager
def crowded(
    number: int, name: str, progress: Progress, interval_ms: float
) -> Iterator[CrowdedNode]:
    """A lab in which the first node serves `number` routers."""
    with daemons(manyrouters.scenario(number), name, progress) as (lab, client):
        desired = load(lab.zone_file)
        node = CrowdedNode(lab, client, desired, interval_ms, progress)
        progress(f"applying {number} routers")
        node.fill()
        yield node


class CrowdedNode:
    """A node with all routers of the zone, and two others to take them."""

    def __init__(
        self, lab: Lab, client: Client, desired: Desired, interval_ms: float, progress: Progress
    ) -> None:
        self.lab, self.client, self.desired, self.progress = lab, client, desired, progress
        self.node, *self.others = lab.nodes
        self.streams = manyrouters.streams(lab, desired, interval_ms)

    def fill(self) -> None:
        """Apply the zone while only the node takes instances, a few routers at a time.

        A node builds one after the other, and each command has a deadline.
        """
        self.client.apply(replace(self.desired, routers=()))
        with self._others_closed():
            for end in range(AT_ONCE, len(self.desired.routers) + AT_ONCE, AT_ONCE):
                part = replace(self.desired, routers=self.desired.routers[:end])
                self.client.apply(part)
                await_serving(self.client)

    def gather(self) -> None:
        """Bring all routers to the node from where they are."""
        self.client.undrain(self.node)
        with self._others_closed():
            await_serving(self.client)

    @contextmanager
    def _others_closed(self) -> Iterator[None]:
        """Empty the other nodes; only the first takes instances in the block."""
        for other in self.others:
            rollout = self._ended(self._begin(other, BACK_AT_ONCE))
            if rollout.status is RolloutStatus.STOPPED:
                rollout = self._ended(self.client.resume_rollout(rollout.id).id)
            _demand_done(rollout)
        yield
        for other in self.others:
            self.client.undrain(other)

    def control(self) -> dict[str, Any]:
        """The same probes while nothing is done."""
        with ProbeProcess(self.streams) as probes:
            time.sleep(CONTROL_S)
            return self._row(probes)

    def drain(self, max_parallel: int) -> dict[str, Any]:
        """One measured drain of all routers; of a rollout that stops early it says why.

        Raises StepError `drain-failed` when they cannot be gathered first, DeadlineError.
        """
        self.gather()
        with ProbeProcess(self.streams) as probes:
            time.sleep(WARM_S)
            rollout = self._ended(self._begin(self.node, max_parallel))
            time.sleep(SETTLE_S)
            row = self._row(probes)
        seconds = _seconds(rollout)
        done = [m for m in rollout.members if m.status == "done"]
        row["ms"], row["count"] = round(seconds * 1000), len(done)
        row["not_done"] = [f"{m.router}: {m.reason}" for m in rollout.members if m not in done]
        row["routers_per_s"] = round(len(done) / seconds, 3)
        row["taken_by"] = dict(Counter(m.to_node for m in done))
        runs = [self.client.run(member.run) for member in done]
        row["phases_ms"] = _medians([phases.of_run(run) for run in runs])
        row["steps_ms"] = _medians([_steps(run) for run in runs])
        row["busy"] = _busy(runs, row["ms"])
        row["leaked"] = leaked(self.client)
        if rollout.status is not RolloutStatus.DONE:
            row["stopped"] = f"{rollout.reason}: {rollout.detail}"
        return row

    def _row(self, probes: ProbeProcess) -> dict[str, Any]:
        result = probes.stop()
        row = result.to_bench()
        # Long connections are paced by the millisecond: what is late there says nothing here.
        row["late_ticks"] = max(one.late_ticks for one in result.streams)
        row["gaps_ms"] = {name: gaps for name, gaps in row["gaps_ms"].items() if gaps}
        by_router: dict[str, int] = defaultdict(int)
        for name, lost in row["lost"].items():
            by_router[name.partition("@")[2]] += lost
        row["lost_by_router"] = {name: lost for name, lost in by_router.items() if lost}
        return row

    def _begin(self, node: str, max_parallel: int) -> str:
        request = RolloutRequest(RolloutKind.DRAIN, node=node, max_parallel=max_parallel)
        return self.client.start_rollout(request).id

    def _ended(self, rollout_id: str) -> RolloutView:
        deadline = time.monotonic() + ROLLOUT_S
        while True:
            rollout = self.client.rollout(rollout_id)
            if not rollout.status.open:
                return rollout
            if time.monotonic() > deadline:
                raise DeadlineError("drain-not-ended", f"not drained in {ROLLOUT_S:g} s")
            time.sleep(0.25)


def _demand_done(rollout: RolloutView) -> None:
    if rollout.status is not RolloutStatus.DONE:
        raise StepError("drain-failed", f"{rollout.status}: {rollout.reason}: {rollout.detail}")


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each phase, over the routers."""
    names = dict.fromkeys(name for run in runs for name in run)
    return {n: round(median(run[n] for run in runs if n in run), 2) for n in names}


def _steps(run: RunView) -> dict[str, float]:
    """Milliseconds of each step on its node."""
    return {kind: timings["total"] for kind, timings in phases.details(run).items()}


def _busy(runs: list[RunView], all_ms: float) -> dict[str, float]:
    """Share of the time in which the agent of each node was at a step; it takes one at a time."""
    spent: dict[str, float] = defaultdict(float)
    for run in runs:
        for step in run.steps:
            spent[step.node] += dict(step.timings_ms).get("total", 0.0)
    return {node: round(ms / all_ms, 3) for node, ms in sorted(spent.items()) if ms}


def _seconds(rollout: RolloutView) -> float:
    begin, end = map(datetime.fromisoformat, (rollout.started_at, rollout.ended_at))
    return (end - begin).total_seconds()


def told(run: dict[str, Any]) -> str:
    """A run in words."""
    if "failed" in run:
        return f"failed: {run['failed']}"
    words = (
        f"lost {lost_in_all(run)}, on {len(run['lost_by_router'])} routers; "
        f"{run['tcp_alive']} of {run['tcp_total']} connections alive"
    )
    if "stopped" in run:
        words += f"; stopped: {run['stopped']}"
    if "ms" in run:
        words += f"; {run['count']} routers in {run['ms'] / 1000:.1f} s"
    return words


def table(result: report.Result) -> str:
    lines = [[row["row"], *_cells(row)] for row in result["rows"]]
    return report.columns(_HEADER, lines)


_HEADER = (
    "row",
    "runs",
    "failed",
    "stopped early",
    "routers moved",
    "s, all (median / worst)",
    "routers per s",
    "ms, one router",
    "busiest agent, %",
    "lost of probes",
    "routers with loss",
    "most lost by one",
    "TCP alive",
    "stayed black",
    "late ticks",
    "leaked",
)


def _cells(row: dict[str, Any]) -> list[str]:
    runs = good(row)
    timed = [run for run in runs if "ms" in run]
    head = [str(len(row["runs"])), str(len(row["runs"]) - len(runs))]
    if not runs:
        return head + ["-"] * (len(_HEADER) - 3)
    return [
        *head,
        str(sum(1 for run in runs if "stopped" in run)),
        report.spread((run["count"] for run in timed), 0),
        report.spread(run["ms"] / 1000 for run in timed),
        report.spread((run["routers_per_s"] for run in timed), 2),
        report.spread((run["phases_ms"]["total"] for run in timed), 0),
        report.spread((100 * max(run["busy"].values()) for run in timed), 0),
        f"{sum(map(lost_in_all, runs))} of {sum(sum(run['sent'].values()) for run in runs)}",
        report.spread((len(run["lost_by_router"]) for run in runs), 0),
        report.spread((max(run["lost_by_router"].values(), default=0) for run in runs), 0),
        f"{sum(run['tcp_alive'] for run in runs)} of {sum(run['tcp_total'] for run in runs)}",
        str(sum(1 for run in runs if run["unrestored"])),
        report.spread((run["late_ticks"] for run in runs), 0),
        str(sum(len(run.get("leaked", [])) for run in runs)),
    ]
