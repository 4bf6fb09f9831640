"""What `vrha watcher status` says of an agent that is gone, and of what it left."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vrha.cli.main import cli

SITUATION = {
    "agent": "dead",
    "missing_ms": 12500.0,
    "grace_ms": 30000.0,
    "lease_ms": 0.0,
    "lapsed_ms": 9000.0,
    "stand_in": False,
    "revoked": [],
}
CLEANUP = {
    "choice": "wait",
    "reason": "grace",
    "again_ms": 17500.0,
    "on": True,
    "pid": None,
    "last": None,
}
WATCHER: Mapping[str, Any] = {
    "node": "n1",
    "incarnation": "5",
    "profile": "default",
    "lease_ms": None,
    "live_ms": 0,
    "seq": 5,
    "acknowledged": {"n2": 0},
    "electorate": 1,
    "leader_epoch": 3,
    "routers": {},
    "ports": [],
    "situation": SITUATION,
    "cleanup": CLEANUP,
}


@contextmanager
def saying(path: Path, what: Mapping[str, Any]) -> Iterator[None]:
    """A watcher that says this to one who asks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(os.fspath(path))
        server.listen()

        def answer() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as connection:
                connection.sendall(json.dumps(what).encode())

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def lines(path: Path, what: Mapping[str, Any]) -> list[str]:
    with saying(path / "w.sock", what):
        found = CliRunner().invoke(cli, ["watcher", "status", "--at", str(path / "w.sock")])
    assert found.exit_code == 0, found.output
    return found.output.splitlines()


@pytest.mark.parametrize(
    ("cleanup", "said"),
    [
        ({}, "cleanup: the agent, or the lease, may come back, 17.5 s more"),
        (
            {"reason": "agent-hung", "again_ms": 0, "on": False},
            "cleanup: the agent is stuck: it must go on, or end (switched off: nothing is ever"
            " swept)",
        ),
        ({"pid": 77}, "sweep: runs, pid 77"),
        ({"last": {"ms_ago": 61000, "code": 0}}, "last sweep: 61 s ago, nothing is left"),
        ({"last": {"ms_ago": 9000, "code": 4}}, "last sweep: 9 s ago, something is left (code 4)"),
    ],
)
def test_what_it_waits_for_and_what_it_did(
    cleanup: Mapping[str, Any], said: str, tmp_path: Path
) -> None:
    found = lines(tmp_path, {**WATCHER, "cleanup": {**CLEANUP, **cleanup}})
    assert "agent: none for 12.5 s" in found
    assert said in found


def test_of_a_living_agent_nothing_is_said(tmp_path: Path) -> None:
    alive = {**SITUATION, "agent": "alive", "missing_ms": 0.0}
    kept = {**CLEANUP, "choice": "keep", "reason": "agent-lives", "again_ms": 0.0}
    found = lines(tmp_path, {**WATCHER, "situation": alive, "cleanup": kept})
    assert not [line for line in found if line.startswith(("agent", "cleanup", "sweep", "last"))]


def test_a_watcher_alone(tmp_path: Path) -> None:
    agents = {
        "a.service": {"pid": 7, "missing_ms": None, "stopped": False, "deaths": 0},
        "b.service": {"pid": 8, "missing_ms": 2000.0, "stopped": False, "deaths": 1},
        "c.service": {"pid": 9, "missing_ms": 3000.0, "stopped": True, "deaths": 0},
    }
    found = lines(
        tmp_path,
        {"profile": "neutron", "agents": agents, "situation": SITUATION, "cleanup": CLEANUP},
    )
    assert found == [
        "profile neutron: no lease, no voters",
        "agent a.service: pid 7; it ended 0 times",
        "agent b.service: gone for 2.0 s; it ended 1 times",
        "agent c.service: stopped for 3.0 s; it ended 0 times",
        "cleanup: the agent, or the lease, may come back, 17.5 s more",
    ]
