"""Runs carried through on a real store, with nodes that answer, fail, lie or are silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import DESIRED, ROUTER, WITH_NAT, FakeInstance, World
from vrha import codec
from vrha.core.happenings import Limits
from vrha.errors import InputError, NotFoundError, RefusedError
from vrha.model.messages import CheckIn
from vrha.model.runs import RestartOptions, RunStatus, Strategy
from vrha.model.spec import Desired, InstanceRef, Node
from vrha.model.state import RulesDigest
from vrha.model.views import RouterStatus


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_apply_creates_and_a_restart_replaces(world: World) -> None:
    old = world.serving()
    run = world.service.restart_network("blue", RestartOptions(Strategy.PARALLEL))
    world.settle()
    assert world.owner() == InstanceRef("r1", old.generation + 1)
    assert world.all_instances() == {world.owner()}
    assert world.service.run(run.id).status is RunStatus.DONE
    (view,) = world.service.routers()
    assert (view.status, view.instance) == (RouterStatus.SERVING, str(world.owner()))


def test_serial_replaces_as_well(world: World) -> None:
    old = world.serving()
    world.service.restart_network("blue", RestartOptions(Strategy.SERIAL))
    world.settle()
    assert world.owner().generation == old.generation + 1
    assert world.all_instances() == {world.owner()}


def test_a_second_run_is_refused_with_the_id_of_the_first(world: World) -> None:
    world.serving()
    first = world.service.restart_network("blue")
    with pytest.raises(RefusedError, match=first.id) as refused:
        world.service.restart_network("blue")
    assert refused.value.code == "run-in-progress"
    world.settle()
    world.service.restart_network("blue")


def test_a_plan_changes_nothing(world: World) -> None:
    old = world.serving()
    plan = world.service.plan_restart("blue")
    assert plan.steps[0].what.startswith("build")
    assert plan.point_of_no_return == len(plan.steps) - 1
    world.settle()
    assert world.owner() == old
    assert world.service.restart_network("blue").epoch == plan.epoch


def test_unknown_networks_and_runs(world: World) -> None:
    world.serving()
    with pytest.raises(NotFoundError, match="no network red"):
        world.service.restart_network("red")
    with pytest.raises(NotFoundError):
        world.service.run("nonsense")


def test_a_failing_build_leaves_the_old_one_and_nothing_else(world: World) -> None:
    old = world.serving()
    world.nodes["n1"].kernel.broken = {"build"}
    world.service.restart_network("blue")
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "broken")
    assert world.all_instances() == {old}
    assert world.owner() == old


def test_no_check_in_by_the_deadline_rolls_back(tmp_path: Path) -> None:
    world = World(tmp_path, Limits(check_in_s=0.0))
    node = world.nodes["n1"]
    for other in world.nodes.values():
        world.receive(other.inventory())
    world.service.apply(DESIRED)
    world.settle()
    old = world.owner()
    node.checks_in = False
    world.service.restart_network("blue")
    world.settle()
    world.engine.tick()
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "no-check-in")
    assert world.all_instances() == {old}


WRONG: list[tuple[str, Callable[[CheckIn], CheckIn], bool]] = [
    ("wrong-token", lambda m: replace(m, token="guessed"), False),
    ("wrong-epoch", lambda m: replace(m, epoch=m.epoch - 1), False),
    ("wrong-node", lambda m: replace(m, node="n2"), False),
    ("wrong-instance", lambda m: replace(m, instance=InstanceRef("r1", 1)), False),
    (
        "wrong-digest",
        lambda m: replace(m, self_test=replace(m.self_test, rules=RulesDigest(1, "00"))),
        True,
    ),
    ("dns-silent", lambda m: replace(m, self_test=replace(m.self_test, dns_answered=False)), True),
]


@pytest.mark.parametrize(("reason", "change", "ends"), WRONG, ids=[w[0] for w in WRONG])
def test_a_wrong_check_in_is_refused_logged_and_counted(
    world: World, reason: str, change: Callable[[CheckIn], CheckIn], ends: bool
) -> None:
    old = world.serving()
    world.nodes["n1"].change_check_in = change
    run = world.service.restart_network("blue")
    world.settle()
    assert world.owner() == old
    refused = [e for e in world.service.events() if e.kind == "check-in-refused"]
    assert [e.reason for e in refused] == [reason]
    assert world.service.health().check_ins_refused == 1
    assert f'reason="{reason}"' in world.service.metrics().decode()
    status = world.service.run(run.id).status
    assert status is (RunStatus.ROLLED_BACK if ends else RunStatus.RUNNING)


def test_a_token_serves_once(world: World) -> None:
    world.serving()
    proofs: list[CheckIn] = []

    def keep(message: CheckIn) -> CheckIn:
        proofs.append(message)
        return message

    world.nodes["n1"].change_check_in = keep
    run = world.service.restart_network("blue")
    world.step()
    world.receive(codec.encode(proofs[0]))
    reasons = [e.reason for e in world.service.events() if e.kind == "check-in-refused"]
    assert reasons == ["wrong-token"]
    world.settle()
    assert world.service.run(run.id).status is RunStatus.DONE


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("crash_after", range(6))
def test_a_killed_orchestrator_takes_up_its_runs(
    world: World, strategy: Strategy, crash_after: int
) -> None:
    world.serving()
    run = world.service.restart_network("blue", RestartOptions(strategy))
    for _ in range(crash_after):
        world.step()
    world.restart_orchestrator()
    world.settle()
    assert world.service.run(run.id).status is RunStatus.DONE
    assert world.all_instances() == {world.owner()}


def test_every_message_twice_is_as_good_as_once(world: World) -> None:
    world.serving()
    receive = world.receive

    def twice(body: bytes) -> None:
        receive(body)
        receive(body)

    world.receive = twice  # type: ignore[method-assign]
    world.service.restart_network("blue")
    world.settle()
    assert world.last_run()[0] is RunStatus.DONE
    assert world.all_instances() == {world.owner()}


def test_a_change_of_rules_is_done_in_place_and_of_ports_by_a_restart(world: World) -> None:
    old = world.serving()
    nat = replace(DESIRED, routers=(WITH_NAT,))
    result = world.service.apply(nat)
    world.settle()
    assert [world.service.run(r).kind for r in result.runs] == ["update"]
    assert world.owner() == old
    assert world.service.apply(nat).runs == ()
    internal = replace(DESIRED, routers=(replace(ROUTER, uplink=None, source_nat=()),))
    result = world.service.apply(internal)
    world.settle()
    assert [world.service.run(r).kind for r in result.runs] == ["restart"]
    assert world.owner().generation == old.generation + 1


def test_after_a_rolled_back_restart_changes_are_made_in_place(world: World) -> None:
    """The restart has raised the epoch on the node, though nothing came of it."""
    old = world.serving()
    (node,) = (node for node in world.nodes.values() if old in node.instances)
    node.kernel.broken = {"build"}
    world.service.restart_network("blue")
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "broken")
    node.kernel.broken = {"configure"}
    wanted = replace(DESIRED, routers=(WITH_NAT,))
    world.service.apply(wanted)
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "broken")
    (view,) = world.service.routers()
    assert (view.status, view.reason.split(":")[0]) == (RouterStatus.SERVING, "not-applied")
    node.kernel.broken = set()
    world.service.apply(wanted)
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")
    (view,) = world.service.routers()
    assert (world.owner(), view.reason) == (old, "")


def test_an_inventory_counts_though_a_router_cannot_be_restarted_now(world: World) -> None:
    """One that must be, but fits no node, keeps nobody from being placed."""
    world.serving()
    for node in world.nodes.values():
        node.kernel.broken = {"build"}
    internal = replace(ROUTER, uplink=None, source_nat=())
    lost = replace(ROUTER, name="r2", networks=("green",), zone="z3")
    networks = (*DESIRED.networks, replace(DESIRED.networks[0], name="green"))
    full = tuple(replace(node, capacity=0) for node in DESIRED.nodes)
    third = Node("n3", "z3")
    world.service.apply(Desired(networks, (internal,), DESIRED.nodes))
    world.settle()
    world.add_node("n3")
    with world.store.transaction() as tx:
        tx.put_desired(Desired(networks, (replace(internal, zone="z1"), lost), (*full, third)))
    world.receive(world.nodes["n3"].inventory())
    world.settle()
    assert [view.node for view in world.service.routers()] == ["n1", "n3"]


def test_a_removed_router_goes_and_its_epoch_is_remembered(world: World) -> None:
    world.serving()
    (before,) = world.service.routers()
    world.service.apply(Desired(DESIRED.networks, (), DESIRED.nodes))
    world.settle()
    assert world.all_instances() == set()
    world.service.apply(DESIRED)
    world.settle()
    (after,) = world.service.routers()
    assert after.epoch > before.epoch + 1


def test_an_apply_that_leads_elsewhere_waits_for_the_open_run(world: World) -> None:
    world.serving()
    run = world.service.restart_network("blue")
    assert world.service.apply(DESIRED).runs == ()
    with pytest.raises(RefusedError, match=run.id):
        world.service.apply(replace(DESIRED, routers=(WITH_NAT,)))
    assert world.service.desired() == DESIRED


def test_without_a_node_the_router_waits_and_is_placed_when_one_is_heard(world: World) -> None:
    world.service.apply(DESIRED)
    (view,) = world.service.routers()
    assert view.status is RouterStatus.FAILED
    assert "no-node" in view.reason
    assert "silent" in view.reason
    world.receive(world.nodes["n2"].inventory())
    world.settle()
    (view,) = world.service.routers()
    assert (view.status, view.node) == (RouterStatus.SERVING, "n2")


def test_routers_applied_together_are_spread(world: World) -> None:
    """Those of one apply count, before any of them serves; so does a run that is under way."""
    for node in world.nodes.values():
        world.receive(node.inventory())
    names = ("green", "red", "grey")
    others = tuple(replace(DESIRED.networks[0], name=name) for name in names)
    routers = tuple(replace(ROUTER, name=f"r-{n.name}", networks=(n.name,)) for n in others)
    world.service.apply(Desired(others, routers[:2], DESIRED.nodes))
    world.service.apply(Desired(others, routers, DESIRED.nodes))
    world.settle()
    assert sorted(len(node.instances) for node in world.nodes.values()) == [1, 2]


def test_a_full_node_restarts_what_it_hosts_and_one_without_capacity_gives_it_away(
    world: World,
) -> None:
    old = world.serving()
    (home,) = (name for name, node in world.nodes.items() if old in node.instances)
    for capacity, stays in ((1, True), (0, False)):
        nodes = tuple(
            replace(node, capacity=capacity) if node.name == home else node
            for node in DESIRED.nodes
        )
        assert world.service.apply(replace(DESIRED, nodes=nodes)).runs == ()
        world.service.restart_network("blue")
        world.settle()
        (view,) = world.service.routers()
        assert (view.node == home) is stays


def test_an_orphan_is_removed_when_it_was_seen_twice(world: World) -> None:
    owner = world.serving()
    node = world.nodes["n1"]
    orphan = InstanceRef("r1", 0)
    node.instances[orphan] = FakeInstance()
    world.receive(node.inventory())
    assert world.settle() is None
    assert orphan in node.instances
    world.receive(node.inventory())
    world.settle()
    assert world.all_instances() == {owner}


def test_active_and_unknown_instances_are_left_alone(world: World) -> None:
    owner = world.serving()
    node = world.nodes["n1"]
    stranger, active = InstanceRef("r9", 1), InstanceRef("r1", 0)
    node.instances.update({stranger: FakeInstance(), active: FakeInstance(active=True)})
    for _ in range(3):
        world.receive(node.inventory())
    world.settle()
    assert world.all_instances() == {owner, stranger, active}
    told = [e.detail for e in world.service.events() if e.kind == "stranger-found"]
    assert told == ["r1#0 is active and nothing names it"]


def test_a_failed_create_says_why_and_the_next_apply_tries_again(world: World) -> None:
    world.nodes["n1"].kernel.broken = {"build"}
    for node in world.nodes.values():
        world.receive(node.inventory())
    world.service.apply(DESIRED)
    world.settle()
    (view,) = world.service.routers()
    assert (view.status, "broken" in view.reason) == (RouterStatus.FAILED, True)
    world.nodes["n1"].kernel.broken = set()
    world.service.apply(DESIRED)
    world.settle()
    assert world.service.routers()[0].status is RouterStatus.SERVING


def test_what_is_no_message_is_refused(world: World) -> None:
    for body in (b"", b"{}", b'{"type":"check-in"}', b"[" * 100, b"\xff\xfe"):
        with pytest.raises(InputError):
            world.engine.receive(body, "n1")


def test_what_a_reboot_took_away_is_built_again(world: World) -> None:
    owner = world.serving()
    world.heard()
    world.nodes["n1"].instances.clear()
    world.nodes["n1"].restart()
    world.heard()
    world.settle()
    assert world.all_instances() == set(), "one inventory may be older than the last run"
    world.heard()
    world.settle()
    assert world.owner().generation > owner.generation
    (view,) = world.service.routers()
    assert (view.status, view.instance) == (RouterStatus.SERVING, str(world.owner()))
    assert "instance-missing" in {event.kind for event in world.service.events()}


def test_nothing_is_missed_during_a_run(world: World) -> None:
    world.serving()
    world.service.restart_network("blue", RestartOptions(Strategy.SERIAL))
    world.nodes["n1"].instances.clear()
    world.heard(3)
    world.settle()
    assert "instance-missing" not in {event.kind for event in world.service.events()}
