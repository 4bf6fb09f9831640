"""The watcher's decision on what a dead agent left, with real processes and a clock of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.watcher.test_watcher_agents import DEAD, HUNG, WELL, Node, stopped
from vrha.core.ownership.holder import Holder
from vrha.core.ownership.timing import Timing
from vrha.model.ownership import Ack, Electorate, Grant, Held
from vrha.watcher.afterlife import Afterlife
from vrha.watcher.settings import CleanupTable

GRACE_MS = 10_000.0
VOTERS = Electorate(1, ("v1",))


class Stage(Node):
    """A node whose only voter and leader is the test."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.swept = folder / "swept"
        command = ("sh", "-c", f"echo x >> {self.swept}")
        table = CleanupTable(GRACE_MS / 1000, 1.0, command)
        self.afterlife = Afterlife(table, self.agents, self.now)
        self.holder = Holder("n1", Timing(), VOTERS, 1, {}, self.now)
        self.is_heard = False
        self.number = 0

    def pass_s(self, seconds: float) -> None:
        for _ in range(int(seconds * 10)):
            self.now += 100
            self.agents.look(self.now)
            self.holder.tick(self.now)
            if self.is_heard:
                seq, incarnation = self.holder.seq, self.holder.incarnation
                self.holder.receive(Ack("v1", "n1", incarnation, seq), self.now)
            self.afterlife.look(self.holder, self.now)

    def grant(self, routers: Held, revoked: Held = ()) -> None:
        self.number += 1
        holder = self.holder
        grant = Grant(
            "o1", 1, self.number, "n1", holder.incarnation, holder.seq, VOTERS, routers, revoked
        )
        holder.receive(grant, self.now)

    def reason(self) -> str:
        return str(self.afterlife.tell(self.holder, self.now)["cleanup"]["reason"])

    def await_sweeps(self, count: int) -> None:
        """A look ends one that has ended; the clock goes on by little."""
        self.until(lambda: self.pass_s(0.1) or self.sweeps() == count)

    def sweeps(self) -> int:
        return self.swept.read_text().count("x") if self.swept.exists() else 0


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    with made.held:
        yield made
        made.afterlife.close()
        made.agents.close()


def test_nobody_was_ever_there(stage: Stage) -> None:
    stage.pass_s(9)
    assert stage.reason() == "grace"
    stage.await_sweeps(1)
    stage.pass_s(60)
    assert stage.sweeps() == 1, "nothing was left"


def test_a_living_agent_is_waited_for_without_end(stage: Stage) -> None:
    stage.spawn("agent")
    stage.until_health(WELL)
    stage.until(lambda: stage.pass_s(0.2) or stage.now > 4 * GRACE_MS)
    assert stage.reason() == "agent-lives"
    assert stage.sweeps() == 0


def test_each_death_is_swept(stage: Stage) -> None:
    for number in (1, 2):
        child = stage.spawn("agent")
        stage.until_health(WELL)
        child.kill()
        stage.until_health(DEAD)
        stage.pass_s(9)
        assert (stage.reason(), stage.sweeps()) == ("grace", number - 1)
        stage.await_sweeps(number)


def test_a_lease_that_lasts_holds_all_and_one_that_ended_gives_a_grace(stage: Stage) -> None:
    stage.is_heard = True
    stage.pass_s(1)
    stage.grant((("r1/1", 5),))
    stage.pass_s(60)
    assert (stage.reason(), stage.sweeps()) == ("lease-live", 0)
    stage.is_heard = False
    stage.pass_s(9)
    assert (stage.reason(), stage.sweeps()) == ("grace", 0)
    stage.is_heard = True
    stage.pass_s(9)
    assert stage.sweeps() == 0, "it is back"
    stage.is_heard = False
    stage.pass_s(11)
    stage.await_sweeps(1)


def test_what_was_taken_back_is_swept_under_a_live_lease(stage: Stage) -> None:
    stage.is_heard = True
    stage.pass_s(60)
    stage.grant((("r1/1", 5), ("r2/1", 5)))
    stage.pass_s(1)
    stage.grant((("r1/1", 5),), (("r2/1", 6),))
    stage.pass_s(9)
    assert stage.sweeps() == 0, "it may be of use as a relay"
    assert stage.afterlife.situation(stage.holder, stage.now).revoked == frozenset()
    stage.await_sweeps(1)
    assert stage.afterlife.situation(stage.holder, stage.now).revoked == {"r2-1"}
    stage.grant((("r1/1", 5), ("r2/1", 7)))
    stage.pass_s(1)
    assert stage.afterlife.situation(stage.holder, stage.now).revoked == frozenset()


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_stuck_agent_is_ended_where_nothing_of_it_serves(stage: Stage, is_heard: bool) -> None:
    stage.is_heard = is_heard
    child = stage.spawn("agent")
    stage.until_health(WELL)
    child.send_signal(signal.SIGSTOP)
    stage.until(lambda: stopped(child.pid))
    stage.pass_s(11)
    assert stage.look() == HUNG
    assert (stage.reason(), child.poll()) == ("agent-hung", None)
    stage.pass_s(2)
    if is_heard:
        assert child.poll() is None, "what it built serves, and the leader decides"
        return
    assert child.wait() == -signal.SIGKILL
    stage.until_health(DEAD)
    stage.pass_s(9)
    assert stage.sweeps() == 0
    stage.await_sweeps(1)
