"""The kernel's dead-man switch: how exactly it mutes, that nothing revives it, and what it costs.

`stopped`: the process that renews the lease every third of a slice is stopped by SIGSTOP at any
moment, while frames pass every 0.5 ms. When did the last one pass, counted from the end of the last
renewal? Then it goes on, and renews at once and three times more: nothing may pass again.

`paused`: it stops itself between its look at the clock and the renewal, until the slice is over;
`unconditional` is the same with a batch that does not ask whether the lease still lasts.

`renewing`: frames both ways while the lease is renewed without a pause; what is lost, and what a
renewal costs. `every third` are the costs in the first row, at the pace of a watcher.

`mute`: the ports of 1, 54 and 200 routers (2 or 3 each) leave set `active` or set `granted`, are
granted again, and are taken down by `ip -batch`; `whole node` ends the lease and all grants.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
from pathlib import Path
from typing import Any

from tools.benchmarks import deadmancosts, deadmantrials, options, report
from tools.benchmarks.ownnode import own_node
from vrha.linux.deadman import DeadMan

STOPPED, PAUSED, UNCONDITIONAL, STORM = "stopped", "paused", "unconditional", "renewing"
EVERY_THIRD = "every third of a slice"
_STORM_INTERVAL_US = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=options.count, default=100, help="stops of each kind")
    parser.add_argument("--packets", type=options.count, default=60_000, help="each way")
    parser.add_argument("--slice-ms", type=options.count, default=100)
    parser.add_argument("--mutes", type=options.count, default=20, help="of each number of routers")
    parser.add_argument("--seed", type=options.amount, default=1)


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises PreconditionError when the node cannot be made, StepError when a process dies."""
    rows: dict[str, list[dict[str, Any]]] = {STOPPED: [], PAUSED: [], UNCONDITIONAL: []}
    with (
        own_node((deadmantrials.BRIDGE,)) as folder,
        deadmantrials.zone(folder, arguments.slice_ms) as zone,
    ):
        lapsed = _stops(zone, arguments, rows)
        rows[STORM] = [_storm(zone, arguments.packets)]
        rows |= _mutes(zone, folder, arguments.mutes)
    params = {
        "slice_ms": arguments.slice_ms,
        "probe_us": deadmantrials.PROBE_US,
        "storm_interval_us": _STORM_INTERVAL_US,
        "seed": arguments.seed,
        "lapsed_by_itself": lapsed,
    }
    return report.result("dead-man", params, [{"row": n, "runs": r} for n, r in rows.items()])


def _stops(
    zone: deadmantrials.Zone, arguments: argparse.Namespace, rows: dict[str, list[dict[str, Any]]]
) -> int:
    """Fill the first three rows, in turn; how often the renewer itself was too slow."""
    dice = random.Random(arguments.seed)
    lapsed = 0
    with (
        contextlib.closing(zone.renewer()) as renewer,
        contextlib.closing(zone.prober("client")),
    ):
        while len(rows[STOPPED]) < arguments.runs:
            found = deadmantrials.stopped(zone, renewer, dice)
            if found is None:
                lapsed += 1
                continue
            rows[STOPPED].append(found)
            for how in (PAUSED, UNCONDITIONAL):
                rows[how].append(deadmantrials.paused(zone, renewer, how, dice))
            if len(rows[STOPPED]) % 10 == 0:
                latest = max(run["after_end_ms"] for run in rows[STOPPED])
                report.progress(f"{len(rows[STOPPED])} stops: last frame {latest:.1f} ms after")
    return lapsed


def _storm(zone: deadmantrials.Zone, packets: int) -> dict[str, Any]:
    with contextlib.closing(zone.renewer()) as renewer:
        found = deadmantrials.storm(zone, renewer, packets, _STORM_INTERVAL_US)
    report.progress(f"{found['count']} renewals without a pause: lost {found['lost']}")
    return found


def _mutes(zone: deadmantrials.Zone, folder: Path, times: int) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    with deadmancosts.many(folder), contextlib.closing(DeadMan()) as dead_man:
        for number in range(times):
            for routers in deadmancosts.ROUTERS:
                taken = deadmancosts.run(folder, zone.switch, dead_man, routers)
                for name, one in taken.items():
                    rows.setdefault(f"mute: {name}", []).append(one)
            report.progress(f"muted {number + 1} of {times} times")
    return rows


def table(result: report.Result) -> str:
    """What was forwarded after the end, what was revived, and what things cost."""
    rows = {row["row"]: row["runs"] for row in result["rows"]}
    return "\n\n".join((_ends(rows), _late(rows), _renewals(rows), _costs(rows)))


def _ends(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for field in ("after_end_ms", "after_begin_ms", "before_ms", "resolution_ms"):
        values = sorted(run[field] for run in rows[STOPPED])
        ranks = (0, len(values) // 20, len(values) // 2, len(values) * 19 // 20, -1)
        lines.append([field, *(f"{values[rank]:.2f}" for rank in ranks)])
    head = [f"last frame, {len(rows[STOPPED])} stops", "least", "5 %", "median", "95 %", "latest"]
    return report.columns(head, lines)


def _late(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for name in (STOPPED, PAUSED, UNCONDITIONAL):
        runs = rows[name]
        revived = [run for run in runs if run["accepted_late"] or run["forwarded_late"]]
        frames = sum(run["forwarded_late"] for run in runs)
        lines.append([name, str(len(runs)), f"{len(revived)} of {len(runs)}", str(frames)])
    return report.columns(["renewed too late", "runs", "revived", "frames passed"], lines)


def _renewals(rows: dict[str, list[dict[str, Any]]]) -> str:
    (storm,) = rows[STORM]
    paced = [us for run in rows[STOPPED] for us in run["costs_us"]]
    lost_paced = sum(run["lost_before"] for run in rows[STOPPED])
    lines = [
        [EVERY_THIRD, str(len(paced)), *_quantiles(paced), str(lost_paced)],
        [
            "without a pause",
            str(storm["count"]),
            *_quantiles(storm["costs_us"]),
            f"{sum(storm['lost'].values())} of {sum(storm['sent'].values())}",
        ],
    ]
    return report.columns(
        ["renewal", "count", "us median", "p99", "worst", "CPU us median", "p99", "worst", "lost"],
        lines,
    )


def _quantiles(costs: list[tuple[float, float]]) -> list[str]:
    """Median, 99th percentile and worst, of the clock and of CPU."""
    cells = []
    for values in zip(*costs, strict=True):
        ranked = sorted(values)
        cells += [statistics.median(ranked), ranked[len(ranked) * 99 // 100], ranked[-1]]
    return [f"{value:.0f}" for value in cells]


def _costs(rows: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        [
            name,
            str(runs[0]["count"]),
            report.spread((run["ms"] for run in runs), 2),
            f"{statistics.median(run['ratio'] for run in runs):.4f}",
        ]
        for name, runs in rows.items()
        if name.startswith("mute: ")
    ]
    return report.columns(["way, routers", "ports", "ms median / worst", "to ip -batch"], lines)
