"""The watcher's view of real processes that beat, end, and stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vrha.errors import InputError
from vrha.linux import processes
from vrha.linux.beats import Mouth, started
from vrha.model.ownership import Health
from vrha.watcher.agents import Agents
from vrha.watcher.settings import AgentTable, settings_of

BEATER = """
import os, sys, time
from vrha.linux.beats import Mouth, started
mouth = Mouth()
while True:
    mouth.say(sys.argv[1], f"{sys.argv[2]} {started(os.getpid())}".encode())
    time.sleep(0.02)
"""
WELL, DEAD, HUNG = Health(0), Health.AGENT_DEAD, Health.AGENT_HUNG
STAND_IN = Health.STAND_IN


class Node:
    """A watcher's view on a clock of its own, and the processes that beat for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = f"vrha-test-{uuid.uuid4().hex}"
        self.now = 1000.0
        command = (sys.executable, "-c", BEATER, self.name, "stand-in")
        self.settings = AgentTable(2.0, command)
        self.held = contextlib.ExitStack()
        self.agents = self.made()

    def made(self) -> Agents:
        return Agents(self.settings, self.folder / "watcher.agent", self.now, self.name)

    def spawn(self, role: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", BEATER, self.name, role])
        self.held.callback(child.wait)
        self.held.callback(child.kill)
        return child

    def look(self, later_ms: float = 0.0) -> Health:
        self.now += later_ms
        self.agents.look(self.now)
        return self.agents.health(self.now)

    def pass_ms(self, ms: float) -> Health:
        """In steps that are too short to count as an absence of the watcher."""
        for _ in range(int(ms / 500)):
            self.look(500)
        return self.look()

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.look()
            time.sleep(0.005)

    def until_health(self, wanted: Health) -> None:
        self.until(lambda: self.look() == wanted)

    def pid(self, role: str) -> int:
        return int(self.agents.tell(self.now)[role]["pid"])


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    with made.held:
        yield made
        made.agents.close()
    # What the watcher has started is nobody's child that waits for it.
    for pid in processes.with_argument(made.name):
        os.kill(pid, signal.SIGKILL)


def test_none_was_ever_seen(node: Node) -> None:
    assert node.pass_ms(60_000) == Health.AGENT_UNKNOWN


def test_dead_is_seen_at_once(node: Node) -> None:
    child = node.spawn("agent")
    node.until_health(WELL)
    child.kill()
    node.until_health(DEAD)
    node.spawn("agent")
    node.until_health(WELL)


def test_a_stopped_one_hangs_until_it_goes_on(node: Node) -> None:
    child = node.spawn("agent")
    node.until_health(WELL)
    child.send_signal(signal.SIGSTOP)
    node.until(lambda: stopped(child.pid))
    assert node.pass_ms(1500) == WELL
    assert node.pass_ms(1500) == HUNG
    child.send_signal(signal.SIGCONT)
    node.until_health(WELL)


def test_the_watchers_own_absence_is_nobodys_silence(node: Node) -> None:
    child = node.spawn("agent")
    node.until_health(WELL)
    child.send_signal(signal.SIGSTOP)
    node.until(lambda: stopped(child.pid))
    node.look()
    assert node.look(60_000) == WELL
    assert node.pass_ms(3000) == HUNG
    child.send_signal(signal.SIGCONT)


def test_the_next_watcher_knows_of_an_end_it_did_not_see(node: Node) -> None:
    child = node.spawn("agent")
    node.until_health(WELL)
    node.agents.close()
    node.agents = node.made()
    assert node.look() == WELL
    child.kill()
    child.wait()
    node.agents.close()
    node.agents = node.made()
    assert node.look() == DEAD


def test_nobody_can_beat_for_another(node: Node) -> None:
    """The kernel says whose beat it is; the rest must fit."""
    mouth = Mouth()
    for said in (
        b"agent 1",
        b"agent",
        b"\xff",
        b"king 5",
        f"agent {started(os.getpid())}x".encode(),
    ):
        assert mouth.say(node.name, said)
    assert node.look() == Health.AGENT_UNKNOWN
    mouth.close()


def test_a_stand_in_takes_the_place_of_a_dead_agent_only(node: Node) -> None:
    child = node.spawn("agent")
    node.until_health(WELL)
    node.agents.relieve(5.0, node.now)
    assert node.look() == WELL
    child.kill()
    node.until_health(DEAD | STAND_IN)
    first = node.pid("stand-in")
    assert os.getsid(first) == first
    assert os.sched_getscheduler(first) == os.SCHED_OTHER
    node.agents.relieve(5.0, node.now)
    assert node.pass_ms(4000) in (DEAD | STAND_IN, DEAD)
    assert node.pid("stand-in") == first, "at most one"
    os.kill(first, signal.SIGKILL)
    node.until_health(DEAD)
    node.agents.relieve(60.0, node.now)
    node.pass_ms(6000)
    node.until(lambda: node.look() == DEAD | STAND_IN and node.pid("stand-in") != first)
    os.kill(node.pid("stand-in"), signal.SIGKILL)
    node.until_health(DEAD)


def test_a_stuck_agent_is_killed_first_and_only_when_asked(node: Node) -> None:
    child = node.spawn("agent")
    node.until_health(WELL)
    child.send_signal(signal.SIGSTOP)
    node.until(lambda: stopped(child.pid))
    assert node.pass_ms(5000) == HUNG
    assert child.poll() is None
    node.agents.relieve(60.0, node.now)
    node.until_health(DEAD | STAND_IN)
    assert child.wait() == -signal.SIGKILL
    os.kill(node.pid("stand-in"), signal.SIGKILL)
    node.until_health(DEAD)


def test_a_command_that_does_not_exist_harms_nobody(node: Node) -> None:
    node.settings = AgentTable(2.0, ("/nonexistent/stand-in",))
    node.agents.close()
    node.agents = node.made()
    child = node.spawn("agent")
    node.until_health(WELL)
    child.kill()
    node.agents.relieve(60.0, node.now)
    node.until_health(DEAD)
    assert node.pass_ms(7000) == DEAD


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"hung_after_s": 0}, "agent.hung_after_s"),
        ({"hung_after_s": True}, "agent.hung_after_s"),
        ({"stand_in": "vrha"}, "agent.stand_in"),
        ({"stand_in": [5]}, "agent.stand_in"),
        ({"color": 5}, "agent.color: unknown key"),
        (5, "agent: must be a table"),
    ],
)
def test_bad_settings(table: object, said: str) -> None:
    good = {"node": "n1", "listen": "10.0.0.1:7450", "voters": ["n1"], "leaders": []}
    assert settings_of({**good, "agent": {"stand_in": ["x"]}}, "x").agent.stand_in == ("x",)
    with pytest.raises(InputError, match=said):
        settings_of({**good, "agent": table}, "x")


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
