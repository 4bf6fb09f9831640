"""What must not happen, whatever fails: nodes that fall silent, come back, or cannot undo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import DESIRED, ROUTER, WITH_NAT, FakeInstance, World
from vrha import codec
from vrha.errors import InputError
from vrha.model.messages import Outcome, StepReport
from vrha.model.runs import RestartOptions, RunKind, RunStatus, Strategy
from vrha.model.spec import Desired, InstanceRef, Node
from vrha.model.steps import Build, Destroy
from vrha.model.views import RouterStatus
from vrha.store import Tx


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_reaping_an_orphan_never_unmutes_it(world: World) -> None:
    owner = world.serving()
    node = world.nodes["n1"]
    orphan = InstanceRef("r1", 0)
    node.instances[orphan] = FakeInstance()
    world.heard(2)
    assert world.service.runs()[0].kind is RunKind.DELETE
    world.pass_deadlines()
    world.settle()
    assert world.owners() == [owner]
    world.settle()
    assert world.all_instances() == {owner}


def test_several_orphans_of_one_router_go_one_after_the_other(world: World) -> None:
    owner = world.serving()
    world.nodes["n1"].instances.update({InstanceRef("r1", g): FakeInstance() for g in (0, -1)})
    for _ in range(4):
        world.heard()
        world.settle()
    assert world.all_instances() == {owner}


def test_an_inventory_is_taken_also_when_a_router_finds_no_place(world: World) -> None:
    """A router waits for a rebuild that no node can host; then a new node is heard."""
    world.serving()
    world.nodes["n1"].kernel.broken = {"build"}
    internal = replace(ROUTER, uplink=None, source_nat=())
    world.service.apply(replace(DESIRED, routers=(internal,)))
    world.settle()
    assert world.last_run()[0] is RunStatus.ROLLED_BACK
    elsewhere = replace(internal, zone="nowhere")
    nodes = (*DESIRED.nodes, Node("n3", "z3"))
    result = world.service.apply(replace(DESIRED, routers=(elsewhere,), nodes=nodes))
    assert result.runs == ()
    (view,) = world.service.routers()
    assert view.reason.startswith("no-node")
    assert view.status is RouterStatus.SERVING
    world.add_node("n3")
    world.heard()
    assert [n.heard_seconds_ago is not None for n in world.service.nodes()] == [True] * 3


def test_a_change_after_a_rolled_back_restart_is_not_refused_as_stale(world: World) -> None:
    old = world.serving()
    world.nodes["n1"].kernel.broken = {"build"}
    world.service.restart_network("blue")
    world.settle()
    world.nodes["n1"].kernel.broken = set()
    (run_id,) = world.service.apply(replace(DESIRED, routers=(WITH_NAT,))).runs
    world.settle()
    run = world.service.run(run_id)
    assert (run.kind, run.status, run.reason) == ("update", RunStatus.DONE, "")
    assert world.owner() == old


def test_every_run_has_an_epoch_of_its_own(world: World) -> None:
    world.serving()
    world.service.apply(replace(DESIRED, routers=(WITH_NAT,)))
    world.settle()
    world.service.apply(DESIRED)
    world.settle()
    world.nodes["n1"].instances[InstanceRef("r1", 0)] = FakeInstance()
    world.heard(2)
    world.settle()
    epochs = [run.epoch for run in world.service.runs()]
    assert len(set(epochs)) == len(epochs) == 4


def test_many_routers_are_spread_over_the_nodes(world: World) -> None:
    networks = tuple(replace(DESIRED.networks[0], name=f"b{i}", bridge=f"b{i}") for i in range(6))
    routers = tuple(replace(ROUTER, name=f"r{i}", networks=(f"b{i}",)) for i in range(6))
    world.heard()
    world.service.apply(Desired(networks, routers, DESIRED.nodes))
    world.settle()
    assert [len(node.instances) for node in world.nodes.values()] == [3, 3]


def test_what_may_serve_is_not_destroyed_when_the_swap_back_fails(world: World) -> None:
    """The new one serves, the old one is beyond repair: nobody at all would be worse."""
    old = world.serving()
    node = world.nodes["n1"]
    swap = node.kernel.swap

    def breaks_the_old_one(was: InstanceRef, becomes: InstanceRef) -> None:
        swap(was, becomes)
        node.kernel.broken = {"announce", "swap"}

    node.kernel.swap = breaks_the_old_one  # type: ignore[method-assign]
    world.service.restart_network("blue")
    world.settle()
    world.pass_deadlines(20)
    world.settle()
    assert world.last_run()[0] is RunStatus.ROLLED_BACK
    assert world.owner().generation == old.generation + 1
    (view,) = world.service.routers()
    assert view.status is RouterStatus.FAILED
    assert view.reason.startswith("owner-unknown")


def across_nodes(world: World) -> None:
    """A restart from n1 to n2 that has muted the old one, when n2 falls silent."""
    world.serving()
    world.service.apply(replace(DESIRED, routers=(replace(ROUTER, zone="z2"),)))
    world.service.restart_network("blue", RestartOptions(Strategy.PARALLEL))
    world.step()
    world.step()
    assert world.owners() == []
    world.reachable = {"n1"}


def test_an_unmute_of_a_dead_run_is_never_carried_out(world: World) -> None:
    across_nodes(world)
    world.pass_deadlines(20)
    world.settle()
    assert world.last_run()[0] is RunStatus.ROLLED_BACK
    world.reachable = {"n1", "n2"}
    while world.step():
        assert InstanceRef("r1", 2) not in world.owners()


def test_an_unknown_owner_blocks_a_restart_until_its_node_is_heard(world: World) -> None:
    across_nodes(world)
    world.pass_deadlines(20)
    world.settle()
    (view,) = world.service.routers()
    assert (view.status, view.reason.split(":")[0]) == (RouterStatus.FAILED, "owner-unknown")
    world.reachable = {"n1", "n2"}
    world.settle()
    world.heard(3)
    world.settle()
    (view,) = world.service.routers()
    assert (view.status, view.reason) == (RouterStatus.SERVING, "")
    assert world.owners() == [InstanceRef("r1", 3)]
    world.heard(2)
    world.settle()
    assert world.all_instances() == {InstanceRef("r1", 3)}


def test_the_old_one_is_unmuted_once_the_new_one_is_surely_gone(world: World) -> None:
    """Muting the new one never succeeds, destroying it does: that is as good."""
    across_nodes(world)
    world.nodes["n2"].kernel.broken = {"announce", "mute"}
    world.reachable = {"n1", "n2"}
    world.settle()
    world.pass_deadlines(20)
    world.settle()
    assert world.last_run()[0] is RunStatus.ROLLED_BACK
    assert world.owners() == [InstanceRef("r1", 1)]


def test_a_serial_restart_that_cannot_rebuild_the_old_one_says_so(world: World) -> None:
    world.serving()
    world.nodes["n1"].kernel.broken = {"build"}
    world.service.restart_network("blue", RestartOptions(Strategy.SERIAL))
    world.settle()
    assert world.last_run()[0] is RunStatus.ROLLED_BACK
    (view,) = world.service.routers()
    assert view.status is RouterStatus.FAILED
    world.nodes["n1"].kernel.broken = set()
    world.heard(2)
    world.settle()
    assert world.service.routers()[0].status is RouterStatus.SERVING
    assert world.all_instances() == {world.owner()}


def test_an_ended_run_is_kept_without_its_rules_and_reads_as_before(world: World) -> None:
    world.serving()
    run = world.service.restart_network("blue", RestartOptions(Strategy.SERIAL))
    world.settle()
    ended = world.service.run(run.id)
    assert [(s.what, s.node, s.undo) for s in ended.steps] == [
        (s.what, s.node, s.undo) for s in run.steps
    ]
    with world.store.transaction() as tx:
        kept = tx.run(run.id)
        assert kept is not None
        specs = [r.step.spec for r in kept.steps if isinstance(r.step, Build | Destroy)]
        state = tx.router_state("r1")
    assert [spec.networks for spec in specs if spec] == [(), ()]
    assert state is not None
    assert state.applied is not None
    assert state.applied.networks == DESIRED.networks


def test_nodes_speak_only_for_themselves(world: World) -> None:
    world.serving()
    with pytest.raises(InputError, match="n2 speaks for node n1"):
        world.engine.receive(world.nodes["n1"].inventory(), "n2")
    run = world.service.restart_network("blue")
    forged = StepReport(run.id, "r1", run.epoch, "n2", 1, 0, False, Outcome.FAILED, "forged")
    world.engine.receive(codec.encode(forged), "n2")
    assert world.service.run(run.id).status is RunStatus.RUNNING
    assert world.service.events()[-1].kind == "report-refused"


def test_a_tick_with_nothing_due_reads_no_steps(world: World, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    world.serving()
    world.service.restart_network("blue")

    def read(self: Tx, run_id: str, undo: bool) -> None:
        raise AssertionError("steps were read")

    monkeypatch.setattr(Tx, "_records", read)
    world.engine.tick()
    world.service.health()
    world.service.routers()
