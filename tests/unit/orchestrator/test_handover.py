"""Handovers and moves carried through on a real store: what happens when each step fails."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import DESIRED, ROUTER, FakeInstance, World
from vrha import codec
from vrha.core.steps import describe
from vrha.errors import NotFoundError, RefusedError
from vrha.model.evidence import NO_EVIDENCE, Carried, Evidence, Measured
from vrha.model.messages import Outcome, StepReport
from vrha.model.runs import RestartOptions, RunKind, RunStatus, Strategy
from vrha.model.spec import InstanceRef
from vrha.model.state import Activity
from vrha.model.steps import Offer, Sync
from vrha.model.views import RouterStatus

HANDOVER = RestartOptions(Strategy.HANDOVER)
OLD, NEW = InstanceRef("r1", 1), InstanceRef("r1", 2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, preferred=Strategy.HANDOVER)


def status_of(world: World) -> tuple[RouterStatus, str]:
    (view,) = world.service.routers()
    return view.status, view.reason.split(":")[0]


def rest(world: World) -> None:
    """All are heard, twice and more, until nothing moves."""
    for _ in range(6):
        world.heard()
        world.settle()


def test_a_handover_replaces_with_the_same_macs(world: World) -> None:
    old = world.serving()
    macs = world.home_of(old).instances[old].macs
    run = world.service.restart_network("blue", HANDOVER)
    world.settle()
    assert world.service.run(run.id).status is RunStatus.DONE
    assert world.owner() == NEW
    assert world.all_instances() == {NEW}
    assert world.home_of(NEW).instances[NEW].macs == macs
    assert set(world.home_of(NEW).kernel.fdb.values()) == {NEW}


def test_after_a_handover_every_strategy_works(world: World) -> None:
    world.serving()
    for strategy in (*Strategy, *reversed(Strategy)):
        world.service.restart_network("blue", RestartOptions(strategy))
        world.settle()
        assert world.last_run() == (RunStatus.DONE, "")
        assert world.all_instances() == {world.owner()}
        assert world.forwarding() == [world.owner()]


def test_a_move_replaces_on_the_other_node_with_macs_of_its_own(world: World) -> None:
    old = world.serving()
    macs = world.home_of(old).instances[old].macs
    run = world.service.move_router("r1", RestartOptions(node="n2"))
    assert (run.kind, run.strategy) == (RunKind.MOVE, Strategy.HANDOVER)
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")
    assert world.home_of(world.owner()) is world.nodes["n2"]
    assert world.all_instances() == {NEW}
    assert world.home_of(NEW).instances[NEW].macs != macs
    (view,) = world.service.routers()
    assert (view.node, view.status) == ("n2", RouterStatus.SERVING)


# --- every step fails once ------------------------------------------------------------------

STEPS = ("build", "sync", "flip", "verify")


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_that_fails_leaves_the_old_one_serving_and_nothing_else(
    world: World, kind: str
) -> None:
    old = world.serving()
    node = world.home_of(old)
    node.kernel.broken = {kind}
    world.service.restart_network("blue", HANDOVER)
    while world.step():
        assert world.forwarding() != []
        # A flip that never succeeds cannot be taken back either, and must not be thought to be.
    if kind == "flip":
        world.now += 1
        node.kernel.broken = set()
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "broken")
    assert (world.owners(), world.all_instances()) == ([old], {old})
    assert world.forwarding() == [old]
    assert status_of(world) == (RouterStatus.SERVING, "")


@pytest.mark.parametrize("kind", ["build", "offer", "sync", "flip", "verify"])
def test_a_step_of_a_move_that_fails_leaves_the_old_one_serving(world: World, kind: str) -> None:
    old = world.serving()
    for node in world.nodes.values():
        node.kernel.broken = {kind}
    world.service.move_router("r1", RestartOptions(node="n2"))
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "broken")
    assert (world.owners(), world.all_instances()) == ([old], {old})
    assert status_of(world) == (RouterStatus.SERVING, "")


def test_agents_that_do_not_reach_each_other_roll_a_move_back(world: World) -> None:
    old = world.serving()
    world.nodes["n2"].reaches_peers = False
    world.service.move_router("r1", RestartOptions(node="n2"))
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "peer-unreachable")
    assert (world.owners(), world.all_instances()) == ([old], {old})


def test_a_stream_that_breaks_before_the_flip_rolls_a_move_back(world: World) -> None:
    old = world.serving()
    world.service.move_router("r1", RestartOptions(node="n2"))
    while world.nodes["n2"].sessions.syncs == set():
        world.step()
    world.nodes["n1"].restart()
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "no-sync")
    assert (world.owners(), world.all_instances()) == ([old], {old})


def test_a_sync_that_fails_never_touches_the_old_one(world: World) -> None:
    old = world.serving()
    world.home_of(old).kernel.broken = {"sync", "flip"}
    run = world.service.restart_network("blue", HANDOVER)
    world.settle()
    assert [step.kind for step in world.service.run(run.id).undo] == ["destroy"]
    assert world.home_of(old).kernel.fdb == {}


def test_an_old_one_that_cannot_be_destroyed_is_named_and_reaped_later(world: World) -> None:
    old = world.serving()
    node = world.home_of(old)
    node.kernel.broken = {"destroy"}
    run = world.service.restart_network("blue", HANDOVER)
    world.settle()
    ended = world.service.run(run.id)
    assert ended.status is RunStatus.DONE
    assert ended.leftovers == (f"destroy {old} on {node.name}: broken: destroy is broken",)
    assert node.instances[old].activity is Activity.RELAY
    assert world.owner() == NEW
    node.kernel.broken = set()
    rest(world)
    assert world.all_instances() == {NEW}
    assert "stranger-found" not in {event.kind for event in world.service.events()}


# --- roll-backs that cannot be confirmed ----------------------------------------------------


def flipped(world: World) -> InstanceRef:
    """A handover on n1 that has flipped and must turn back, while its node is not reached."""
    old = world.serving()
    world.nodes["n1"].kernel.broken = {"verify"}
    world.service.restart_network("blue", HANDOVER)
    while world.owners() != [NEW]:
        world.step()
    world.reachable = {"n2"}
    return old


def test_after_a_flip_back_without_answer_the_new_one_stays_and_serves(world: World) -> None:
    old = flipped(world)
    world.pass_deadlines(20)
    world.settle()
    assert world.last_run() == (RunStatus.ROLLED_BACK, "broken")
    assert status_of(world) == (RouterStatus.FAILED, "owner-unknown")
    assert world.all_instances() == {old, NEW}
    assert world.owners() == [NEW]


def test_a_flip_back_that_comes_late_does_not_make_two_owners(world: World) -> None:
    """A returning agent says what is there first, then takes what waits for it."""
    flipped(world)
    world.pass_deadlines(20)
    world.settle()
    world.nodes["n1"].kernel.broken = set()
    world.nodes["n1"].restart()
    world.reachable = {"n1", "n2"}
    world.heard(2)
    for _ in range(20):
        world.step()
        assert len(world.owners()) <= 1
        assert world.forwarding() != []
    rest(world)
    assert status_of(world) == (RouterStatus.SERVING, "")
    assert world.all_instances() == {world.owner()}


def moved(world: World) -> InstanceRef:
    """A move from n1 to n2 that has flipped and must turn back."""
    old = world.serving()
    world.nodes["n2"].kernel.broken = {"verify"}
    world.service.move_router("r1", RestartOptions(node="n2"))
    while world.owners() != [NEW]:
        world.step()
    return old


def test_nobody_is_unmuted_while_the_new_one_may_not_be_silent(world: World) -> None:
    old = moved(world)
    world.reachable = {"n1"}
    world.pass_deadlines(20)
    world.settle()
    assert world.owners() == [NEW]
    assert world.nodes["n1"].instances[old].activity is Activity.RELAY
    assert status_of(world) == (RouterStatus.FAILED, "owner-unknown")
    world.reachable = {"n1", "n2"}
    world.nodes["n2"].kernel.broken = set()
    rest(world)
    assert status_of(world) == (RouterStatus.SERVING, "")
    assert world.all_instances() == {world.owner()}


def test_a_destroy_of_what_serves_alone_does_not_come_late(world: World) -> None:
    """The new one serves, unheard; when it is heard again the roll-back was given up long ago."""
    moved(world)
    world.reachable = {"n1"}
    world.pass_deadlines(20)
    world.reachable = {"n1", "n2"}
    while world.step():
        assert world.forwarding() != []
    assert NEW in world.all_instances()
    world.nodes["n2"].kernel.broken = set()
    rest(world)
    assert world.all_instances() == {world.owner()}


def test_the_new_one_is_not_destroyed_until_the_old_one_serves_again(world: World) -> None:
    """Both are silent then, but both forward what their neighbours send."""
    old = moved(world)
    world.reachable = {"n2"}
    for _ in range(20):
        world.settle()
        world.pass_deadlines()
    assert world.all_instances() == {old, NEW}
    assert sorted(world.forwarding()) == [old, NEW]
    (run,) = (r for r in world.service.runs() if r.kind is RunKind.MOVE)
    assert any(left.startswith(f"destroy {NEW} on n2: owner-unknown") for left in run.leftovers)
    world.reachable = {"n1", "n2"}
    world.nodes["n2"].kernel.broken = set()
    rest(world)
    assert status_of(world) == (RouterStatus.SERVING, "")
    assert world.all_instances() == {world.owner()}


@pytest.mark.parametrize("strategy", [Strategy.PARALLEL, Strategy.HANDOVER])
def test_a_late_way_back_on_one_node_makes_no_second_owner(
    world: World, strategy: Strategy
) -> None:
    world.serving()
    node = world.nodes["n1"]
    node.kernel.broken = {"announce", "verify"}
    world.service.restart_network("blue", RestartOptions(strategy))
    while world.owners() != [NEW]:
        world.step()
    world.reachable = {"n2"}
    world.pass_deadlines(20)
    world.reachable = {"n1", "n2"}
    node.kernel.broken = set()
    world.heard()
    for _ in range(20):
        world.step()
        assert len(world.owners()) <= 1
    rest(world)
    assert world.all_instances() == {world.owner()}


# --- what is seen on a node -----------------------------------------------------------------


@pytest.mark.parametrize(("flags", "word"), [((True, True), "relay"), ((False, False), "muted")])
def test_a_named_instance_that_is_silent_is_replaced(
    world: World, flags: tuple[bool, bool], word: str
) -> None:
    old = world.serving()
    world.heard()
    instance = world.nodes["n1"].instances[old]
    instance.active, instance.relay = flags
    world.heard()
    assert world.service.runs(open_only=True) == (), "one inventory may be older than a run"
    world.heard()
    world.settle()
    assert world.owner() == NEW
    assert world.all_instances() == {NEW}
    (missing,) = (e for e in world.service.events() if e.kind == "instance-missing")
    assert missing.detail == f"owner-unknown: {old} is only {word} on n1"


def test_a_named_instance_that_is_damaged_is_replaced(world: World) -> None:
    """It may still answer, so the rebuild takes it for the owner and ends with its end."""
    old = world.serving()
    world.heard()
    world.nodes["n1"].instances[old].damaged = True
    world.heard()
    assert world.service.runs(open_only=True) == (), "one inventory may be older than a run"
    world.heard()
    world.settle()
    assert world.owner() == NEW
    assert world.all_instances() == {NEW}
    (missing,) = (e for e in world.service.events() if e.kind == "instance-missing")
    assert missing.detail == f"owner-unknown: {old} is only partial on n1"


def test_a_relay_that_nothing_names_is_reaped_and_is_no_stranger(world: World) -> None:
    owner = world.serving()
    world.nodes["n2"].instances[InstanceRef("r1", 0)] = FakeInstance(active=True, relay=True)
    world.heard(2)
    world.settle()
    assert world.all_instances() == {owner}
    kinds = {event.kind for event in world.service.events()}
    assert ("orphan-found" in kinds, "stranger-found" in kinds) == (True, False)


def test_evidence_of_a_step_is_kept_and_shown(world: World) -> None:
    world.serving()
    run = world.service.restart_network("blue")
    world.settle()
    for lost in (7, 0):
        measured = Measured("egress", 1767225600.25, 1.0, 250, lost, gaps_ms=((0.0, 1.5),))
        evidence = Evidence((Carried("conntrack", 3, 2, (("exists", 1),)),), (measured,))
        report = StepReport(
            *(run.id, "r1", run.epoch, "n1", 1, 4, False, Outcome.DONE), evidence=evidence
        )
        world.receive(codec.encode(report))
    steps = world.service.run(run.id).steps
    assert [step.kind for step in steps if step.evidence != NO_EVIDENCE] == ["verify"]
    assert steps[4].evidence == evidence


# --- which strategy -------------------------------------------------------------------------


def says(world: World, name: str, capabilities: tuple[str, ...]) -> None:
    world.nodes[name].capabilities = capabilities
    world.heard()


OF_0_1_0 = ("serial", "parallel", "nftables", "iptables")


def test_what_is_preferred_is_taken_where_it_is_possible(world: World) -> None:
    world.serving()
    for strategy in Strategy:
        world.preferred = strategy
        world.restart_orchestrator()
        assert world.service.plan_restart("blue").strategy is strategy
        for asked in Strategy:
            plan = world.service.plan_restart("blue", RestartOptions(asked))
            assert plan.strategy is asked


def test_an_agent_that_knows_no_handover_gets_parallel(world: World) -> None:
    world.serving()
    says(world, "n1", OF_0_1_0)
    assert world.service.restart_network("blue").strategy is Strategy.PARALLEL
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")
    with pytest.raises(RefusedError, match=r"version 0.1.0\) lacks 'handover'") as refused:
        world.service.restart_network("blue", HANDOVER)
    assert refused.value.code == "strategy-impossible"
    assert refused.value.hint == "Without --strategy it would be parallel."


@pytest.mark.parametrize("name", ["n1", "n2"])
def test_a_move_is_parallel_when_one_of_two_agents_knows_no_other(world: World, name: str) -> None:
    world.serving()
    says(world, name, ("serial", "parallel", "handover"))
    run = world.service.move_router("r1", RestartOptions(node="n2"))
    assert (run.kind, run.strategy) == (RunKind.MOVE, Strategy.PARALLEL)
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")
    assert world.home_of(world.owner()) is world.nodes["n2"]


def test_changed_ports_cannot_be_handed_over(world: World) -> None:
    world.serving()
    world.nodes["n1"].kernel.broken = {"build"}
    world.service.apply(replace(DESIRED, routers=(replace(ROUTER, uplink=None, source_nat=()),)))
    world.settle()
    world.nodes["n1"].kernel.broken = set()
    with pytest.raises(RefusedError, match="ports or the rules' backend") as refused:
        world.service.restart_network("blue", HANDOVER)
    assert refused.value.code == "strategy-impossible"
    assert world.service.plan_restart("blue").strategy is Strategy.PARALLEL


def test_an_agent_that_falls_silent_costs_a_handover_nothing(world: World) -> None:
    """Capabilities are what it said last; that it is gone turns out before the old one moves."""
    old = world.serving()
    world.reachable = {"n2"}
    world.service.restart_network("blue", HANDOVER)
    world.settle()
    world.pass_deadlines(10)
    assert world.last_run() == (RunStatus.ROLLED_BACK, "no-answer")
    assert world.owners() == [old]
    assert status_of(world) == (RouterStatus.SERVING, "")


def test_a_handover_needs_to_know_who_serves(world: World) -> None:
    flipped(world)
    world.pass_deadlines(20)
    with pytest.raises(RefusedError) as refused:
        world.service.restart_network("blue", HANDOVER)
    assert refused.value.code == "owner-unknown"
    for node in world.nodes.values():
        node.kernel.broken = {"build"}
    world.reachable = {"n1", "n2"}
    world.heard(2)
    world.settle()
    assert status_of(world) == (RouterStatus.FAILED, "not-restored")
    with pytest.raises(RefusedError, match="not certain which instance serves"):
        world.service.restart_network("blue", HANDOVER)


def test_where_a_router_cannot_be_moved(world: World) -> None:
    world.serving()
    full = replace(DESIRED.nodes[1], capacity=0)
    cases: list[tuple[str, str, str]] = [
        ("r1", "n1", "already-there"),
        ("r1", "n7", "no-such-node"),
        ("r7", "n2", "no-such-router"),
    ]
    for router, node, code in cases:
        with pytest.raises((NotFoundError, RefusedError)) as error:
            world.service.move_router(router, RestartOptions(node=node))
        assert error.value.code == code
    world.service.apply(replace(DESIRED, nodes=(DESIRED.nodes[0], full)))
    for ask in (world.service.plan_move, world.service.move_router):
        with pytest.raises(RefusedError, match="n2 cannot host router r1: full") as refused:
            ask("r1", RestartOptions(node="n2"))
        assert refused.value.code == "no-node"
    assert len(world.service.runs()) == 1


def test_a_restart_takes_no_node_that_does_not_fit(world: World) -> None:
    world.serving()
    with pytest.raises(NotFoundError) as unknown:
        world.service.restart_network("blue", RestartOptions(node="n7"))
    assert unknown.value.code == "no-such-node"
    full = replace(DESIRED.nodes[1], capacity=0)
    world.service.apply(replace(DESIRED, nodes=(DESIRED.nodes[0], full)))
    with pytest.raises(RefusedError, match="full"):
        world.service.restart_network("blue", RestartOptions(node="n2"))


# --- what is shown --------------------------------------------------------------------------


def test_a_dry_run_shows_the_exact_steps_with_their_undo(world: World) -> None:
    world.serving()
    plan = world.service.plan_move("r1", RestartOptions(node="n2", max_lost=3))
    assert [(s.node, s.what, s.undo) for s in plan.steps] == [
        ("n2", "build r1#2, muted", "destroy r1#2"),
        ("", "wait for the check-in of r1#2", ""),
        ("n1", "offer r1#1 to n2", ""),
        ("n2", "carry connections and neighbours of r1#1 into r1#2, and follow them", ""),
        (
            "n2",
            "turn the traffic from r1#1 to r1#2",
            "silence r1#2, which forwards on what still reaches it; unmute r1#1 on n1; "
            "announce r1#1 (gratuitous ARP, unsolicited NA) on n1",
        ),
        ("n2", "verify that packets pass through r1#2, at most 3 lost", ""),
        ("n1", "destroy r1#1", ""),
    ]
    held = world.service.plan_restart("blue", replace(HANDOVER, hold=True))
    assert [(s.what, s.undo) for s in held.steps if s.kind == "flip"] == [
        (
            "turn the traffic from r1#1 to r1#2, packets held meanwhile",
            "turn the traffic from r1#2 to r1#1",
        )
    ]
    assert plan.point_of_no_return == 6
    assert world.service.runs()[0].kind is RunKind.CREATE, "nothing was started"


def test_tokens_and_certificates_are_nowhere_once_they_are_used(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.serving()
    run = world.service.move_router("r1", RestartOptions(node="n2"))
    with world.store.transaction() as tx:
        started = tx.run(run.id)
    assert started is not None
    peers = [r.step.peer for r in started.steps if isinstance(r.step, Offer | Sync)]
    (one, other) = (peer for peer in peers if peer is not None)
    assert (one.node, other.node) == ("n2", "n1")
    assert one.token == other.token
    assert len(one.token) > 40
    secrets = (one.token, "PEM of")
    assert not any(secret in repr(started) for secret in secrets)
    world.settle()
    shown = repr(world.service.run(run.id)) + repr(world.service.events()) + caplog.text
    with world.store.transaction() as tx:
        ended = tx.run(run.id)
    assert ended is not None
    kept = [r.step.peer for r in ended.steps if isinstance(r.step, Offer | Sync)]
    assert [(p.certificate, p.token) for p in kept if p] == [("", "")] * 2
    assert [describe(r.step) for r in ended.steps] == [describe(r.step) for r in started.steps]
    assert not any(secret in shown for secret in secrets)
    world.store.close()
    kept_bytes = b"".join(file.read_bytes() for file in world.folder.glob("store.db"))
    assert one.token.encode() not in kept_bytes


def test_two_moves_have_two_tokens(world: World) -> None:
    world.serving()
    tokens = set()
    for node in ("n2", "n1"):
        run = world.service.move_router("r1", RestartOptions(node=node))
        with world.store.transaction() as tx:
            started = tx.run(run.id)
        assert started is not None
        tokens |= {r.step.peer.token for r in started.steps if isinstance(r.step, Offer)}
        world.settle()
    assert len(tokens) == 2
