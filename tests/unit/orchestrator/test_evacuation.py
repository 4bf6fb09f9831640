"""Nodes whose agent stays away are emptied by drains; killed orchestrators, holds, fail-back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.orchestrator.test_rollouts import Fleet
from vrha.core.agents import Act, AgentLimits
from vrha.core.choice import STAND_IN
from vrha.model.ownership import Health, NodeHealth
from vrha.model.rollouts import RolloutStatus, StopReason
from vrha.model.runs import Strategy
from vrha.orchestrator import why
from vrha.orchestrator.evacuation import AGAIN_S, Evacuation, Outside

GRACE_S, FAIL_BACK_S = 2.0, 30.0
LIMITS = AgentLimits(grace_ms=GRACE_S * 1000, fail_back_ms=FAIL_BACK_S * 1000)
WELL, DEAD = Health(0), Health.AGENT_DEAD


class Watched(Fleet):
    """A fleet whose watchers say what a test wants them to."""

    def __init__(self, folder: Path) -> None:
        self.since = dict.fromkeys(("n1", "n2", "n3"), (WELL, 0.0))
        self.failures = dict.fromkeys(self.since, 0)
        self.asked: list[str] = []
        self.holds: dict[str, str] = {}
        self.broker = True
        super().__init__(folder)
        self.evacuation = self.begun()

    def begun(self) -> Evacuation:
        """As after a start of the orchestrator."""
        outside = Outside(
            self.healths,
            lambda node, _: self.asked.append(node),
            lambda: self.holds,
            lambda: self.broker,
        )
        return Evacuation(self.store, outside, LIMITS, Strategy.PARALLEL, lambda: self.now)

    def healths(self) -> dict[str, NodeHealth]:
        return {
            name: NodeHealth(name, 50.0, health, (self.now - at) * 1000, self.failures[name])
            for name, (health, at) in self.since.items()
        }

    def becomes(self, node: str, health: Health) -> None:
        self.failures[node] += bool(health & DEAD and not self.since[node][0] & DEAD)
        self.since[node] = (health, self.now)
        self.look()

    def stands_in(self, node: str) -> None:
        """Its stand-in is there and has been heard."""
        self.since[node] = (self.since[node][0] | Health.STAND_IN, self.since[node][1])
        self.nodes[node].capabilities += (STAND_IN,)
        self.nodes[node].restart()
        self.heard()

    def look(self, seconds: float = 0.6) -> None:
        self.now += seconds
        if self.evacuation.look():
            self.engine.rollouts_changed()

    def on(self, node: str) -> int:
        return list(self.homes().values()).count(node)

    def draining(self) -> list[str]:
        return [node.name for node in self.service.nodes() if node.draining]

    def kinds(self, node: str) -> list[str]:
        with self.store.reading() as tx:
            return [event.kind for event in tx.events_about("node", node, 20)]

    def emptied(self) -> None:
        """Until the fleet rests."""
        self.settle()
        self.look()
        self.settle()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path)
    made.look()
    yield made
    made.store.close()


def dead_beyond_grace(fleet: Watched) -> None:
    fleet.becomes("n1", DEAD)
    fleet.look(GRACE_S)


def test_nothing_moves_within_the_grace(fleet: Watched) -> None:
    fleet.becomes("n1", DEAD)
    fleet.look(GRACE_S - 1)
    fleet.becomes("n1", WELL)
    fleet.look(60)
    assert (fleet.asked, fleet.draining(), fleet.service.rollouts()) == ([], [], ())
    assert fleet.kinds("n1")[:2] == ["agent-back", "agent-failed"]


def test_a_node_without_agent_is_emptied_by_a_stand_in(fleet: Watched) -> None:
    before = fleet.on("n1")
    assert before > 0
    dead_beyond_grace(fleet)
    assert fleet.asked == ["n1"]
    assert fleet.service.rollouts() == (), "nobody is there yet who could give anything away"
    fleet.stands_in("n1")
    fleet.look()
    assert fleet.draining() == ["n1"]
    fleet.emptied()
    (drain,) = fleet.service.rollouts()
    assert (drain.status, drain.routers, fleet.on("n1")) == (RolloutStatus.DONE, before, 0)
    assert fleet.kinds("n1")[:3] == ["rollout-done", "evacuation", "rollout-started"]
    asked = len(fleet.asked)
    fleet.look(10)
    assert len(fleet.asked) == asked, "there is nothing left to give away"


def test_the_node_comes_back_when_its_agent_has_lived_for_a_while(fleet: Watched) -> None:
    dead_beyond_grace(fleet)
    fleet.stands_in("n1")
    fleet.look()
    fleet.emptied()
    fleet.becomes("n1", WELL)
    fleet.look(FAIL_BACK_S - 2)
    assert fleet.draining() == ["n1"]
    assert "again in" in fleet.evacuation.decisions()["n1"].why
    fleet.look(2)
    assert fleet.draining() == []
    assert fleet.kinds("n1")[0] == "uncordoned"


def test_a_killed_orchestrator_goes_on_and_gives_back(fleet: Watched) -> None:
    dead_beyond_grace(fleet)
    fleet.stands_in("n1")
    fleet.look()
    fleet.step()
    fleet.restart_orchestrator()
    fleet.evacuation = fleet.begun()
    fleet.heard()
    fleet.look()
    fleet.emptied()
    assert (fleet.on("n1"), fleet.draining()) == (0, ["n1"])
    fleet.becomes("n1", WELL)
    fleet.restart_orchestrator()
    fleet.evacuation = fleet.begun()
    fleet.look(FAIL_BACK_S)
    assert fleet.draining() == []


def test_a_cordon_of_somebody_else_stays(fleet: Watched) -> None:
    with fleet.store.transaction() as tx:
        tx.rollouts.cordon("n1")
    dead_beyond_grace(fleet)
    fleet.stands_in("n1")
    fleet.look()
    fleet.emptied()
    fleet.becomes("n1", WELL)
    fleet.look(2 * FAIL_BACK_S)
    assert (fleet.on("n1"), fleet.draining()) == (0, ["n1"])


@pytest.mark.parametrize("case", ["held", "no broker", "all agents"])
def test_what_keeps_it_from_moving(fleet: Watched, case: str) -> None:
    if case == "held":
        fleet.holds["n1"] = "paused by eve"
    fleet.broker = case != "no broker"
    for node in ("n2", "n3") if case == "all agents" else ():
        fleet.becomes(node, DEAD)
    dead_beyond_grace(fleet)
    assert fleet.evacuation.decisions()["n1"].act is Act.WAIT
    assert fleet.asked == []
    insight = why.Insight(fleet.healths, fleet.evacuation.decisions, lambda: fleet.holds)
    with fleet.store.reading() as tx:
        said = why.node(tx, "n1", insight, fleet.broker)
    assert said.cause == "agent-dead"
    wanted = {"held": "paused by eve", "no broker": "no broker", "all agents": "no other node"}
    assert wanted[case] in said.action


def test_a_drain_that_came_to_a_stop_is_taken_up_again(fleet: Watched) -> None:
    dead_beyond_grace(fleet)
    fleet.stands_in("n1")
    for node in ("n2", "n3"):
        fleet.nodes[node].kernel.broken.add("build")
    fleet.look()
    fleet.settle()
    (drain,) = fleet.service.rollouts()
    assert drain.reason == StopReason.CANARY_FAILED
    for node in ("n2", "n3"):
        fleet.nodes[node].kernel.broken.clear()
    fleet.look(AGAIN_S)
    fleet.emptied()
    (drain,) = fleet.service.rollouts()
    assert (drain.status, fleet.on("n1")) == (RolloutStatus.DONE, 0)


def test_one_that_somebody_stopped_stays_stopped(fleet: Watched) -> None:
    dead_beyond_grace(fleet)
    fleet.stands_in("n1")
    fleet.look()
    fleet.service.stop_rollout(fleet.service.rollouts()[0].id)
    fleet.settle()
    fleet.look(AGAIN_S)
    fleet.look(AGAIN_S)
    (drain,) = fleet.service.rollouts()
    assert (drain.status, drain.reason) == (RolloutStatus.STOPPED, StopReason.ASKED)
