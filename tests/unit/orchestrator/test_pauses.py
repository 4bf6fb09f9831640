"""Pauses and the status on a real store: who, when, why, and what is still allowed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import DESIRED, World
from vrha.core.brake import Rules, SeenNode, ZoneSight, decide
from vrha.core.damping import Damping, came_back, failed_over, fell_silent
from vrha.errors import InputError, NotFoundError, VrhaError
from vrha.model.health import NodeHealth
from vrha.model.pauses import PauseScope, PauseTarget
from vrha.model.runs import RestartOptions, RunKind, RunStatus
from vrha.model.views import BrakeView, NodeCondition, NodeSight, RouterStatus
from vrha.orchestrator import reconcile, status
from vrha.orchestrator.service import OrchestratorService

N1 = PauseTarget(PauseScope.NODE, "n1")
R1 = PauseTarget(PauseScope.ROUTER, "r1")


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.heard()
    world.service.apply(DESIRED)
    world.settle()
    return world


def flapping(node: str) -> NodeHealth:
    now, rule = time.time(), Damping()
    health = NodeHealth(node)
    for _ in range(3):
        health = fell_silent(health, now, rule)
    return health


def test_a_pause_is_kept_and_told(world: World) -> None:
    before = world.service.events()[-1].id
    paused = world.service.pause(N1, "ann", "new memory")
    world.service.pause(R1, "", "")
    world.restart_orchestrator()
    assert world.service.pauses()[0] == paused
    assert (paused.target, paused.by, paused.reason) == (N1, "ann", "new memory")
    assert world.service.resume(N1, "bob") == paused
    told = [
        (e.kind, e.reason, e.node, e.router, e.detail)
        for e in world.service.events(before)
        if e.kind in ("paused", "resumed")
    ]
    assert told == [
        ("paused", "node", "n1", "", "node n1 by ann: new memory"),
        ("paused", "router", "", "r1", "router r1 by nobody who gave a name"),
        ("resumed", "node", "n1", "", "node n1 by bob: new memory"),
    ]


@pytest.mark.parametrize(
    ("target", "kind", "code"),
    [
        (PauseTarget(PauseScope.NODE, "n9"), NotFoundError, "no-such-node"),
        (PauseTarget(PauseScope.ROUTER, "n1"), NotFoundError, "no-such-router"),
        (PauseTarget(PauseScope.ZONE, "n1"), NotFoundError, "no-such-zone"),
        (PauseTarget(PauseScope.NODE), InputError, "pause-target"),
        (PauseTarget(PauseScope.ALL, "n1"), InputError, "pause-target"),
    ],
)
def test_only_what_is_there_can_be_paused(
    world: World, target: PauseTarget, kind: type[VrhaError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        world.service.pause(target, "ann", "")
    assert caught.value.code == code
    assert world.service.pauses() == ()


def test_what_is_not_paused_cannot_be_resumed(world: World) -> None:
    world.service.pause(N1, "ann", "")
    with pytest.raises(NotFoundError) as caught:
        world.service.resume(PauseTarget(), "ann")
    assert (caught.value.code, caught.value.hint) == ("not-paused", "Paused: node n1.")


def test_what_people_ask_for_goes_on(world: World) -> None:
    world.service.pause(PauseTarget(), "ann", "")
    home = world.service.routers()[0].node
    away = "n2" if home == "n1" else "n1"
    run = world.service.move_router("r1", RestartOptions(node=away))
    world.settle()
    assert world.service.run(run.id).status is RunStatus.DONE
    assert world.service.routers()[0].node == away


def test_placement_rather_avoids_who_flaps_and_a_person_may_go_there(world: World) -> None:
    router = DESIRED.routers[0]
    with world.store.transaction() as tx:
        chosen = reconcile.placement_of(tx, DESIRED, router).node
        tx.node_health.put(flapping(chosen))
        other = reconcile.placement_of(tx, DESIRED, router)
        assert other.node not in ("", chosen)
        reconcile._refuse_unfit(tx, DESIRED, router, chosen)
        rule, now = Damping(), time.time()
        for name in (other.node, chosen):
            away = failed_over(NodeHealth(name), now - 9999, rule)
            tx.node_health.put(came_back(away, now, rule))
        found = reconcile.candidates(
            DESIRED, tx.node_states(), frozenset(), health=tx.node_health.all()
        )
        assert [c.delayed for c in found] == [True, True]
        assert reconcile.placement_of(tx, DESIRED, router).node == chosen


def test_candidates_know_pauses(world: World) -> None:
    world.service.pause(N1, "ann", "")
    with world.store.reading() as tx:
        found = reconcile.candidates(DESIRED, tx.node_states(), frozenset(), pauses=tx.pauses.all())
    assert {c.node.name: c.paused for c in found} == {"n1": True, "n2": False}


def test_a_status_by_what_agents_say(world: World) -> None:
    world.service.pause(N1, "ann", "new memory")
    with world.store.transaction() as tx:
        tx.node_health.put(flapping("n1"))
        tx.node_silent("n2")
    found = world.service.status()
    assert found.brake is None
    assert found.broker
    assert found.leads
    assert [p.target for p in found.pauses] == [N1]
    one, two = found.nodes
    assert (one.name, one.condition, one.paused) == ("n1", NodeCondition.SUPPRESSED, True)
    assert datetime.fromisoformat(one.suppressed_until) > datetime.now(UTC)
    assert one.agent_heard_seconds_ago is not None
    assert (two.name, two.condition, two.paused) == ("n2", NodeCondition.SILENT, False)
    assert two.agent_heard_seconds_ago is None
    assert one.routers + two.routers == 1
    assert (found.open_runs, found.not_served) == ((), ())


def watched(world: World, sights: Mapping[str, NodeSight]) -> OrchestratorService:
    brake = BrakeView(False, "", "", 0, 1, 0, 1, True)
    return OrchestratorService(
        world.store,
        world.engine,
        world.metrics,
        lambda: None,
        lambda: False,
        world.preferred,
        lambda: sights,
        lambda: brake,
    )


def test_a_status_by_leases(world: World) -> None:
    """A node whose agent is heard may be silent, and the other way round."""
    home = world.service.routers()[0].node
    away = "n2" if home == "n1" else "n1"
    with world.store.transaction() as tx:
        tx.node_silent(away)
    sights = {
        home: NodeSight(home, 812.0, silent=True, hold="mass-silence"),
        away: NodeSight(away, 20.0),
    }
    found = watched(world, sights).status()
    nodes = {node.name: node for node in found.nodes}
    assert (nodes[home].condition, nodes[home].hold) == (NodeCondition.SILENT, "mass-silence")
    assert (nodes[away].condition, nodes[away].heard_ms_ago) == (NodeCondition.HEARD, 20.0)
    assert [router.name for router in found.not_served] == ["r1"]
    assert found.brake is not None
    assert not found.broker
    sights[home] = NodeSight(home, 20.0, recovering=True)
    found = watched(world, sights).status()
    assert {n.name: n.condition for n in found.nodes}[home] is NodeCondition.RECOVERING
    assert len(found.not_served) == 1


def test_open_runs_and_who_is_not_served(world: World) -> None:
    world.reachable.clear()
    run = world.service.restart_network("blue")
    found = world.service.status()
    assert [(r.id, r.kind, r.router) for r in found.open_runs] == [(run.id, RunKind.RESTART, "r1")]
    assert found.open_runs[0].started_at
    # The old instance serves while the run goes on.
    assert found.not_served == ()
    state = world.service.routers()[0]
    assert state.status is RouterStatus.CHANGING


def test_views_of_what_was_decided() -> None:
    unix, now = 1.8e9, 500.0
    nodes = (
        SeenNode("n1", now - 1, 5),
        SeenNode("n2", now - 1, 5),
        SeenNode("n3", None, 5, recovering=True),
        SeenNode("n4"),
    )
    zone = ZoneSight(nodes, 3, Rules(budget=0.9, mass_silence=0.9))
    decided = decide(zone, now)
    view = status.brake_view(zone, decided, now + 2, unix)
    assert (view.on, view.reason, view.since) == (False, "", "")
    assert (view.recovering, view.budget, view.silent, view.limit) == (3, 3, 2, 3)
    sights = status.node_sights(zone, decided, {"n1": 1000.0}, {}, unix)
    assert sights["n1"] == NodeSight("n1", 1000.0, True, True)
    assert sights["n3"] == NodeSight("n3", None, False, True)
    zone = ZoneSight(nodes, 3, Rules())
    decided = decide(zone, now)
    view = status.brake_view(zone, decided, now + 2, unix)
    assert (view.on, view.reason, view.silent) == (True, "mass-silence", 2)
    assert datetime.fromisoformat(view.since).timestamp() == unix - 2
    sights = status.node_sights(zone, decided, {}, {"n4": flapping("n4")}, time.time())
    assert sights["n1"].hold == "mass-silence"
    assert sights["n4"].suppressed_until
