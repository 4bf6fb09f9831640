"""Agents that die, hang or stay away in a real zone: what is seen, and that nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.system.zonekit import Zone, assert_nothing_lost, dead, probing, wait_for, zone
from vrha.core.causes import Cause
from vrha.model.ownership import AGENT_FAILS
from vrha.model.probing import Result
from vrha.model.rollouts import RolloutKind
from vrha.model.views import RouterStatus

pytestmark = [pytest.mark.root, pytest.mark.system]

GRACE_S = 1.5
FAIL_BACK_S = 2.0
SOON_S = 30
FAILED = ("agent-failed", "agent-hung")


@pytest.fixture(scope="module")
def watched() -> Iterator[Zone]:
    """Long enough a grace that init would have brought the agent back."""
    with zone("seed-10x10", f"agentless-{os.getpid()}", watched=True) as made:
        yield made


@pytest.fixture(scope="module")
def impatient() -> Iterator[Zone]:
    times = {"agent_grace_s": GRACE_S, "agent_back_s": FAIL_BACK_S, "agent_failures": 3}
    with zone("seed-10x10", f"forsaken-{os.getpid()}", watched=True, failover=times) as made:
        yield made


def cause(zone: Zone, node: str) -> str:
    return zone.client.why_node(node).cause


def await_cause(zone: Zone, node: str, wanted: Cause) -> None:
    wait_for(lambda: cause(zone, node) == wanted, SOON_S, f"{node} to be {wanted}")


def last_event(zone: Zone, node: str) -> tuple[str, str]:
    newest = zone.client.why_node(node).events[0]
    return newest.kind, newest.reason


def is_back(zone: Zone, node: str) -> bool:
    heard = zone.client.health().nodes_heard
    return cause(zone, node) == Cause.SERVING and heard == len(zone.lab.nodes)


def test_a_killed_agent_costs_nothing(watched: Zone) -> None:
    node = watched.router().node
    agent = watched.lab.agent(node)
    assert cause(watched, node) == Cause.SERVING
    with probing(watched.streams()) as results:
        agent.kill(signal.SIGKILL)
        await_cause(watched, node, Cause.AGENT_DEAD)
        init = "init may bring the agent back"
        wait_for(lambda: init in watched.client.why_node(node).action, SOON_S, init)
        said = watched.client.why_node(node)
        agent.start()
        await_cause(watched, node, Cause.SERVING)
    assert_nothing_lost(results[0])
    assert any("dead" in each.what and each.age_s is not None for each in said.signals)
    assert watched.router().node == node
    assert watched.client.why_router(watched.router().name).node == node


def test_a_stopped_agent_hangs(watched: Zone) -> None:
    node = watched.router().node
    agent = watched.lab.agent(node)
    with probing(watched.streams()) as results:
        agent.kill(signal.SIGSTOP)
        try:
            await_cause(watched, node, Cause.AGENT_HUNG)
            wait_for(lambda: last_event(watched, node) == FAILED, SOON_S, "an event of it")
        finally:
            agent.kill(signal.SIGCONT)
        await_cause(watched, node, Cause.SERVING)
    assert_nothing_lost(results[0])
    assert agent.alive
    assert watched.router().node == node


@pytest.mark.parametrize(
    "end",
    [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)],
    ids=lambda s: s.name,
)
def test_routers_leave_a_node_whose_agent_stays_away(end: signal.Signals, impatient: Zone) -> None:
    node = impatient.router().node
    agent = impatient.lab.agent(node)
    with impatient.responding(), probing(impatient.all_streams()) as results:
        agent.kill(end)
        wait_for(lambda: has_left(impatient, node), 60, "the router on another node")
        wait_for(lambda: left(impatient, node) == [], 20, "nothing on the old node")
    assert not agent.alive
    assert_at_most_one_lost(results[0])
    drain = impatient.client.rollouts()[0]
    assert (drain.kind, drain.node, drain.routers) == (RolloutKind.DRAIN, node, 1)
    assert any(event.kind == "evacuation" for event in impatient.client.why_node(node).events)
    assert next(n for n in impatient.client.nodes() if n.name == node).draining
    # The stand-in makes room for the agent, and the node takes routers again.
    agent.start()
    wait_for(lambda: is_back(impatient, node), SOON_S, "the agent itself")
    wait_for(lambda: not any(n.draining for n in impatient.client.nodes()), SOON_S, "no cordon")


@pytest.mark.long
def test_routers_leave_a_node_whose_agent_falls_again_and_again(impatient: Zone) -> None:
    """Each time it is back it falls at once, in the midst of whatever it is doing."""
    node = impatient.router().node
    agent = impatient.lab.agent(node)

    def falls() -> bool:
        if not agent.alive:
            agent.start()
        elif impatient.lab.watcher_status(node)["agents"]["health"] & AGENT_FAILS == 0:
            agent.kill(signal.SIGKILL)
        return has_left(impatient, node) and left(impatient, node) == []

    with impatient.responding(), probing(impatient.all_streams()) as results:
        wait_for(falls, 90, "a node without routers")
    assert_at_most_one_lost(results[0])
    if not agent.alive:
        agent.start()
    wait_for(lambda: is_back(impatient, node), 30, "the agent itself")


def has_left(zone: Zone, node: str) -> bool:
    router = zone.router()
    return router.node != node and router.status is RouterStatus.SERVING


def left(zone: Zone, node: str) -> list[str]:
    return zone.objects()[node]


def assert_at_most_one_lost(result: Result) -> None:
    lost = {one.stream.name: one.loss.lost for one in result.streams}
    assert all(count <= 1 for count in lost.values()), lost
    assert dead(result) == {}
