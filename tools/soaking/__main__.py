"""Faults of many kinds, drawn by chance, in a zone of five nodes under probes.

Each is followed by an audit of everything that is on the nodes, and a listener on every segment
counts who answers for the routers. Exit 1: a promise was broken, something was left behind, or
somebody had two owners; what is printed then replays it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from tools.soaking.kinds import Injection, kinds, sequence
from tools.soaking.report import details, document, line, table
from tools.soaking.rounds import Outcome, Stage, stage
from vrha.errors import VrhaError


def main() -> int:
    arguments = _arguments()
    if arguments.list:
        for kind in kinds().values():
            print(f"{kind.name}: {kind.promise}")
        return 0
    if os.geteuid() != 0:
        print("soak: needs root [not-root]", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        # A shell ignores the former in what it starts in the background.
        signal.signal(number, _interrupted)
    outcomes: list[Outcome] = []
    code = 0
    try:
        _soak(arguments, outcomes)
    except KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
        code = 130
    if arguments.json:
        made = document(arguments.seed, arguments.kinds, outcomes)
        arguments.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    if outcomes:
        print(table(outcomes))
    bad = sum(bool(out.violations) for out in outcomes)
    injections = sum(len(out.faults) for out in outcomes)
    print(f"{injections} faults in {len(outcomes)} rounds, {bad} rounds with violations")
    return code or int(bool(bad) or not outcomes)


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/soak", description=__doc__)
    add = parser.add_argument
    add(
        "--minutes", type=float, default=10.0, metavar="M", help="begin no round after so long (10)"
    )
    add("--seed", type=int, default=1, metavar="S", help="of the sequence (1)")
    add("--rounds", type=int, default=0, metavar="N", help="no more than N rounds")
    add("--first", type=int, default=1, metavar="K", help="leave out those before round K")
    add("--kinds", type=_names, default=[], metavar="A,B", help="only these; see --list")
    add("--json", type=Path, metavar="OUT", help="write raw values here")
    add("--list", action="store_true", help="the kinds with what is promised of each")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in kinds()]
    if unknown:
        raise argparse.ArgumentTypeError(f"no kind {', '.join(unknown)}; see --list")
    return names


def _soak(arguments: argparse.Namespace, outcomes: list[Outcome]) -> None:
    """Rounds until the time is over; after a violation in a fresh zone."""
    until = time.monotonic() + 60 * arguments.minutes
    last = arguments.first + arguments.rounds - 1
    ready: Stage | None = None
    with contextlib.ExitStack() as stack:
        for injection in sequence(arguments.seed, arguments.kinds):
            if injection.number < arguments.first:
                continue
            if time.monotonic() > until or (arguments.rounds and injection.number > last):
                break
            if ready is None:
                ready = stack.enter_context(stage(f"soak{os.getpid()}-{injection.number}", _tell))
            out = _play(ready, injection)
            outcomes.append(out)
            _print(arguments, out)
            if out.violations:
                stack.close()
                ready = None


def _play(ready: Stage, injection: Injection) -> Outcome:
    try:
        return ready.play(injection)
    except (VrhaError, OSError, AssertionError) as error:
        faults = [str(fault) for fault in injection.faults]
        broken = Outcome(injection.number, injection.kind, faults, injection.after_ms, 0.0)
        broken.violations.append(f"{type(error).__name__}: {error}")
        return broken


def _print(arguments: argparse.Namespace, out: Outcome) -> None:
    print(line(out), flush=True)
    if out.violations:
        chosen = f" --kinds {','.join(arguments.kinds)}" if arguments.kinds else ""
        again = f"--seed {arguments.seed} --first {out.number} --rounds 1{chosen}"
        print("\n".join(details(out)))
        print(f"    replay: ./tools/soak {again}", flush=True)


def _tell(text: str) -> None:
    print(f"soak: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
