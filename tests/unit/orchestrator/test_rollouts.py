"""Rollouts over twenty routers on a real store: canary, limits, kills, drains, resumes."""

from __future__ import annotations

import copy
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from sqlalchemy import event

from tests.unit.orchestrator.world import World
from vrha import codec
from vrha.bus.topology import MAX_DOWN
from vrha.errors import InputError, NotFoundError, RefusedError
from vrha.model.evidence import Evidence, Measured
from vrha.model.messages import Command, StepReport
from vrha.model.rollouts import (
    Member,
    MemberStatus,
    RolloutKind,
    RolloutRequest,
    RolloutStatus,
    RolloutView,
    StopReason,
)
from vrha.model.runs import RestartOptions, RunKind, RunStatus, Strategy
from vrha.model.spec import Desired, Network, Node, Router, Subnet
from vrha.orchestrator import reconcile
from vrha.orchestrator.app import is_over

COUNT = 20
NAMES = tuple(f"r{number:02}" for number in range(COUNT))
NODES = (Node("n1", "z1"), Node("n2", "z2"), Node("n3", "z2"))
ALL = RolloutRequest(RolloutKind.RESTART)
DRAIN = RolloutRequest(RolloutKind.DRAIN, node="n1")
PLAIN = RestartOptions(Strategy.PARALLEL)


def fleet_of(count: int) -> Desired:
    networks = tuple(
        Network(
            f"net{number:02}",
            f"br{number}",
            (Subnet(ip_network(f"10.{number}.0.0/24"), ip_address(f"10.{number}.0.1")),),
        )
        for number in range(count)
    )
    routers = tuple(Router(f"r{number:02}", (f"net{number:02}",)) for number in range(count))
    return Desired(networks, routers, NODES)


class Fleet(World):
    """Twenty routers on three nodes; messages of different nodes arrive in any order."""

    def __init__(self, folder: Path, like: Fleet | None = None) -> None:
        """`like`: a fleet whose store was copied into `folder`."""
        super().__init__(folder)
        self.random = random.Random(7)
        self.add_node("n3")
        if like is None:
            self.heard()
            self.service.apply(fleet_of(COUNT))
            self.settle()
        else:
            for name, node in self.nodes.items():
                node.kernel.instances |= copy.deepcopy(like.nodes[name].instances)
            self.heard()
        self.most_at_once = 0
        self.heard_at = time.monotonic()

    most_at_once = 0
    heard_at = 0.0

    def step(self) -> bool:
        """Deliver one command, of any node, and its answers; False when there was none."""
        if time.monotonic() - self.heard_at > 2.0:
            self.heard_at = time.monotonic()
            self.heard()
        self.most_at_once = max(self.most_at_once, self.running())
        with self.store.transaction() as tx:
            rows = [r for r in tx.outbox.unsent(1000) if r.node in self.reachable]
            rows = [r for r in rows if not is_over(r, self.now)]
            firsts = {row.node: row for row in reversed(rows)}
            if not firsts:
                return False
            row = self.random.choice(sorted(firsts.values(), key=lambda r: r.id))
            tx.outbox.mark_sent([row.id])
        command = codec.decode_message(row.body, MAX_DOWN)
        assert isinstance(command, Command)
        for body in self.nodes[row.node].take(command):
            self.receive(body)
        return True

    def settle(self) -> None:
        for _ in range(2000):
            if not self.step():
                self.engine.tick()
                if not self.step():
                    return
        raise AssertionError("the fleet does not come to rest")

    def running(self) -> int:
        with self.store.transaction() as tx:
            return len(tx.open_run_ids())

    def until(self, rollout_id: str, done: int) -> None:
        """Until so many members are done."""
        for _ in range(2000):
            if self.counts(rollout_id)[MemberStatus.DONE] >= done:
                return
            if not self.step():
                self.engine.tick()
        raise AssertionError("it does not come so far")

    def counts(self, rollout_id: str) -> Counter[MemberStatus]:
        return Counter(m.status for m in self.service.rollout(rollout_id).members)

    def homes(self) -> dict[str, str]:
        return {view.name: view.node for view in self.service.routers()}

    def carry_out(self, request: RolloutRequest) -> RolloutView:
        self.most_at_once = 0
        begun = self.service.start_rollout(request)
        self.settle()
        return self.service.rollout(begun.id)

    def lose_probes(self, node: str, lost: int) -> None:
        """From now on every report of a done step on `node` says that probes were lost."""
        take = self.nodes[node].take

        def losing(command: Command) -> list[bytes]:
            return [_with_loss(body, lost) for body in take(command)]

        self.nodes[node].take = losing  # type: ignore[method-assign]

    def forget_handovers(self) -> None:
        """The agents are of a version that knows none."""
        for node in self.nodes.values():
            node.capabilities = ("serial", "parallel")
        self.heard()

    def break_builds_of(self, node: str, *routers: str) -> Callable[[], None]:
        """Builds of these routers on `node` fail until the returned function is called."""
        kernel = self.nodes[node].kernel
        build = kernel.build

        def picky(spec, *given):  # type: ignore[no-untyped-def]
            kernel.broken = {"build"} if spec.ref.router in routers else set()
            try:
                return build(spec, *given)
            finally:
                kernel.broken = set()

        kernel.build = picky  # type: ignore[method-assign]

        def mend() -> None:
            kernel.build = build  # type: ignore[method-assign]

        return mend


def _with_loss(body: bytes, lost: int) -> bytes:
    message = codec.decode_message(body)
    if not isinstance(message, StepReport) or message.seq != 0:
        return body
    stream = Measured("through", 0.0, 1.0, 1000, lost)
    return codec.encode(replace(message, evidence=Evidence(measured=(stream,))))


def statuses(rollout: RolloutView) -> Counter[MemberStatus]:
    return Counter(member.status for member in rollout.members)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Twenty routers that serve: built once, for it takes longer than most tests."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    fleet.store.close()
    return fleet


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine under load must not make nodes look silent; tests say which are."""
    monkeypatch.setattr(reconcile, "SILENT_AFTER_S", 600.0)


@pytest.fixture
def fleet(serving: Fleet, tmp_path: Path) -> Iterator[Fleet]:
    shutil.copytree(serving.folder, tmp_path / "copy")
    fleet = Fleet(tmp_path / "copy", serving)
    yield fleet
    fleet.store.close()


def test_all_are_restarted_four_at_a_time(fleet: Fleet) -> None:
    before = fleet.all_instances()
    ended = fleet.carry_out(ALL)
    assert (ended.status, ended.reason) == (RolloutStatus.DONE, "")
    assert [m.router for m in ended.members] == list(NAMES)
    assert statuses(ended) == {MemberStatus.DONE: COUNT}
    assert not fleet.all_instances() & before
    assert len(fleet.owners()) == COUNT
    assert fleet.most_at_once == 4
    member = ended.members[3]
    run = fleet.service.run(member.run)
    assert (run.kind, run.router, run.status) == (RunKind.RESTART, "r03", RunStatus.DONE)
    assert (member.old, member.new) == (run.old, run.new)
    assert member.from_node == member.to_node == fleet.homes()["r03"]
    assert (member.lost, member.strategy) == (None, Strategy.PARALLEL)
    assert (member.started_at, member.ended_at) == (run.started_at, run.ended_at)


def test_the_first_is_alone_until_it_is_done(fleet: Fleet) -> None:
    rollout = fleet.service.start_rollout(ALL)
    while fleet.counts(rollout.id)[MemberStatus.DONE] == 0:
        assert fleet.running() == 1
        assert fleet.step()
    assert fleet.running() == 4
    members = fleet.service.rollout(rollout.id).members
    assert [m.router for m in members if m.status is MemberStatus.RUNNING] == list(NAMES[1:5])


@pytest.mark.parametrize("done", [0, 1, 7, 19])
def test_a_killed_orchestrator_goes_on_where_it_was(fleet: Fleet, done: int) -> None:
    rollout = fleet.service.start_rollout(ALL)
    fleet.until(rollout.id, done)
    runs_before = {m.router: m.run for m in fleet.service.rollout(rollout.id).members if m.run}
    fleet.restart_orchestrator()
    fleet.heard()
    fleet.settle()
    ended = fleet.service.rollout(rollout.id)
    assert ended.status is RolloutStatus.DONE
    assert statuses(ended) == {MemberStatus.DONE: COUNT}
    assert fleet.most_at_once <= 4
    runs = {m.router: m.run for m in ended.members}
    assert runs | runs_before == runs
    assert len(fleet.service.runs(limit=1000)) == 2 * COUNT
    assert len(fleet.all_instances()) == COUNT


def test_after_a_start_nothing_new_starts_before_the_nodes_were_heard(fleet: Fleet) -> None:
    """They all look silent then, and every router would be refused."""
    rollout = fleet.service.start_rollout(ALL)
    with fleet.store.transaction() as tx:
        for node in NODES:
            tx.node_silent(node.name)
    fleet.heard_at = float("inf")
    fleet.restart_orchestrator()
    fleet.settle()
    waiting = fleet.service.rollout(rollout.id)
    assert waiting.status is RolloutStatus.RUNNING
    assert statuses(waiting) == {MemberStatus.DONE: 1, MemberStatus.PENDING: COUNT - 1}
    for name in ("n1", "n2"):
        fleet.receive(fleet.nodes[name].inventory())
        assert fleet.running() == 0
    fleet.receive(fleet.nodes["n3"].inventory())
    assert fleet.running() == 4
    fleet.settle()
    assert fleet.service.rollout(rollout.id).status is RolloutStatus.DONE


def test_while_nobody_is_heard_it_waits(fleet: Fleet) -> None:
    with fleet.store.transaction() as tx:
        for node in NODES:
            tx.node_silent(node.name)
    rollout = fleet.service.start_rollout(ALL)
    assert statuses(rollout) == {MemberStatus.PENDING: COUNT}
    fleet.heard()
    fleet.now += 1.0
    fleet.settle()
    assert fleet.service.rollout(rollout.id).status is RolloutStatus.DONE


def test_kills_all_along(fleet: Fleet) -> None:
    rollout = fleet.service.start_rollout(ALL)
    for _ in range(2000):
        if not fleet.service.rollout(rollout.id).status.open:
            break
        for _ in range(fleet.random.randint(0, 6)):
            fleet.step()
        fleet.restart_orchestrator()
        fleet.heard()
    assert fleet.service.rollout(rollout.id).status is RolloutStatus.DONE
    assert fleet.most_at_once <= 4
    assert len(fleet.all_instances()) == COUNT


def test_only_one_zone(fleet: Fleet) -> None:
    homes = fleet.homes()
    mine = [name for name in NAMES if homes[name] == "n1"]
    assert 0 < len(mine) < COUNT
    ended = fleet.carry_out(replace(ALL, zone="z1"))
    assert [m.router for m in ended.members] == mine
    assert ended.status is RolloutStatus.DONE


def test_a_canary_that_fails_stops_all_and_resume_takes_it_up_again(fleet: Fleet) -> None:
    before = fleet.all_instances()
    mend = fleet.break_builds_of(fleet.homes()["r00"], "r00")
    stopped = fleet.carry_out(ALL)
    assert (stopped.status, stopped.reason) == (RolloutStatus.STOPPED, StopReason.CANARY_FAILED)
    assert statuses(stopped) == {MemberStatus.ROLLED_BACK: 1, MemberStatus.PENDING: COUNT - 1}
    assert stopped.members[0].reason == "broken"
    assert fleet.all_instances() == before
    mend()
    fleet.service.resume_rollout(stopped.id)
    assert fleet.running() == 1
    fleet.settle()
    ended = fleet.service.rollout(stopped.id)
    assert (ended.status, ended.round) == (RolloutStatus.DONE, 2)
    assert statuses(ended) == {MemberStatus.DONE: COUNT}


def test_a_roll_back_stops_after_what_has_begun(fleet: Fleet) -> None:
    fleet.break_builds_of(fleet.homes()["r05"], "r05")
    stopped = fleet.carry_out(ALL)
    assert (stopped.status, stopped.reason) == (RolloutStatus.STOPPED, StopReason.ROLLED_BACK)
    found = statuses(stopped)
    assert found[MemberStatus.ROLLED_BACK] == 1
    assert found[MemberStatus.RUNNING] == 0
    assert found[MemberStatus.PENDING] >= COUNT - 10
    assert "r05" in stopped.detail
    assert len(fleet.owners()) == COUNT


def test_keep_going_does_the_others_and_says_what_is_left(fleet: Fleet) -> None:
    mend = fleet.break_builds_of(fleet.homes()["r05"], "r05")
    ended = fleet.carry_out(replace(ALL, keep_going=True))
    assert (ended.status, ended.reason) == (RolloutStatus.STOPPED, StopReason.INCOMPLETE)
    assert statuses(ended) == {MemberStatus.DONE: COUNT - 1, MemberStatus.ROLLED_BACK: 1}
    mend()
    fleet.service.resume_rollout(ended.id)
    fleet.settle()
    assert fleet.service.rollout(ended.id).status is RolloutStatus.DONE


def test_lost_probes_stop_it(fleet: Fleet) -> None:
    for node in ("n1", "n2", "n3"):
        fleet.lose_probes(node, 2)
    stopped = fleet.carry_out(replace(ALL, stop_on_lost=9))
    assert (stopped.status, stopped.reason) == (RolloutStatus.STOPPED, StopReason.TOO_MANY_LOST)
    done = statuses(stopped)[MemberStatus.DONE]
    assert 5 <= done <= 8
    assert {m.lost for m in stopped.members if m.ended} == {2}
    (brief,) = fleet.service.rollouts()
    assert (brief.lost, dict(brief.counts)[MemberStatus.DONE]) == (2 * done, done)


def test_stop_and_resume_on_request(fleet: Fleet) -> None:
    rollout = fleet.service.start_rollout(ALL)
    fleet.until(rollout.id, 3)
    with pytest.raises(RefusedError) as refused:
        fleet.service.resume_rollout(rollout.id)
    assert refused.value.code == "not-stopped"
    assert fleet.service.stop_rollout(rollout.id).status is RolloutStatus.STOPPING
    with pytest.raises(RefusedError) as refused:
        fleet.service.stop_rollout(rollout.id)
    assert refused.value.code == "not-running"
    fleet.restart_orchestrator()
    fleet.heard()
    fleet.settle()
    stopped = fleet.service.rollout(rollout.id)
    assert (stopped.status, stopped.reason) == (RolloutStatus.STOPPED, StopReason.ASKED)
    assert 3 <= statuses(stopped)[MemberStatus.DONE] <= 7
    fleet.service.resume_rollout(rollout.id)
    fleet.settle()
    assert fleet.service.rollout(rollout.id).status is RolloutStatus.DONE
    assert len(fleet.service.runs(limit=1000)) == 2 * COUNT


def test_a_second_one_over_the_same_routers_is_refused(fleet: Fleet) -> None:
    first = fleet.service.start_rollout(ALL)
    with pytest.raises(RefusedError, match=first.id) as refused:
        fleet.service.start_rollout(DRAIN)
    assert refused.value.code == "rollout-in-progress"
    assert not any(node.draining for node in fleet.service.nodes())
    fleet.service.stop_rollout(first.id)
    fleet.settle()
    second = fleet.service.start_rollout(DRAIN)
    with pytest.raises(RefusedError, match=second.id):
        fleet.service.resume_rollout(first.id)
    fleet.settle()
    assert fleet.service.rollout(second.id).status is RolloutStatus.DONE


def test_two_over_different_routers_may_run(fleet: Fleet) -> None:
    one = fleet.service.start_rollout(replace(ALL, zone="z1"))
    other = fleet.service.start_rollout(replace(ALL, zone="z2"))
    fleet.settle()
    ended = [fleet.service.rollout(each.id).status for each in (one, other)]
    assert ended == [RolloutStatus.DONE, RolloutStatus.DONE]


def test_somebody_elses_run_is_waited_for(fleet: Fleet) -> None:
    homes = fleet.homes()
    fleet.reachable = {"n1", "n2", "n3"} - {homes["r02"]}
    foreign = fleet.service.restart_network("net02", PLAIN)
    fleet.reachable = {"n1", "n2", "n3"}
    rollout = fleet.service.start_rollout(ALL)
    assert rollout.members[0].status is MemberStatus.RUNNING
    fleet.settle()
    ended = fleet.service.rollout(rollout.id)
    assert ended.status is RolloutStatus.DONE
    assert ended.members[2].run != foreign.id
    assert fleet.service.run(foreign.id).status is RunStatus.DONE


def test_routers_that_vanish_are_skipped(fleet: Fleet) -> None:
    rollout = fleet.service.start_rollout(ALL)
    fleet.until(rollout.id, 1)
    whole = fleet_of(COUNT)
    fleet.service.apply(replace(whole, routers=whole.routers[:18]))
    fleet.settle()
    ended = fleet.service.rollout(rollout.id)
    assert ended.status is RolloutStatus.DONE
    assert statuses(ended) == {MemberStatus.DONE: 18, MemberStatus.SKIPPED: 2}
    assert {m.reason for m in ended.members[18:]} == {"no-such-router"}


def test_a_strategy_that_cannot_be_is_refused_for_each(fleet: Fleet) -> None:
    fleet.forget_handovers()
    ended = fleet.carry_out(replace(ALL, options=RestartOptions(Strategy.HANDOVER)))
    assert (ended.status, ended.reason) == (RolloutStatus.STOPPED, StopReason.INCOMPLETE)
    assert statuses(ended) == {MemberStatus.REFUSED: COUNT}
    assert {m.reason for m in ended.members} == {"strategy-impossible"}


# --- drain -----------------------------------------------------------------------------------


def test_a_drained_node_is_empty_and_stays_so(fleet: Fleet) -> None:
    mine = [name for name, node in fleet.homes().items() if node == "n1"]
    ended = fleet.carry_out(DRAIN)
    assert ended.status is RolloutStatus.DONE
    assert [m.router for m in ended.members] == mine
    assert fleet.nodes["n1"].instances == {}
    assert {(m.from_node, m.to_node) for m in ended.members} <= {("n1", "n2"), ("n1", "n3")}
    assert {fleet.service.run(m.run).kind for m in ended.members} == {RunKind.MOVE}
    assert {m.strategy for m in ended.members} == {Strategy.HANDOVER}
    assert Counter(fleet.homes().values()) == {"n2": 10, "n3": 10}
    assert [n.draining for n in fleet.service.nodes()] == [True, False, False]
    assert fleet.carry_out(replace(ALL, keep_going=True)).status is RolloutStatus.DONE
    assert fleet.nodes["n1"].instances == {}


def test_agents_that_know_no_handover_are_drained_all_the_same(fleet: Fleet) -> None:
    fleet.forget_handovers()
    ended = fleet.carry_out(DRAIN)
    assert ended.status is RolloutStatus.DONE
    assert {m.strategy for m in ended.members} == {Strategy.PARALLEL}
    assert fleet.nodes["n1"].instances == {}


def test_nothing_is_placed_on_a_drained_node_until_it_is_undrained(fleet: Fleet) -> None:
    fleet.carry_out(DRAIN)
    with pytest.raises(RefusedError, match="draining") as refused:
        fleet.service.move_router("r00", RestartOptions(node="n1"))
    assert refused.value.code == "no-node"
    whole = fleet_of(COUNT + 1)
    fleet.service.apply(whole)
    fleet.settle()
    assert fleet.homes()["r20"] != "n1"
    assert not fleet.service.undrain("n1").draining
    fleet.service.move_router("r00", RestartOptions(node="n1"))
    fleet.settle()
    assert fleet.homes()["r00"] == "n1"


def test_a_drain_never_goes_to_a_draining_or_silent_node(fleet: Fleet) -> None:
    fleet.carry_out(replace(DRAIN, node="n2"))
    fleet.reachable -= {"n3"}
    with fleet.store.transaction() as tx:
        tx.node_silent("n3")
    mine = [name for name, node in fleet.homes().items() if node == "n1"]
    ended = fleet.carry_out(DRAIN)
    assert (ended.status, ended.reason) == (RolloutStatus.STOPPED, StopReason.INCOMPLETE)
    assert statuses(ended) == {MemberStatus.REFUSED: len(mine)}
    assert ended.members[0].reason == "no-node"
    for why in ("n1: draining", "n2: draining", "n3: silent"):
        assert why in ended.members[0].detail
    assert set(mine) == {name for name, node in fleet.homes().items() if node == "n1"}
    fleet.reachable |= {"n3"}
    fleet.heard()
    fleet.service.resume_rollout(ended.id)
    fleet.settle()
    assert fleet.service.rollout(ended.id).status is RolloutStatus.DONE
    assert fleet.nodes["n1"].instances == {}


def test_what_does_not_fit_is_refused_and_the_rest_moves(fleet: Fleet) -> None:
    homes = Counter(fleet.homes().values())
    nodes = (NODES[0], Node("n2", "z2", capacity=homes["n2"] + 2))
    nodes += (Node("n3", "z2", capacity=homes["n3"] + 1),)
    fleet.service.apply(replace(fleet_of(COUNT), nodes=nodes))
    ended = fleet.carry_out(DRAIN)
    assert (ended.status, ended.reason) == (RolloutStatus.STOPPED, StopReason.INCOMPLETE)
    assert statuses(ended) == {MemberStatus.DONE: 3, MemberStatus.REFUSED: homes["n1"] - 3}
    assert "n2: full, n3: full" in ended.members[-1].detail
    assert len(fleet.owners()) == COUNT


def test_a_killed_orchestrator_drains_on(fleet: Fleet) -> None:
    rollout = fleet.service.start_rollout(DRAIN)
    fleet.until(rollout.id, 2)
    fleet.restart_orchestrator()
    fleet.heard()
    fleet.settle()
    assert fleet.service.rollout(rollout.id).status is RolloutStatus.DONE
    assert fleet.nodes["n1"].instances == {}


def test_what_left_by_itself_is_skipped(fleet: Fleet) -> None:
    mine = [name for name, node in fleet.homes().items() if node == "n1"]
    rollout = fleet.service.start_rollout(DRAIN)
    fleet.service.move_router(mine[-1], RestartOptions(node="n2"))
    fleet.settle()
    ended = fleet.service.rollout(rollout.id)
    assert ended.status is RolloutStatus.DONE
    assert (ended.members[-1].status, ended.members[-1].reason) == (
        MemberStatus.SKIPPED,
        "not-there",
    )


def test_what_is_about_to_arrive_leaves_as_well(fleet: Fleet) -> None:
    comes = next(name for name, node in fleet.homes().items() if node == "n2")
    fleet.service.move_router(comes, RestartOptions(node="n1"))
    rollout = fleet.service.start_rollout(DRAIN)
    assert comes in {m.router for m in rollout.members}
    fleet.settle()
    assert fleet.service.rollout(rollout.id).status is RolloutStatus.DONE
    assert fleet.nodes["n1"].instances == {}


def test_an_empty_node_is_drained_at_once(fleet: Fleet) -> None:
    fleet.carry_out(DRAIN)
    again = fleet.service.start_rollout(DRAIN)
    assert (again.status, again.members) == (RolloutStatus.DONE, ())


def test_a_node_is_not_undrained_while_it_is_being_drained(fleet: Fleet) -> None:
    rollout = fleet.service.start_rollout(DRAIN)
    with pytest.raises(RefusedError, match=rollout.id):
        fleet.service.undrain("n1")


# --- plans and bad input ---------------------------------------------------------------------


def test_a_plan_starts_nothing_and_is_what_would_happen(fleet: Fleet) -> None:
    before, events = fleet.all_instances(), len(fleet.service.events(limit=1000))
    plan = fleet.service.plan_rollout(DRAIN)
    assert len(fleet.service.events(limit=1000)) == events
    assert not fleet.service.rollouts()
    assert not any(node.draining for node in fleet.service.nodes())
    assert not fleet.step()
    assert fleet.all_instances() == before
    runs = {m.router: m.run for m in plan.members}
    ended = fleet.carry_out(DRAIN)
    for member in ended.members:
        planned = runs[member.router]
        assert planned is not None
        assert planned.steps[0].node == member.to_node
        assert (planned.new, planned.kind) == (member.new, RunKind.MOVE)
    assert fleet.homes() != {}


def test_a_plan_says_who_is_busy_and_who_is_refused(fleet: Fleet) -> None:
    fleet.forget_handovers()
    run = fleet.service.restart_network("net03", PLAIN)
    plan = fleet.service.plan_rollout(replace(ALL, options=RestartOptions(Strategy.HANDOVER)))
    why = {m.router: (m.reason, m.detail) for m in plan.members if m.run is None}
    assert why["r03"] == ("run-in-progress", f"it waits for run {run.id}")
    assert why["r04"][0] == "strategy-impossible"


@pytest.mark.parametrize(
    ("request_", "error", "code"),
    [
        (replace(ALL, zone="nowhere"), NotFoundError, "no-such-zone"),
        (replace(DRAIN, node="n9"), NotFoundError, "no-such-node"),
        (replace(DRAIN, node=""), InputError, "rollout-request"),
        (replace(DRAIN, zone="z1"), InputError, "rollout-request"),
        (replace(ALL, node="n1"), InputError, "rollout-request"),
        (replace(ALL, options=RestartOptions(node="n1")), InputError, "rollout-request"),
        (replace(ALL, max_parallel=0), InputError, "rollout-request"),
    ],
)
def test_bad_requests_start_nothing(
    fleet: Fleet, request_: RolloutRequest, error: type[InputError], code: str
) -> None:
    for ask in (fleet.service.start_rollout, fleet.service.plan_rollout):
        with pytest.raises(error) as raised:
            ask(request_)
        assert raised.value.code == code
    assert not fleet.service.rollouts()


def test_unknown_ids_and_nodes(fleet: Fleet) -> None:
    for ask in (
        fleet.service.rollout,
        fleet.service.stop_rollout,
        fleet.service.resume_rollout,
        fleet.service.undrain,
    ):
        with pytest.raises(NotFoundError):
            ask("nothing")


def test_a_tick_reads_no_specification(fleet: Fleet) -> None:
    """However many routers wait: only what starts is read in full."""
    fleet.service.start_rollout(ALL)
    statements: list[str] = []
    fleet.engine.tick()
    event.listen(fleet.store._db, "before_cursor_execute", lambda *a: statements.append(a[2]))
    for _ in range(3):
        fleet.now += 1.5
        fleet.engine.tick()
    assert any("rollout_members" in text for text in statements)
    large = ("routers.applied", "standbys.standby_spec", "desired.body", "FROM steps")
    assert not [text for text in statements if any(part in text for part in large)]
    assert len(statements) < 30


def test_members_are_views_as_well(fleet: Fleet) -> None:
    """What the API shows is what is kept."""
    view = fleet.service.start_rollout(ALL)
    with fleet.store.transaction() as tx:
        assert tx.rollouts.members(view.id) == view.members
    assert codec.decode(RolloutView, codec.encode(view)) == view
    assert isinstance(view.members[0], Member)
