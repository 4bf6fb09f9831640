"""The experiment of a paper: 54 machines are pinged every 100 ms while their agent or node dies.

The paper (an L3 agent of OpenStack with failure detection and rescheduling of its own, DAIS 2014)
reports about 11 s until all machines are reached again. Here three routers of six networks are on
one node, every machine has a public address, and pings go both ways.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from functools import partial
from itertools import count
from statistics import median
from typing import Any

from tools.benchmarks import failoverzone, instants, options, report
from tools.benchmarks.failoverzone import POLICIES, Struck, await_ready, watched, with_policy
from tools.benchmarks.nodefaults import NodeFaults
from tools.benchmarks.probing import OUTSIDE, WARM_S
from tools.benchmarks.rows import Row, good, measure_as
from tools.benchmarks.zone import Progress, await_run
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.core.ownership.timing import PROFILES
from vrha.errors import StepError
from vrha.lab.scenario import Scenario, load_scenario
from vrha.lab.zone import Lab
from vrha.model.probing import Stream
from vrha.model.runs import RestartOptions, RunStatus
from vrha.model.spec import Desired
from vrha.probe.process import ProbeProcess

PAPER_S = 11.0
CAUSES = ("agent-kill", "node-loss", "control")
INTERVAL_MS = 100.0
SETTLE_S, CONTROL_S = 3.0, 3.0
_FIRST_PUBLIC = 40
_REPLIED_S = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cause", default="agent-kill,node-loss", help=f"of {','.join(CAUSES)}")
    parser.add_argument("--policy", default="resurrect,standby", help=f"of {','.join(POLICIES)}")
    parser.add_argument("--profile", default="default", choices=list(PROFILES))
    parser.add_argument("--runs", type=options.count, default=3)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError for unknown words."""
    causes = options.words(arguments.cause, CAUSES, "cause")
    policies = options.words(arguments.policy, POLICIES, "policy")
    plan = all_public(load_scenario("dais-54"))
    numbers = count(1)

    def named(policy: str, cause: str) -> dict[str, Any]:
        name = f"bench-{os.getpid()}-{next(numbers)}"
        return take(policy, arguments.profile, cause, plan, name, lambda _: None)

    rows = []
    for cause in causes:
        for policy in policies:
            reason = failoverzone.missing(plan, policy)
            taking = None if reason else partial(named, policy, cause)
            rows.append(Row(f"{cause}: {policy}", taking, reason))
    taken = measure_as(rows, arguments.runs, report.progress, told)
    params = {"machines": len(machines(plan)), "interval_ms": INTERVAL_MS, "runs": arguments.runs}
    return report.result(
        "dais-54", params | {"profile": arguments.profile, "paper_s": PAPER_S}, taken
    )


def all_public(plan: Scenario) -> Scenario:
    """The scenario with a public address of its own for every machine, which answers pings."""
    hosts = {n["name"]: n["hosts"] for n in plan.zone["networks"]}
    numbers = count(_FIRST_PUBLIC)
    routers = []
    for router in plan.zone["routers"]:
        own = router["source_nat"][0]
        pairs = [
            {"public": f"203.0.113.{next(numbers)}", "private": host["addresses"][0]}
            for network in router["networks"]
            for host in hosts[network]
        ]
        kept = [a for a in router["uplink"]["addresses"] if a.startswith(f"{own}/") or ":" in a]
        publics = [f"{pair['public']}/32" for pair in pairs]
        rules = [{"protocol": "icmp", "icmp_type": 8}]
        routers.append(
            {
                **router,
                "uplink": {**router["uplink"], "addresses": [*kept, *publics]},
                "static_nat": pairs,
                "ingress": [{"address": pair["public"], "rules": rules} for pair in pairs],
            }
        )
    zone = {**plan.zone, "routers": routers}
    return Scenario(plan.name, zone, plan.segments, plan.machines, plan.nodes)


def machines(plan: Scenario) -> list[str]:
    """Machines that are pinged."""
    return [machine.name for machine in plan.machines if machine.name != OUTSIDE]


def streams(lab: Lab, desired: Desired) -> tuple[Stream, ...]:
    """A ping each way for every machine; names end in `@` and the machine."""
    names = {a: h.name for n in desired.networks for h in n.hosts for a in h.addresses}
    outer = lab.netns_path(OUTSIDE)
    found = []
    for router in desired.routers:
        assert router.uplink is not None
        far = str(router.uplink.gateways[0])
        for nat in router.static_nat:
            name = names[nat.private]
            ways = (("in", str(nat.public), outer), ("out", far, lab.netns_path(name)))
            found += [
                Stream(f"{way}@{name}", "icmp", target, netns=path, interval_ms=INTERVAL_MS)
                for way, target, path in ways
            ]
    return tuple(found)


def take(
    policy: str, profile: str, cause: str, plan: Scenario, name: str, progress: Progress
) -> dict[str, Any]:
    """One run in a zone of its own. Raises VrhaError."""
    plan = with_policy(plan, policy)
    with watched(plan, profile, name, progress) as (lab, client):
        desired = load(lab.zone_file)
        client.apply(desired)
        await_ready(client, policy)
        node = lab.nodes[0]
        gather(client, desired, node)
        await_ready(client, policy)
        with NodeFaults(lab, plan, node) as faults:
            struck = Struck(lab, client, faults, desired)
            with ProbeProcess(streams(lab, desired), require_reply_s=_REPLIED_S) as probes:
                time.sleep(WARM_S)
                fault = struck.strike(cause)
                back = struck.back()
                time.sleep(CONTROL_S if cause == "control" else SETTLE_S)
                result = probes.stop()
    row = result.to_bench()
    gaps, at_ms = row["gaps_ms"], (fault - result.t0_realtime_ns / 1e9) * 1000
    row["gaps_ms"] = {stream: found for stream, found in gaps.items() if found}
    row["downtime_ms"] = by_machine(instants.outages(gaps, at_ms))
    row["back"] = back and not row["unrestored"]
    return row


def gather(client: Client, desired: Desired, node: str) -> None:
    """Move all routers to the node. Raises StepError `not-gathered`."""
    for router in desired.routers:
        if failoverzone.view_of(client, router.name).node != node:
            run = client.move_router(router.name, RestartOptions(node=node))
            ended = await_run(client, run.id)
            if ended.status is not RunStatus.DONE:
                raise StepError("not-gathered", f"{router.name}: {ended.reason}: {ended.detail}")


def by_machine(outages: dict[str, float]) -> dict[str, float]:
    """The longer of both ways, by machine."""
    found: dict[str, float] = defaultdict(float)
    for name, ms in outages.items():
        machine = name.partition("@")[2]
        found[machine] = max(found[machine], ms)
    return dict(found)


def told(run: dict[str, Any]) -> str:
    """A run in words."""
    if "failed" in run:
        return f"failed: {run['failed']}"
    down = run["downtime_ms"].values()
    return (
        f"{sum(1 for ms in down if ms)} of {len(down)} machines had a gap, "
        f"median {median(down):.0f} ms, worst {max(down):.0f} ms"
        + ("" if run["back"] else ", not back")
    )


def table(result: report.Result) -> str:
    """A line for each row, and the paper's."""
    head = ["cause: policy", "runs", "failed", "machines with a gap", "downtime, median s"]
    head += ["worst s", "not back"]
    lines = [["paper, agent killed", "", "", "", "", f"{PAPER_S:g}", ""]]
    lines += [[row["row"], *_cells(row)] for row in result["rows"] if row["runs"]]
    missing = [f"{r['row']}: missing: {r['missing']}" for r in result["rows"] if "missing" in r]
    legend = f"a ping each way every {INTERVAL_MS:g} ms; downtime: the longer gap of both ways"
    return "\n".join([report.columns(head, lines), *missing, legend])


def _cells(row: dict[str, Any]) -> list[str]:
    runs = good(row)
    head = [str(len(row["runs"])), str(len(row["runs"]) - len(runs))]
    if not runs:
        return [*head, "-", "-", "-", "-"]
    down = [ms for run in runs for ms in run["downtime_ms"].values()]
    return [
        *head,
        f"{sum(1 for ms in down if ms)} of {len(down)}",
        f"{median(down) / 1000:.2f}",
        f"{max(down) / 1000:.2f}",
        str(sum(1 for run in runs if not run["back"])),
    ]
