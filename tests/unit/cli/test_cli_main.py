"""The command as a whole: help, errors, exit codes, interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService
from vrha import __version__, errors
from vrha.cli.main import COMMANDS

VRHA = (sys.executable, "-c", "from vrha.cli.main import main; main()")
LIMIT = 30


def test_version(vrha: Vrha) -> None:
    assert vrha("--version").out == f"vrha, version {__version__}\n"


def test_help_names_every_command(vrha: Vrha) -> None:
    out = vrha("--help").out
    assert all(f"\n  {name} " in out for name in COMMANDS)


def test_help_imports_no_heavy_library() -> None:
    """What makes a start slow is the imports: the time itself would measure the machine."""
    probe = (
        "import sys; from vrha.cli.main import run; run(['--help']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    heavy = ("pydantic", "httpx", "rich", "yaml", "fastapi", "kombu", "pyroute2", "sqlalchemy")
    assert [name for name in heavy if f"'{name}'" in result.stderr] == []
    assert "Usage: vrha" in result.stdout


@pytest.mark.parametrize(
    "noun", ["network", "router", "node", "run", "events", "apply", "diff", "doctor"]
)
def test_help_of_each_command(vrha: Vrha, noun: str) -> None:
    result = vrha(noun, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: vrha {noun}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nope",),
        ("network", "nope"),
        ("network", "show"),
        ("network", "list", "-o", "xml"),
        ("network", "restart", "a", "--cleanup", "--strategy", "hope"),
        ("network", "restart", "a", "--cleanup", "--timeout", "3x"),
        ("run", "list", "--limit", "0"),
    ],
)
def test_wrong_usage_is_explained_once(vrha: Vrha, arguments: tuple[str, ...]) -> None:
    result = vrha(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("error: ") == 1
    assert "[usage]" in result.err
    assert "--help` explains it." in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InputError("bad", "wrong", "do this"), 2),
        (errors.NotFoundError("gone", "wrong", "do this"), 2),
        (errors.RefusedError("no", "wrong", "do this"), 4),
        (errors.UnreachableError("store-gone", "wrong", "do this"), 5),
        (errors.DeadlineError("late", "wrong", "do this"), 3),
        (errors.PreconditionError("no-root", "wrong", "do this"), 1),
    ],
)
def test_errors_of_the_orchestrator_arrive_whole(
    vrha: Vrha, service: FakeService, error: errors.VrhaError, code: int
) -> None:
    service.error = error
    result = vrha("network", "list")
    assert (result.code, result.out) == (code, "")
    assert result.err == f"error: wrong [{error.code}]\ndo this\n"


def test_problems_of_a_spec_keep_their_lines(vrha: Vrha, service: FakeService) -> None:
    service.error = errors.SpecError(["zone.yaml:3: networks[0]: a", "zone.yaml:9: routers: b"])
    result = vrha("network", "list")
    assert result.code == 2
    assert result.err.splitlines()[:3] == [
        "error: 2 problems [spec-invalid]",
        "zone.yaml:3: networks[0]: a",
        "zone.yaml:9: routers: b",
    ]


def test_a_bug_shows_its_place_only_when_asked(vrha: Vrha, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("vrha.core.run.diagram", broken)
    result = vrha("run", "diagram")
    assert result.code == 1
    assert result.err.startswith("error: unexpected ZeroDivisionError: oops [internal]\n")
    assert "Traceback" in vrha("--debug", "run", "diagram").err


@pytest.mark.parametrize("kind", ["absent", "dead", "mute"])
def test_no_orchestrator(vrha: Vrha, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "api.sock"
    if kind == "dead":
        leave = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
        subprocess.run([sys.executable, "-c", leave, str(path)], check=True, timeout=LIMIT)
    elif kind == "mute":
        path.write_text("no socket")
    result = vrha("--socket", str(path), "network", "list")
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith(f"error: orchestrator at {path}: ")
    assert "[orchestrator-unreachable]\n" in result.err
    assert "systemctl start vrha-orchestrator" in result.err


def test_interruption_says_that_the_run_goes_on(service: FakeService, socket_path: Path) -> None:
    service.moves = False
    process = subprocess.Popen(
        [*VRHA, "network", "restart", "web-net", "--cleanup"],
        env={**os.environ, "VRHA_SOCKET": str(socket_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert "r1" in first
    assert process.returncode == 130
    assert out == ""
    assert "run r1 goes on; `vrha run watch r1` shows it" in err
    assert "Traceback" not in err


def test_a_reader_that_leaves_is_told_nothing(socket_path: Path) -> None:
    process = subprocess.Popen(
        [*VRHA, "network", "list", "--json"],
        env={**os.environ, "VRHA_SOCKET": str(socket_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=LIMIT)
    assert err == ""
