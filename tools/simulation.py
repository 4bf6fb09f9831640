"""`./tools/sim`: the protocol of ownership under simulated faults, many seeds at a time."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.sim.many import BY_NAME, Hunt, Job, hunt_all, run_all
from tests.sim.run import LENGTH_MS, Outcome, run_seed
from tests.sim.scripts import SCRIPTS, at_random

EVERY_S = 5.0
SHOWN = 3
"""Bad seeds that are told in full."""


def main() -> int:
    arguments = _arguments()
    try:
        if arguments.seed is not None:
            return _one(arguments)
        if arguments.mutants:
            return _mutants(arguments)
        return _many(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/sim", description=__doc__)
    add = parser.add_argument
    add("--seeds", type=_positive, default=1000, metavar="N", help="how many seeds (1000)")
    add("--jobs", type=_positive, default=os.cpu_count() or 1, metavar="J", help="processes")
    add("--first", type=int, default=0, metavar="K", help="the first seed (0)")
    add("--script", choices=list(SCRIPTS), default=at_random.__name__, help="of the faults")
    add("--mutants", action="store_true", help="how many seeds each broken protocol takes")
    add("--mutant", choices=list(BY_NAME), default="", help="run this broken protocol")
    add("--seed", type=int, metavar="S", help="only this seed")
    add("--trace", action="store_true", help="with --seed: a line for all that happens")
    add("--json", type=Path, metavar="OUT", help="write the figures here")
    arguments = parser.parse_args()
    if arguments.trace and arguments.seed is None:
        parser.error("--trace needs --seed")
    return arguments


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _one(arguments: argparse.Namespace) -> int:
    job = Job(arguments.seed, arguments.script, arguments.mutant)
    trace = print if arguments.trace else None
    outcome = run_seed(job.seed, job.parts, SCRIPTS[job.script], trace=trace)
    print(_line(outcome))
    return int(outcome.bad)


def _many(arguments: argparse.Namespace) -> int:
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    jobs = [Job(seed, arguments.script, arguments.mutant) for seed in seeds]
    began = told = time.monotonic()
    done = events = faults = epochs = 0
    bad: list[Job] = []
    for job, outcome in run_all(jobs, arguments.jobs):
        done += 1
        events += outcome.events
        faults += outcome.faults
        epochs += outcome.epochs
        if outcome.bad:
            bad.append(job)
            _tell_bad(job, outcome, in_full=len(bad) <= SHOWN)
        if time.monotonic() - told > EVERY_S:
            told = time.monotonic()
            print(f"{done} of {len(jobs)} seeds, {len(bad)} bad", file=sys.stderr)
    took = time.monotonic() - began
    figures: dict[str, Any] = {
        "script": arguments.script,
        "first": arguments.first,
        "seeds": done,
        "jobs": arguments.jobs,
        "bad_seeds": sorted(job.seed for job in bad),
        "seconds": round(took, 1),
        "seeds_per_second": round(done / took, 1),
        "simulated_to_real": round(done * LENGTH_MS / 1000 / took),
        "simulated_hours": round(done * LENGTH_MS / 3.6e6, 1),
        "events": events,
        "faults": faults,
        "epochs": epochs,
    }
    print(
        f"{done} seeds of {LENGTH_MS / 1000:.0f} s, {len(bad)} bad; {took:.0f} s with"
        f" {arguments.jobs} processes: {figures['seeds_per_second']} seeds/s,"
        f" {figures['simulated_to_real']} times real time;"
        f" {faults} faults, {epochs} epochs handed out, {events} events"
    )
    _write(arguments, figures)
    return int(bool(bad))


def _mutants(arguments: argparse.Namespace) -> int:
    hunts: dict[str, Hunt] = {}
    for hunt in hunt_all(BY_NAME, arguments.jobs):
        hunts[hunt.mutant] = hunt
        print(f"{hunt.mutant}: {hunt.seeds or 'lives'}", file=sys.stderr)
    rows = [
        {
            "rule": mutant.rule,
            "mutant": name,
            "script": mutant.script.__name__,
            "harm": mutant.harm,
            "seeds": hunts[name].seeds,
        }
        for name, mutant in BY_NAME.items()
    ]
    print("| rule | mutant without it | faults | harm | seeds |\n|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(str(each) for each in row.values()) + " |")
    living = [row["mutant"] for row in rows if not row["seeds"]]
    print(f"{len(rows) - len(living)} of {len(rows)} mutants caught", file=sys.stderr)
    _write(arguments, {"mutants": rows})
    return int(bool(living))


def _tell_bad(job: Job, outcome: Outcome, in_full: bool) -> None:
    print(_line(outcome))
    if in_full:
        for line in _faults(job):
            print("  " + line)
    print(f"  replay: {job.command}", flush=True)


def _faults(job: Job) -> Iterator[str]:
    lines: list[str] = []
    run_seed(job.seed, job.parts, SCRIPTS[job.script], trace=lines.append)
    yield from (line for line in lines if " nemesis " in line)


def _line(outcome: Outcome) -> str:
    what = [str(each) for each in outcome.violations]
    what += [f"{router} has not one owner after the calm" for router in outcome.unowned]
    return f"seed {outcome.seed}: " + ("; ".join(what) or f"good, {outcome.events} events")


def _write(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
