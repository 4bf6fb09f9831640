"""Settings files and environments for daemons."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import vrha
from vrha.errors import NotFoundError, UnreachableError
from vrha.lab.daemons import Daemon, Program, environment, toml


def test_settings_are_toml() -> None:
    tables = {"agent": {"node": "n1", "path": 'a"b\\c'}, "bus": {"urls": ["amqp://u:p@h:1//"]}}
    assert tomllib.loads(toml(tables)) == tables


def test_environment_finds_this_vrha_and_no_foreign_notify_socket(monkeypatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/other")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    env = environment({"X": "1"})
    assert "NOTIFY_SOCKET" not in env
    first, second = env["PYTHONPATH"].split(":")
    assert Path(first, "vrha", "__init__.py").samefile(vrha.__file__)
    assert second == "/elsewhere"
    assert env["X"] == "1"


def test_daemon_never_started(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "agent-n1")
    assert not daemon.alive
    with pytest.raises(NotFoundError):
        _ = daemon.pid
    with pytest.raises(UnreachableError) as caught:
        daemon.start(Program(("true",), "", {}))
    assert caught.value.code == "lab-gone"
