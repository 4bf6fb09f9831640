"""Standbys by the engine on a real store, with nodes that do what a test wants."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import BLUE, DESIRED, ROUTER, World
from vrha.model.runs import RestartOptions, RunKind, RunStatus, Strategy
from vrha.model.spec import InstanceRef, Policy
from vrha.model.steps import Build
from vrha.model.views import StandbyView
from vrha.orchestrator import standbys
from vrha.orchestrator.reconcile import placement_of
from vrha.store import Store

ONE, TWO, THREE = (InstanceRef("r1", number) for number in (1, 2, 3))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    # No inventory here is older than what the same node has said before.
    monkeypatch.setattr(standbys, "_SETTLED_S", 0.0)
    world = World(tmp_path)
    assert world.serving() == ONE
    return world


def rest(world: World) -> None:
    """All that follows from what the nodes say now."""
    for _ in range(6):
        world.settle()
        world.heard()
        world.now += 2
        world.engine.tick()
    world.settle()
    world.heard()


def stand_by(world: World) -> StandbyView:
    world.service.set_router("r1", Policy.STANDBY)
    rest(world)
    return view(world)


def view(world: World) -> StandbyView:
    found = world.service.routers()[0].standby
    assert found is not None
    return found


def kinds(world: World) -> list[tuple[RunKind, RunStatus]]:
    return [(run.kind, run.status) for run in world.service.runs()]


def test_it_is_built_elsewhere_muted_without_permission_and_follows(world: World) -> None:
    found = stand_by(world)
    assert (found.instance, found.in_sync, found.connections) == ("r1#2", True, 5)
    assert found.node != world.service.routers()[0].node
    assert world.owners() == [ONE]
    runs = len(world.service.runs())
    rest(world)
    assert len(world.service.runs()) == runs, "nothing is left to do"


def test_the_build_says_that_nobody_permits_it(world: World) -> None:
    world.service.set_router("r1", Policy.STANDBY)
    with world.store.transaction() as tx:
        (run,) = tx.open_runs()
    builds = [r.step for r in run.steps if isinstance(r.step, Build)]
    assert [build.ready for build in builds] == [True]


def test_it_survives_the_orchestrator_and_the_store(world: World) -> None:
    before = stand_by(world)
    world.restart_orchestrator()
    rest(world)
    assert view(world) == before
    with world.store.transaction() as tx:
        state = tx.router_state("r1")
        (brief,) = tx.router_briefs()
    assert state is not None
    assert state.standby_spec is not None
    assert brief == replace(state, applied=None, standby_spec=None)


def test_policy_back_leaves_nothing(world: World) -> None:
    stand_by(world)
    world.service.set_router("r1", Policy.RESURRECT)
    rest(world)
    assert world.service.routers()[0].standby is None
    assert world.all_instances() == {ONE}


def test_a_router_that_goes_takes_its_standby_along(world: World) -> None:
    stand_by(world)
    world.service.apply(replace(DESIRED, routers=()))
    rest(world)
    assert world.all_instances() == set()


def test_it_follows_the_next_generation(world: World) -> None:
    stand_by(world)
    world.service.restart_network("blue")
    rest(world)
    assert world.owner() == THREE
    assert (view(world).instance, view(world).in_sync) == ("r1#2", True)


def test_a_change_is_configured_in_place(world: World) -> None:
    stand_by(world)
    router = replace(ROUTER, source_nat=(), policy=Policy.STANDBY)
    world.service.apply(replace(DESIRED, routers=(router,)))
    rest(world)
    assert world.all_instances() == {ONE, TWO}
    with world.store.transaction() as tx:
        state = tx.router_state("r1")
    assert state is not None
    assert state.standby_spec is not None
    assert state.standby_spec.router.source_nat == ()


def test_a_restarted_agent_is_synced_and_one_that_fails_is_tried_less_and_less(
    world: World,
) -> None:
    found = stand_by(world)
    node = world.nodes[found.node]
    node.restart()
    world.heard()
    assert not view(world).in_sync
    node.kernel.broken = {"sync"}
    before = len(world.service.runs(limit=100))
    for _ in range(60):
        world.now += 1
        world.engine.tick()
        world.settle()
        world.heard()
    tried = len(world.service.runs(limit=100)) - before
    assert 4 <= tried <= 7, "after 1, 2, 4, 8, 16, 32 s"
    node.kernel.broken = set()
    world.now += standbys.LONGEST_PAUSE_S
    rest(world)
    assert view(world).in_sync
    assert world.all_instances() == {ONE, TWO}


def test_a_run_of_a_standby_gives_way_to_any_other(world: World) -> None:
    world.service.set_router("r1", Policy.STANDBY)
    run = world.service.restart_network("blue")
    assert kinds(world)[1] == (RunKind.STANDBY, RunStatus.ROLLED_BACK)
    assert world.service.runs()[1].reason == "superseded"
    rest(world)
    assert world.service.run(run.id).status is RunStatus.DONE
    rest(world)
    assert view(world).in_sync
    assert len(world.all_instances()) == 2, "what the first run had built is gone"


def test_one_that_is_gone_is_built_again(world: World) -> None:
    found = stand_by(world)
    world.nodes[found.node].instances.pop(TWO)
    world.heard()
    rest(world)
    assert (view(world).instance, view(world).in_sync) == ("r1#3", True)


def test_where_no_other_node_fits_it_says_why(world: World) -> None:
    world.service.apply(replace(DESIRED, nodes=DESIRED.nodes[:1]))
    if world.service.routers()[0].node != "n1":
        pytest.skip("it serves on the node that went")
    found = stand_by(world)
    assert (found.instance, found.in_sync) == ("", False)
    assert found.why


def test_a_node_that_is_silent_keeps_no_standby(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add_node("n3")
    third = replace(DESIRED.nodes[1], name="n3")
    world.service.apply(replace(DESIRED, nodes=(*DESIRED.nodes, third)))
    world.heard()
    found = stand_by(world)
    world.reachable.remove(found.node)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    world.heard()
    rest(world)
    assert view(world).node not in (found.node, world.service.routers()[0].node)
    assert view(world).in_sync
    world.reachable.add(found.node)
    rest(world)
    rest(world)
    assert len(world.all_instances()) == 2, "the first one is gone once its node is back"


def test_strategies_of_a_restart_work_beside_it(world: World) -> None:
    stand_by(world)
    for strategy in Strategy:
        world.service.restart_network("blue", RestartOptions(strategy))
        rest(world)
        assert world.service.routers()[0].status == "serving"
        assert view(world).in_sync
        assert len(world.all_instances()) == 2


def test_the_place_of_a_standby_counts_as_taken(world: World) -> None:
    stand_by(world)
    nodes = tuple(replace(node, capacity=1) for node in DESIRED.nodes)
    second = replace(ROUTER, name="r2", networks=("green",), uplink=None, source_nat=())
    green = replace(BLUE, name="green", bridge="br-green", subnets=())
    with world.store.transaction() as tx:
        desired = replace(tx.desired()[1], nodes=nodes, networks=(BLUE, green))
        assert placement_of(tx, desired, second).node == ""


def test_a_store_opens_with_its_standbys(world: World) -> None:
    stand_by(world)
    with world.store.transaction() as tx:
        before = tx.router_states()
    world.store.close()
    world.store = Store.open(world.url)
    with world.store.transaction() as tx:
        assert tx.router_states() == before
        tx.drop_router_state("r1")
        left = tx.router_state("r1")
    assert left is not None
    assert left.standby is None
