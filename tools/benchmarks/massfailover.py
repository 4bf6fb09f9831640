"""A node with hundreds of routers is lost: when each is announced elsewhere, against the floor.

A machine on the uplink's segment hears the first gratuitous ARP of each router, and asks for each
address at the end. The floor builds as many on one node in the same run: raw netlink, nft and
dnsmasq, four workers, no control plane. `ratio`: from the verdict (else from the fault) to the
last router, through the floor's time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from statistics import median
from typing import Any

from tools.benchmarks import massrouters, options, report
from tools.benchmarks.announcements import Announcements
from tools.benchmarks.failoverzone import (
    POLICIES,
    UNSET,
    await_ready,
    events_since,
    latest_event,
    missing,
    named,
    wait,
    watched,
)
from tools.benchmarks.nodefaults import NodeFaults
from tools.benchmarks.probing import OUTSIDE
from tools.benchmarks.rows import Row, good, measure_as
from tools.benchmarks.zone import Progress, await_serving
from vrha.cli.client import Client
from vrha.config.desired import load
from vrha.core.ownership.timing import PROFILES
from vrha.errors import DeadlineError, InputError, StepError
from vrha.lab.daemons import environment
from vrha.lab.owners import OwnerWatch
from vrha.lab.zone import Lab
from vrha.model.rollouts import RolloutKind, RolloutRequest
from vrha.model.spec import Desired
from vrha.model.views import RouterStatus

FLOOR = "floor"
AT_ONCE, TRIES = 8, 5
"""Routers that are applied at a time, as each command has a deadline."""
FILLED_S = 900.0
BACK_S = 180.0
FLOOR_S = 300.0
WORKERS = 4
_ASKING_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--routers", type=options.count, default=500)
    parser.add_argument("--policy", default="resurrect,standby", help=f"of {','.join(POLICIES)}")
    parser.add_argument("--profile", default="default", choices=list(PROFILES))
    parser.add_argument("--runs", type=options.count, default=1)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises InputError `too-many-routers`."""
    number = arguments.routers
    if number > massrouters.MOST:
        raise InputError("too-many-routers", f"{number} routers; at most {massrouters.MOST}")
    policies = options.words(arguments.policy, POLICIES, "policy")
    small = massrouters.scenario(1)
    numbers = count(1)

    def in_lab(take: Any) -> dict[str, Any]:
        found: dict[str, Any] = take(f"bench-{os.getpid()}-{next(numbers)}", report.progress)
        return found

    rows = [Row(FLOOR, partial(in_lab, partial(floor, number)))]
    for policy in policies:
        take = partial(in_lab, partial(lose, number, policy, arguments.profile))
        rows.append(_row(policy, take, missing(small, policy)))
    taken = measure_as(rows, arguments.runs, report.progress, told)
    with_ratios(taken)
    params = {"routers": number, "runs": arguments.runs, "profile": arguments.profile}
    params |= {"nodes": len(massrouters.NODES), "floor_workers": WORKERS}
    return report.result("mass-failover", params, taken)


def _row(name: str, take: Any, reason: str) -> Row:
    return Row(name, missing=reason) if reason else Row(name, take)


def floor(number: int, name: str, progress: Progress) -> dict[str, Any]:
    """One run of the floor on the first node of a lab of its own. Raises VrhaError."""
    plan = massrouters.scenario(number)
    argv = [sys.executable, "-m", "tools.benchmarks.massfloor", str(number), str(WORKERS)]
    with Lab.up(plan, name, progress=progress, ephemeral=True) as lab:
        pipe = subprocess.PIPE
        child = lab.exec(lab.nodes[0], argv, stdout=pipe, stderr=pipe, env=environment())
        try:
            out, err = child.communicate(timeout=FLOOR_S)
        except subprocess.TimeoutExpired as error:
            raise DeadlineError("floor-late", f"not built in {FLOOR_S:g} s") from error
        finally:
            child.kill()
            child.wait()
    if child.returncode:
        raise StepError("floor-failed", err.decode(errors="replace").strip()[-500:])
    return back(json.loads(out), number)


def lose(number: int, policy: str, profile: str, name: str, progress: Progress) -> dict[str, Any]:
    """One loss of a node with all routers, in a zone of its own. Raises VrhaError."""
    plan = massrouters.scenario(number, "" if policy == UNSET else policy)
    addresses = [massrouters.own_address(place) for place in range(number)]
    with watched(plan, profile, name, progress) as (lab, client):
        desired = load(lab.zone_file)
        progress(f"applying {number} routers")
        fill(lab, client, desired)
        await_ready(client, policy, FILLED_S)
        seen, node = latest_event(client), lab.nodes[0]
        with (
            NodeFaults(lab, plan, node) as faults,
            lab.call(OUTSIDE, Announcements) as listening,
        ):
            progress(f"{node} is lost")
            fault = faults.lose_power()
            moments = _heard(listening, addresses, fault)
            row = back([(at - fault) * 1000 for at in moments.values()], number)
            row["answered"], row["owned_twice"] = _asked(lab, addresses)
            events = events_since(client, seen)
    for name, order in (("journal_ms", events), ("journal_last_ms", events[::-1])):
        row[name] = {n: round((at - fault) * 1000, 1) for n, at in named(order).items()}
    if (verdict := row["journal_ms"].get("node-silent")) is not None and "ms" in row:
        row["after_verdict_ms"] = round(row["ms"] - verdict, 1)
    return row


def fill(lab: Lab, client: Client, desired: Desired) -> None:
    """Apply the zone while only the first node takes instances. Raises DeadlineError."""
    client.apply(replace(desired, routers=()))
    for other in lab.nodes[1:]:
        rollout = client.start_rollout(RolloutRequest(RolloutKind.DRAIN, node=other)).id
        deadline = time.monotonic() + FILLED_S
        while client.rollout(rollout).status.open:
            if time.monotonic() > deadline:
                raise DeadlineError("drain-not-ended", f"{other} is not empty")
            time.sleep(0.1)
    for end in range(AT_ONCE, len(desired.routers) + AT_ONCE, AT_ONCE):
        _apply(client, replace(desired, routers=desired.routers[:end]))
    for other in lab.nodes[1:]:
        client.undrain(other)


def _apply(client: Client, desired: Desired) -> None:
    """Apply, and again where something failed on a busy machine. Raises DeadlineError."""
    settled = (RouterStatus.SERVING, RouterStatus.FAILED)
    for _ in range(TRIES):
        client.apply(desired)
        wait(lambda: all(r.status in settled for r in client.routers()), FILLED_S, "all is applied")
        if all(router.status is RouterStatus.SERVING for router in client.routers()):
            return
    await_serving(client, 0.0)


def _heard(listening: Announcements, addresses: Sequence[str], fault: float) -> dict[str, float]:
    """The first announcement of each, of those that come in time (Unix times, s)."""
    wanted = set(addresses)
    found: dict[str, float] = {}
    deadline = time.monotonic() + BACK_S
    while len(found) < len(wanted) and time.monotonic() < deadline:
        time.sleep(0.1)
        for one in listening.heard():
            if one.kind == "announced" and one.address in wanted and one.at >= fault:
                found.setdefault(one.address, one.at)
    return found


def _asked(lab: Lab, addresses: Sequence[str]) -> tuple[int, int]:
    """How many addresses somebody answers for, and how many two."""
    interval_ms = _ASKING_S * 1000 / 2
    watch = lab.call(OUTSIDE, lambda: OwnerWatch(addresses, interval_ms=interval_ms))
    with watch:
        time.sleep(_ASKING_S)
    answers = watch.results().values()
    return sum(1 for one in answers if one.answered), sum(1 for one in answers if one.doubles)


def back(ready_ms: Sequence[float], number: int) -> dict[str, Any]:
    """Fields of a run: when the first, the median and the last of `number` were back.

    `ms`, the time of all, is missing when not all were.
    """
    row: dict[str, Any] = {"count": len(ready_ms), "back_ms": [round(ms, 1) for ms in ready_ms]}
    if ready_ms:
        row |= {"first_ms": min(ready_ms), "median_ms": median(ready_ms), "last_ms": max(ready_ms)}
        if len(ready_ms) >= number:
            row["ms"] = max(ready_ms)
    return {name: round(v, 1) if isinstance(v, float) else v for name, v in row.items()}


def with_ratios(rows: Sequence[Mapping[str, Any]]) -> None:
    """Put `ratio` to the floor of the same turn into each run that has one."""
    floors = next(row["runs"] for row in rows if row["row"] == FLOOR)
    for row in rows:
        for run, least in zip(row["runs"], floors, strict=False):
            if "ms" in run and "ms" in least:
                run["ratio"] = round(run.get("after_verdict_ms", run["ms"]) / least["ms"], 3)


def told(run: dict[str, Any]) -> str:
    """A run in words."""
    if "failed" in run:
        return f"failed: {run['failed']}"
    if not run["count"]:
        return "none was back"
    return (
        f"{run['count']} back, first {run['first_ms']:.0f} ms, median {run['median_ms']:.0f} ms, "
        f"last {run['last_ms']:.0f} ms"
    )


def table(result: report.Result) -> str:
    """A line for each row."""
    head = ["row", "runs", "failed", "back", "first ms", "median ms", "last ms"]
    head += ["last after the verdict", "ratio to floor", "answer at the end", "two owners"]
    lines = [[row["row"], *_cells(row)] for row in result["rows"] if row["runs"]]
    missing_rows = [
        f"{r['row']}: missing: {r['missing']}" for r in result["rows"] if "missing" in r
    ]
    return "\n".join([report.columns(head, lines), *missing_rows, "median / worst"])


def _cells(row: dict[str, Any]) -> list[str]:
    runs = good(row)
    names = ("count", "first_ms", "median_ms", "last_ms", "after_verdict_ms", "ratio")
    digits = {"count": 0, "ratio": 2}
    return [
        str(len(row["runs"])),
        str(len(row["runs"]) - len(runs)),
        *(report.spread((r[n] for r in runs if n in r), digits.get(n, 0)) for n in names),
        report.spread((r["answered"] for r in runs if "answered" in r), 0),
        report.spread((r["owned_twice"] for r in runs if "owned_twice" in r), 0),
    ]
