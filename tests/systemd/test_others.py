"""Real units that need no node: the orchestrator, and a watcher beside the agent of another."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.box import Box, boxed, until
from vrha.watcher.status import ask

pytestmark = pytest.mark.root
ORCHESTRATOR = "vrha-orchestrator.service"
OTHER, BESIDE = "other-agent.service", "beside.service"
SOCKET = "/run/vrha/watcher-neutron.sock"
_OTHER = """\
[Service]
ExecStart=/bin/sleep 1000
"""
_BESIDE = f"""\
[Unit]
# Otherwise systemd forgets what has ended in order (CollectMode=).
Wants={OTHER}
[Service]
Type=notify
ExecStart=vrha-watcher --profile neutron --agent-unit {OTHER} --grace 0.5 --pause 0.5 \
    --sweep-command "sh -c 'echo x >>/run/swept'"
"""
_QUICK_WATCHDOG = """\
[Service]
WatchdogSec=5s
"""
ROUTER = "1f0c7a52-0b1d-4c2e-9a3f-5b6c7d8e9f01"


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    with boxed() as made:
        made.add_unit(OTHER, _OTHER)
        made.add_unit(BESIDE, _BESIDE)
        # Nobody listens there.
        (made.etc / "orchestrator.toml").write_text('[bus]\nurls = ["amqp://a:b@127.0.0.1:9/none"]')
        made.boot()
        yield made


def orchestrator(box: Box) -> dict[str, Any]:
    """What it says through its API socket."""
    return dict(json.loads(box.run("vrha", "status", "--json")))


def test_the_orchestrator_serves_without_a_broker_and_through_a_restart(box: Box) -> None:
    box.systemctl("start", ORCHESTRATOR)
    first = orchestrator(box)
    lives = "WatchdogTimestampMonotonic"
    seen = int(box.show(ORCHESTRATOR, lives))
    until(lambda: int(box.show(ORCHESTRATOR, lives)) > seen, "it shows that it gets on")
    box.systemctl("restart", ORCHESTRATOR)
    assert orchestrator(box)["leader_epoch"] > first["leader_epoch"]
    assert box.show(ORCHESTRATOR, "NRestarts") == "0"
    box.systemctl("stop", ORCHESTRATOR)
    assert box.show(ORCHESTRATOR, "Result") == "success"
    assert box.pids(ORCHESTRATOR) == []


@pytest.mark.long
def test_an_orchestrator_that_hangs_is_ended_and_started_again(box: Box) -> None:
    drop_in = "/run/systemd/system/vrha-orchestrator.service.d"
    box.run("mkdir", "-p", drop_in)
    box.run("sh", "-c", f'echo "{_QUICK_WATCHDOG}" >{drop_in}/quick.conf')
    box.systemctl("daemon-reload")
    box.systemctl("restart", ORCHESTRATOR)
    os.kill(box.main_pid(ORCHESTRATOR), signal.SIGSTOP)
    until(lambda: "Failed with result 'watchdog'" in box.journal(ORCHESTRATOR), "it is ended")
    until(lambda: box.show(ORCHESTRATOR, "ActiveState") == "active", "it serves again", 90)
    box.systemctl("stop", ORCHESTRATOR)


@pytest.mark.long
def test_a_private_broker_runs_in_the_unit_and_ends_with_it(box: Box) -> None:
    (box.etc / "orchestrator.toml").write_text("")
    box.systemctl("restart", ORCHESTRATOR)
    assert len(box.pids(ORCHESTRATOR)) > 1
    until(lambda: orchestrator(box)["broker"], "it is connected")
    box.systemctl("stop", ORCHESTRATOR)
    assert box.show(ORCHESTRATOR, "Result") == "success"
    assert box.pids(ORCHESTRATOR) == []


def test_a_stop_of_the_agent_beside_is_no_death(box: Box) -> None:
    box.run("ip", "netns", "add", f"qrouter-{ROUTER}")

    def told() -> dict[str, Any]:
        found = ask(Path(f"/proc/{box.pid}/root{SOCKET}"))
        return {**found["cleanup"], **found["agents"][OTHER]}

    def sweeps() -> int:
        return box.run("cat", "/run/swept", ok=False).count("x")

    box.systemctl("start", OTHER, BESIDE)
    until(lambda: told()["missing_ms"] is None, "it is seen")
    box.systemctl("stop", OTHER)
    until(lambda: (told()["missing_ms"] or 0) > 1500, "three times the grace")
    assert "stopped on purpose" in box.run("vrha", "watcher", "status", "--at", SOCKET)
    stopped = told()
    assert (stopped["choice"], stopped["reason"]) == ("keep", "stopped-by-hand")
    assert stopped["stopped"]
    plan = box.run("vrha-cleanup", "--profile", "neutron", "--dry-run")
    assert f"{ROUTER}: keep (stopped-by-hand)" in plan
    forced = box.run("vrha-cleanup", "--profile", "neutron", "--dry-run", "--force")
    assert f"{ROUTER}: sweep (orphaned)" in forced
    assert sweeps() == 0
    box.systemctl("start", OTHER)
    until(lambda: told()["missing_ms"] is None, "it is started again")
    # As far as systemd is concerned it has ended in order, but nobody has told it to end it.
    box.systemctl("kill", "--signal=TERM", OTHER)
    until(lambda: sweeps() == 1, "a death is swept after")
    assert box.show(OTHER, "Result") == "success"
    assert told()["reason"] == "orphaned"
    # A second stop, of what is not there, makes no difference to a death.
    box.systemctl("stop", OTHER)
    assert told()["reason"] == "orphaned"
