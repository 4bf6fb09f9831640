"""`vrha-cleanup`: one sweep, for init and the watcher; without any library of others."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vrha.errors import VrhaError
from vrha.watcher.sweeping import look, plan_told, report_told, run, wanted


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `vrha-cleanup`. Exit code as of `vrha`; 4 also when nothing may go yet."""
    # A short life: what it allocates it needs to its end.
    gc.disable()
    given = _parser().parse_args(arguments)
    try:
        what = wanted(given.profile, given.state_dir, given.only, given.force, given.watcher)
        if given.dry_run:
            told = plan_told(look(what))
            shown, code = plan_lines(told), 1 if told["problems"] else 0
        else:
            told = report_told(run(what))
            shown, code = report_lines(told), told["exit_code"]
    except VrhaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    text = json.dumps(told, indent=2) if given.json else "\n".join(shown)
    sys.stdout.write(f"{text}\n")
    return int(code)


def plan_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """A plan (`plan_told`) for people."""
    for share in told["owners"]:
        wait = f", again in {share['again_ms'] / 1000:.1f} s" if share["again_ms"] else ""
        yield f"{share['owner'] or '(agent)'}: {share['choice']} ({share['reason']}{wait})"
        for item in share["items"]:
            state = f", {item['state']}" if "state" in item else ""
            yield f"  {item['kind']:<10} {item['name']}  [{item['why']}{state}]"
    if not told["owners"]:
        yield f"nothing of profile {told['profile']} is left here"
    for owner in told["unfinished"]:
        yield f"a sweep of {owner or 'the agent'} was begun and not ended"
    yield from _problems(told)


def report_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """A report (`report_told`) for people: what went wrong in full, the rest in numbers."""
    for outcome in told["outcomes"]:
        if outcome["result"] in ("leaked", "failed"):
            what = f"{outcome['kind']} {outcome['name']} of {outcome['owner'] or 'the agent'}"
            yield f"{outcome['result']}: {what}: {outcome.get('reason', '')}"
    for owner, reason in told["kept"].items():
        yield f"kept: {owner or 'the agent'}: {reason}"
    counts = Counter(o["kind"] for o in told["outcomes"] if o["result"] == "removed")
    if counts:
        parts = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        ms = sum(told["ms"].values())
        yield f"swept {len(told['owners'])} owners in {ms:.0f} ms: {parts}"
    elif not told["outcomes"] and not told["kept"]:
        yield f"nothing of profile {told['profile']} is left here"
    yield from _problems(told)


def _problems(told: Mapping[str, Any]) -> Iterator[str]:
    return (f"problem: {problem}" for problem in told["problems"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vrha-cleanup", description="Remove what a dead agent left on this node, and exit."
    )
    parser.add_argument("--profile", default="vrha", help="what to look for (vrha)")
    parser.add_argument("--state-dir", type=Path, help="the agent's folder (of the profile)")
    parser.add_argument("--watcher", type=Path, metavar="SOCKET", help="where the watcher is asked")
    parser.add_argument("--only", action="append", default=[], metavar="ROUTER", help="repeatable")
    parser.add_argument(
        "--force", action="store_true", help="also what still serves ungoverned, or was stopped"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would go; change nothing")
    parser.add_argument("--json", action="store_true", help="data for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
