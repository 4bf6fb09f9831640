"""`vrha cleanup` and `vrha-cleanup`: what they say and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vrha.cli.main import run
from vrha.core.cleanup.decide import Choice, Decision, Reason
from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.core.cleanup.plan import Plan, Share
from vrha.errors import RefusedError
from vrha.linux.sweep.engine import Report
from vrha.watcher import cleanup as program
from vrha.watcher.sweeping import Done, Seen

PORT = Item(Kind.PORT, "vrh1-n0", "edge-1", "alias vrha:edge:1:1:n0")
NAME = Item(Kind.NAMESPACE, "vrha-edge-1", "edge-1", "its name", {"state": "1 hidden below it"})
WAITS = Share("gate-2", Decision(Choice.WAIT, Reason.LEASE_LIVE, 1500), ())
GOES = Share("edge-1", Decision(Choice.SWEEP, Reason.ORPHANED), (PORT, NAME))
PLAN = Plan("vrha", (GOES, WAITS))


def done(*results: Result, problems: tuple[str, ...] = (), plan: Plan = PLAN) -> Done:
    outcomes = tuple(Outcome(PORT, r, "because" if r is Result.LEAKED else "") for r in results)
    owners = {"edge-1": results[0]} if results else {}
    return Done(plan, Report(outcomes, owners, problems, (("mute", 1.0),)))


@pytest.mark.parametrize(
    ("finished", "code"),
    [
        (done(Result.REMOVED), 0),
        (done(Result.GONE), 0),
        (done(Result.LEAKED), 1),
        (done(Result.FAILED), 1),
        (done(Result.REMOVED, problems=("the journal is incomplete",)), 1),
        (done(plan=Plan("vrha", ())), 0),
        (done(plan=Plan("vrha", (WAITS,))), 4),
        (done(problems=("x",), plan=Plan("vrha", (WAITS,))), 1),
    ],
)
def test_exit_codes(
    finished: Done,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("vrha.cli.cleanup.run", lambda what, progress: finished)
    monkeypatch.setattr(program, "run", lambda what: finished)
    assert run(["cleanup", "run", "--json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == code
    assert program.main(["--json"]) == code
    assert json.loads(capsys.readouterr().out) == told


def test_a_plan_says_what_and_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Seen(PLAN, ("ports cannot be looked at: closed",), frozenset(["edge-1"]))
    monkeypatch.setattr("vrha.cli.cleanup.look", lambda what: seen)
    monkeypatch.setattr(program, "look", lambda what: seen)
    assert run(["cleanup", "plan"]) == 1
    text = capsys.readouterr().out
    assert text.splitlines() == [
        "edge-1: sweep (orphaned)",
        "  port       vrh1-n0  [alias vrha:edge:1:1:n0]",
        "  namespace  vrha-edge-1  [its name, 1 hidden below it]",
        "gate-2: wait (lease-live, again in 1.5 s)",
        "a sweep of edge-1 was begun and not ended",
        "problem: ports cannot be looked at: closed",
    ]
    assert run(["cleanup", "run", "--dry-run"]) == 1
    assert capsys.readouterr().out == text
    assert program.main(["--dry-run"]) == 1
    assert capsys.readouterr().out == text


def test_a_report_says_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "run", lambda what: done(Result.LEAKED))
    assert program.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "leaked: port vrh1-n0 of edge-1: because",
        "kept: gate-2: lease-live",
    ]


def test_options_reach_the_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def refuse(what: object) -> Done:
        asked.append(what)
        raise RefusedError("agent-lives", "the agent lives", "Stop it.")

    monkeypatch.setattr(program, "run", refuse)
    code = program.main(["--only", "a", "--only", "b", "--force", "--state-dir", "/x"])
    assert (code, "agent-lives" in capsys.readouterr().err) == (4, True)
    (what,) = asked
    assert (what.only, what.force, what.state_dir) == ({"a", "b"}, True, Path("/x"))
    assert program.main(["--profile", "nobody"]) == 2
    assert "no-profile" in capsys.readouterr().err


def test_the_program_needs_no_library() -> None:
    text = (
        "import sys, vrha.watcher.cleanup; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert "vrha" in loaded
    heavy = {"click", "pydantic", "pyroute2", "rich", "jinja2", "ssl", "asyncio", "subprocess"}
    assert sorted(heavy & set(loaded)) == ["subprocess"]
