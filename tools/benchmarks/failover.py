"""Outage of a router when its agent, its node or a cable fails; beside keepalived pairs.

Every run has a lab of its own, so that none sees the loss of the run before. Rows come in turn.
Policies: what the zone says of its routers, `unset` for nothing. Causes:

  node-loss         all cables of the node silent, carrier kept; its processes killed
  sigstop-node      SIGSTOP to all processes of the node; its kernel goes on
  cut-off           the node's management cable silent; of a pair: VRRP dropped at the master
  uplink            the node's cable into the uplink's segment silent, carrier kept
  agent-kill        the agent (of a pair: keepalived) killed, started again after 0.1 s
  agent-crash-loop  the same again and again
  control           nothing
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

from tools.benchmarks import failoverpeers, failoverzone, instants, keepalived, options, report
from tools.benchmarks.failoverpeers import PEERS
from tools.benchmarks.failoverzone import POLICIES
from tools.benchmarks.rows import CONTROL, EGRESS, FRESH, INGRESS, Row, good, measure_as
from vrha.core.ownership.timing import PROFILES
from vrha.errors import InputError
from vrha.lab.scenario import Scenario, load_scenario

CAUSES = (
    "node-loss",
    "agent-kill",
    "agent-crash-loop",
    "cut-off",
    "sigstop-node",
    "uplink",
    CONTROL,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument("--cause", default="node-loss", metavar="CAUSE[,CAUSE]")
    parser.add_argument("--policy", default="resurrect,standby", help=f"of {','.join(POLICIES)}")
    parser.add_argument("--profile", default="default", help=f"of {','.join(PROFILES)}")
    parser.add_argument("--peers", default="", help=f"of {','.join(PEERS)}")
    parser.add_argument("--scenario", default="seed-10x10")
    parser.add_argument("--runs", type=options.count, default=5)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError for unknown words, NotFoundError `no-scenario`."""
    causes = options.words(arguments.cause, CAUSES, "cause")
    policies = options.words(arguments.policy, POLICIES, "policy")
    profiles = options.words(arguments.profile, PROFILES, "profile")
    peers = options.words(arguments.peers, PEERS, "peer")
    if not causes or not (policies or peers):
        raise InputError("nothing-to-do", "no cause, or neither a policy nor a peer")
    plan = load_scenario(arguments.scenario)
    rows = rows_of(plan, causes, [(p, f) for p in policies for f in profiles], peers)
    taken = measure_as(rows, arguments.runs, report.progress, told)
    params = {"scenario": arguments.scenario, "interval_ms": 1, "runs": arguments.runs}
    params |= {"causes": causes, "policies": policies, "profiles": profiles, "peers": peers}
    if peers:
        params["versions"] = keepalived.versions()
    return report.result("failover", params, taken)


def rows_of(
    plan: Scenario,
    causes: Sequence[str],
    ours: Sequence[tuple[str, str]],
    peers: Sequence[str],
) -> list[Row]:
    """A row for each cause and each of `ours` (policy, profile) and of the peers."""
    numbers = count(1)

    def named(take: Any) -> Any:
        return lambda: take(name=f"bench-{os.getpid()}-{next(numbers)}")

    rows = []
    for cause in causes:
        for policy, profile in ours:
            take: Any = partial(failoverzone.take, policy, profile, cause, plan, progress=_quiet)
            reason = failoverzone.missing(plan, policy)
            rows.append(_row(f"{cause}: {policy}, {profile}", named(take), reason))
        for name in peers:
            take = partial(failoverpeers.take, PEERS[name], cause, plan, progress=_quiet)
            reason = keepalived.missing(PEERS[name].conntrackd)
            rows.append(_row(f"{cause}: {name}", named(take), reason))
    return rows


def _row(name: str, take: Any, reason: str) -> Row:
    return Row(name, missing=reason) if reason else Row(name, take)


def _quiet(_: str) -> None:
    """A lab for each run would say too much."""


def told(run: dict[str, Any]) -> str:
    """A run in words."""
    if "failed" in run:
        return f"failed: {run['failed']}"
    phases = ", ".join(f"{name} {ms:.1f}" for name, ms in run["phases_ms"].items())
    return (
        f"out for {run['worst_ms']:.1f} ms"
        + (f" ({phases})" if phases else "")
        + f", {sum(run['lost'].values())} lost, "
        f"{run['tcp_alive']} of {run['tcp_total']} connections alive"
        + ("" if run["back"] else ", not back")
    )


def table(result: report.Result) -> str:
    """Outages, and below it what they were spent on."""
    rows = [row for row in result["rows"] if row["runs"]]
    parts = []
    if rows:
        parts.append(report.columns(_HEAD, [[row["row"], *_cells(row)] for row in rows]))
        parts.append(report.columns(_SPLIT_HEAD, [[row["row"], *_split(row)] for row in rows]))
        parts.append("median / worst; outage: the longest gap of the worst stream; ms but counts")
    parts += [f"{r['row']}: missing: {r['missing']}" for r in result["rows"] if "missing" in r]
    return "\n\n".join(parts)


_HEAD = (
    "cause: policy, profile or peer",
    "runs",
    "failed",
    "outage",
    "egress",
    "ingress",
    "fresh",
    "lost, worst stream",
    "TCP alive",
    "longest stall",
    "two owners",
    "not back",
    "late ticks",
)
_SPLIT_HEAD = ("split", *instants.PHASES)


def _cells(row: dict[str, Any]) -> list[str]:
    runs = good(row)
    head = [str(len(row["runs"])), str(len(row["runs"]) - len(runs))]
    if not runs:
        return head + ["-"] * (len(_HEAD) - 3)
    stalls = [r["tcp_longest_stall_ms"] for r in runs if r["tcp_longest_stall_ms"] is not None]
    return [
        *head,
        report.spread(run["worst_ms"] for run in runs),
        *(report.spread(instants.longest(r, of) for r in runs) for of in (EGRESS, INGRESS, FRESH)),
        report.spread((max(run["lost"].values()) for run in runs), 0),
        f"{sum(r['tcp_alive'] for r in runs)} of {sum(r['tcp_total'] for r in runs)}",
        report.spread(stalls, 0),
        report.spread(run["owners_overlap_ms"] for run in runs),
        str(sum(1 for run in runs if not run["back"])),
        report.spread((run["late_ticks"] for run in runs), 0),
    ]


def _split(row: dict[str, Any]) -> list[str]:
    runs = good(row)
    return [
        report.spread(r["phases_ms"][name] for r in runs if name in r["phases_ms"])
        for name in instants.PHASES
    ]
