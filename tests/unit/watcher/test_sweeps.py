"""A watcher's sweeps with real programs, and what is told of the node."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vrha.core.cleanup.decide import Agent, Situation
from vrha.errors import InputError
from vrha.model.ownership import Health
from vrha.watcher import situation
from vrha.watcher.settings import CleanupTable, settings_of
from vrha.watcher.sweeps import LIMIT_MS, Sweeps

GOOD = {"node": "n1", "listen": "10.0.0.1:7450", "voters": ["n1"], "leaders": []}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ended(sweeps: Sweeps, now: float) -> int:
    """The code of the last one, once it has ended."""

    def is_told() -> bool:
        sweeps.look(None, now)
        return sweeps.tell(now)["last"] is not None and sweeps.tell(now)["pid"] is None

    until(is_told)
    return int(sweeps.tell(now)["last"]["code"])


def test_one_sweep_for_one_case(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sweeps = Sweeps(("sh", "-c", f"echo x >> {log}"), 1.0)
    sweeps.look("a", 0.0)
    assert ended(sweeps, 0.0) == 0
    sweeps.look("a", 1e6)
    sweeps.look("b", 1e6)
    until(lambda: log.read_text().count("x") == 2)
    sweeps.close()


def test_what_is_left_is_told_and_tried_again(tmp_path: Path) -> None:
    sweeps = Sweeps(("sh", "-c", f"mkdir {tmp_path}/ready || exit 0; exit 3"), 1.0)
    sweeps.look("a", 0.0)
    assert ended(sweeps, 0.0) == 3
    sweeps.look("a", 500.0)
    assert sweeps.tell(500.0) == {"on": True, "pid": None, "last": {"ms_ago": 500.0, "code": 3}}
    sweeps.look("a", 1500.0)
    assert sweeps.tell(1500.0)["pid"]
    until(lambda: ended(sweeps, 1500.0) == 0)
    sweeps.close()


def test_one_that_hangs_is_killed_with_all_that_it_started() -> None:
    sweeps = Sweeps(("sh", "-c", "sleep 1000; true"), 1.0)
    sweeps.look("a", 0.0)
    group = sweeps.tell(0.0)["pid"]
    sweeps.look("a", LIMIT_MS)
    assert ended(sweeps, LIMIT_MS) == -signal.SIGKILL
    until(lambda: not is_there(group))
    sweeps.close()


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_program_that_does_not_exist_counts_as_a_sweep_that_failed() -> None:
    sweeps = Sweeps(("/nonexistent/cleanup",), 1.0)
    sweeps.look("a", 0.0)
    assert sweeps.tell(0.0)["last"]["code"] == 127
    sweeps.close()


def test_switched_off() -> None:
    sweeps = Sweeps((), 1.0)
    sweeps.look("a", 0.0)
    assert sweeps.tell(0.0) == {"on": False, "pid": None, "last": None}
    sweeps.close()


@pytest.mark.parametrize(
    ("health", "agent"),
    [
        (Health(0), Agent.ALIVE),
        (Health.STAND_IN, Agent.ALIVE),
        (Health.AGENT_HUNG, Agent.HUNG),
        (Health.AGENT_DEAD | Health.STAND_IN, Agent.DEAD),
        (Health.AGENT_UNKNOWN, Agent.DEAD),
    ],
)
def test_health_as_the_decision_takes_it(health: Health, agent: Agent) -> None:
    assert situation.agent_of(health) is agent


def test_a_situation_survives_the_socket() -> None:
    now = Situation(
        Agent.DEAD,
        missing_ms=12.5,
        grace_ms=30_000.0,
        lease_ms=0.0,
        lapsed_ms=math.inf,
        stand_in=True,
        revoked=situation.owners(["r-1/3", "broken"]),
    )
    assert now.revoked == {"r-1-3"}
    assert situation.parsed(situation.told(now)) == now
    assert situation.of_node(Path("/nonexistent/socket")) is None


def test_settings() -> None:
    assert settings_of(GOOD, "x").cleanup == CleanupTable()
    found = settings_of({**GOOD, "cleanup": {"grace_s": 5, "command": []}}, "x").cleanup
    assert (found.grace_s, found.pause_s, found.command) == (5.0, 60.0, ())


def test_all_that_is_wrong_with_settings_is_told_at_once() -> None:
    table = {"grace_s": 0, "pause_s": True, "command": "vrha-cleanup", "color": 5}
    with pytest.raises(InputError) as caught:
        settings_of({**GOOD, "cleanup": table, "agent": {"hung_after_s": 0}}, "x")
    for said in (*(f"cleanup.{key}" for key in table), "agent.hung_after_s"):
        assert said in str(caught.value)
