"""What a dead agent left is removed: until it is mute, until its last port is gone, what stays.

Every run removes freshly built routers, all alike: a namespace with a ruleset and two veths on two
bridges, by names, aliases and link groups an agent's. Rows come in turn:

`control`: nothing. `floor`: one message deletes all ports, which were built in one link group, then
the names are unmounted and unlinked; pids and names were known before. `names only`: the same
without the message, and nobody is killed.
`engine`: our sweep in this process, from looking what there is to its journal. `program`: the same
as `vrha-cleanup`, from the start of the process. `ip netns del`: a process for each router.
`ip -batch`: one process with a line for each, as `ip -all netns delete` does it.

With `dnsmasq` one lives in each router. A foreign router on the same bridges is pinged every
millisecond meanwhile, and the last one of those that go, to see on the wire when it falls silent.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.benchmarks import options, report, sweepbuild, sweepneutron
from tools.benchmarks.ownnode import machine, own_node
from tools.benchmarks.sweepbuild import BRIDGES, Naming, Routers
from tools.benchmarks.sweepwatch import Watch
from tools.benchmarks.sweepways import FLOOR, WAYS, Way
from vrha.errors import VrhaError
from vrha.linux import netns, tools
from vrha.linux.mute import Switch
from vrha.model.probing import Result, Stream
from vrha.probe.process import ProbeProcess

PEERS = ("neutron",)
_INSIDE = {"none": "", "dnsmasq": ", dnsmasq"}
_UPLINK = BRIDGES["u0"]
_OTHER, _OUTSIDE = "198.18.0.2", "198.18.0.1"
_MANY = {"port": "ports", "process": "processes", "name": "names"}
_SETTLE_S = 0.2
_STALLED_S = 0.7
"""Ports of which none has gone for that long after the way was gone stay."""
_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Node:
    """Where routers are built, and how an agent would call them."""

    state: Path
    switch: Switch
    naming: Naming


@dataclass(frozen=True, slots=True)
class Case:
    """How many routers there are, whether somebody lives in them, and how a row says so."""

    count: int
    suffix: str
    inhabited: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vrs", type=options.counts, default=[1, 10, 100], metavar="N[,N]")
    parser.add_argument("--runs", type=options.count, default=5)
    parser.add_argument("--ways", default=",".join(WAYS), metavar="WAY[,WAY]")
    parser.add_argument("--inside", default=",".join(_INSIDE), help="none, dnsmasq or both")
    parser.add_argument("--peers", default="", help="neutron")
    parser.add_argument("--routers", type=options.counts, default=[1, 10, 50], help="of a peer")
    parser.add_argument(
        "--neutron-venv", type=Path, metavar="DIR", help="virtual environment with neutron in it"
    )


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises PreconditionError, InputError."""
    ways = options.words(arguments.ways, WAYS, "way")
    inside = options.words(arguments.inside, _INSIDE, "inside")
    peers = options.words(arguments.peers, PEERS, "peer")
    rows: list[dict[str, Any]] = []
    with own_node(BRIDGES.values()) as state, contextlib.closing(Switch(tools.need("nft"))) as sw:
        machine("other", _UPLINK, f"{_OTHER}/15")
        machine("outside", _UPLINK, f"{_OUTSIDE}/15")
        node = Node(state, sw, sweepbuild.OURS)
        for count in arguments.vrs:
            for what in inside:
                of = Case(count, _INSIDE[what], what != "none")
                rows += _rows(node, {name: WAYS[name] for name in ways}, of, arguments.runs)
        if peers:
            node = Node(state, sw, sweepneutron.NAMING)
            peer_ways = sweepneutron.ways(arguments.neutron_venv)
            for count in arguments.routers:
                rows += _rows(node, peer_ways, Case(count, ", dnsmasq", True), arguments.runs)
    keys = ("vrs", "runs", "routers")
    return report.result("sweep", {key: getattr(arguments, key) for key in keys}, rows)


def table(result: report.Result) -> str:
    """One line per row: ms, median / worst, and what stayed and was lost in all runs."""
    lines = [_line(row) for row in result["rows"]]
    header = ["row", "runs", "returned, ms", "muted, ms", "silent, ms", "last port gone, ms"]
    return report.columns([*header, "to floor", "left, a run", "others' lost"], lines)


def _line(row: Mapping[str, Any]) -> list[str]:
    if row.get("missing"):
        return [row["row"], "-", f"missing: {row['missing']}", *["-"] * 6]
    good = [run for run in row["runs"] if "failed" not in run]
    if not good:
        return [row["row"], "0", row["runs"][0]["failed"] if row["runs"] else "-", *["-"] * 6]
    ratios = [run["ratio"] for run in good if "ratio" in run]
    return [
        row["row"],
        str(len(good)),
        *(_spread(good, key) for key in ("ms", "muted_ms", "silent_ms", "gone_ms")),
        f"{statistics.median(ratios):.2f}" if ratios else "-",
        _kinds(good[-1]["leaked"]),
        str(sum(run["lost"]["other"] for run in good if "lost" in run)),
    ]


def _spread(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [run.get(key) for run in runs]
    if None in values:
        return "never" if any("lost" in run for run in runs) else "-"
    return report.spread(value for value in values if value is not None)


def _kinds(leaked: Sequence[str]) -> str:
    kinds = [thing.partition(" ")[0] for thing in leaked]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(f"{count} {_MANY[kind]}" for kind, count in counts.items()) or "nothing"


def _rows(node: Node, ways: Mapping[str, Way | str], of: Case, runs: int) -> list[dict[str, Any]]:
    """One of each way; a text instead of one says why it is missing."""
    rows: dict[str, dict[str, Any]] = {
        name: {"row": f"{name}, {of.count}{of.suffix}", "runs": []} for name in ways
    }
    there = {name: way for name, way in ways.items() if isinstance(way, Way)}
    for name, way in ways.items():
        if not isinstance(way, Way):
            rows[name]["missing"] = way
    for number in range(runs):
        turn = [*there][number % len(there) :] + [*there][: number % len(there)] if there else []
        taken = {}
        for name in turn:
            taken[name] = _run(node, there[name], of)
            report.progress(f"{rows[name]['row']}: {_said(taken[name])}")
        floor = taken.get(FLOOR, {}).get("gone_ms")
        for name, one in taken.items():
            if floor and one.get("gone_ms"):
                one["ratio"] = round(one["gone_ms"] / floor, 3)
            rows[name]["runs"].append(one)
    return list(rows.values())


def _run(node: Node, way: Way, of: Case) -> dict[str, Any]:
    naming = node.naming if way.group is None else replace(node.naming, group=way.group)
    made = Routers()
    try:
        sweepbuild.build(made, of.count, node.switch, naming, inhabited=of.inhabited)
        return _measured(way, made, of.count, node.state)
    except (VrhaError, OSError) as error:
        return {"failed": str(error)}
    finally:
        sweepbuild.clear(made, node.switch)


def _said(one: Mapping[str, Any]) -> str:
    if "failed" in one:
        return f"failed: {one['failed']}"
    return f"muted {one['muted_ms']} ms, gone {one['gone_ms']} ms, left {_kinds(one['leaked'])}"


def _measured(way: Way, made: Routers, count: int, state: Path) -> dict[str, Any]:
    act = way.prepare(made, state)
    outside = str(netns.path_of("outside"))
    streams = [
        Stream("other", "icmp", _OTHER, netns=outside),
        Stream("swept", "icmp", sweepbuild.address(count - 1), netns=outside),
    ]
    with ProbeProcess(streams, require_reply_s=5.0) as probes:
        watch = Watch()
        try:
            time.sleep(_SETTLE_S)
            # As in the program: with all that a measurement has in its memory it takes long.
            gc.disable()
            began = time.monotonic_ns()
            phases = act()
            ended = time.monotonic_ns()
            _await_gone(watch, made)
            seen = watch.stop(made.ports)
        finally:
            gc.enable()
            watch.close()
        leaked = sweepbuild.left_of(made)
        result = probes.stop()
    row = {
        "ms": _ms(began, ended),
        "count": count,
        "muted_ms": _last(began, seen.muted, made),
        "gone_ms": _last(began, seen.gone, made),
        "silent_ms": _silent(result, began),
        "leaked": leaked,
        "lost": {"other": result.stream("other").loss.lost},
        "sent": {"other": result.stream("other").loss.sent},
        "gaps_ms": {"other": result.to_bench()["gaps_ms"]["other"]},
        "late_ticks": result.late_ticks,
    }
    return row | ({"phases_ms": phases} if phases else {})


def _await_gone(watch: Watch, made: Routers) -> None:
    gone, since = -1, time.monotonic()
    while gone < len(made.ports) and time.monotonic() - since < _STALLED_S:
        time.sleep(_LOOK_S)
        now = watch.count_gone(made.ports)
        if now != gone:
            gone, since = now, time.monotonic()


def _last(began: int, moments: Mapping[int, int], made: Routers) -> float | None:
    """None when something stayed."""
    return _ms(began, max(moments.values())) if len(moments) == len(made.ports) else None


def _silent(result: Result, began: int) -> float | None:
    """When the swept router answered for the last time; None when it never ceased."""
    gaps = result.to_bench()["gaps_ms"]["swept"]
    if not result.stream("swept").loss.unrestored:
        return None
    return round(gaps[-1][0] - (began - result.t0_monotonic_ns) / 1e6, 3)


def _ms(began: int, ended: int) -> float:
    return round((ended - began) / 1e6, 3)
