"""Rollouts: the first router alone, never too many at once, stops, resumes, always ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.core.rollout import again, lost_in, next_actions, resumed
from vrha.model.evidence import Evidence, Measured
from vrha.model.rollouts import (
    Member,
    MemberStatus,
    Rollout,
    RolloutKind,
    RolloutRequest,
    RolloutStatus,
    StopReason,
)
from vrha.model.runs import Strategy

NAMES = tuple(f"r{number:02}" for number in range(12))
NOBODY: frozenset[str] = frozenset()


def a_rollout(
    max_parallel: int = 3, stop_on_lost: int | None = None, keep_going: bool = False
) -> Rollout:
    request = RolloutRequest(
        RolloutKind.RESTART, "", "", max_parallel, stop_on_lost, keep_going=keep_going
    )
    return Rollout("x1", request, Strategy.PARALLEL)


def members(*statuses: str, lost: int | None = None) -> list[Member]:
    known = [MemberStatus(status) for status in statuses]
    return [
        Member(name, status, int(status is not MemberStatus.PENDING), lost=lost)
        for name, status in zip(NAMES, known, strict=False)
    ]


def test_the_first_goes_alone() -> None:
    decision = next_actions(a_rollout(), members("pending", "pending"), NOBODY)
    assert (decision.status, decision.start) == (RolloutStatus.RUNNING, ("r00",))
    assert next_actions(a_rollout(), members("running", "pending"), NOBODY).start == ()


def test_after_it_as_many_as_are_allowed() -> None:
    some = members("done", "running", "pending", "pending", "pending", "pending")
    assert next_actions(a_rollout(3), some, NOBODY).start == ("r02", "r03")
    assert next_actions(a_rollout(1), some, NOBODY).start == ()


def test_a_refused_or_skipped_canary_proves_nothing() -> None:
    some = members("refused", "skipped", "pending", "pending")
    assert next_actions(a_rollout(), some, NOBODY).start == ("r02",)


def test_somebody_elses_run_is_waited_for() -> None:
    some = members("done", "pending", "pending", "pending")
    busy = frozenset({"r01", "r03"})
    assert next_actions(a_rollout(), some, busy).start == ("r02",)
    waiting = next_actions(a_rollout(), members("done", "pending"), busy)
    assert (waiting.status, waiting.start) == (RolloutStatus.RUNNING, ())


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_canary_that_is_rolled_back_ends_it(keep_going: bool) -> None:
    some = members("rolled_back", "pending")
    decision = next_actions(a_rollout(keep_going=keep_going), some, NOBODY)
    assert (decision.status, decision.reason) == (RolloutStatus.STOPPED, StopReason.CANARY_FAILED)
    assert decision.start == ()


def test_the_first_roll_back_stops_unless_told_to_go_on() -> None:
    some = members("done", "rolled_back", "running", "pending")
    stopped = next_actions(a_rollout(), some, NOBODY)
    assert (stopped.status, stopped.reason) == (RolloutStatus.STOPPING, StopReason.ROLLED_BACK)
    assert "r01" in stopped.detail
    assert next_actions(a_rollout(keep_going=True), some, NOBODY).start == ("r03",)


def test_too_many_lost_stops() -> None:
    some = [*members("done", "done", lost=3), Member("r02")]
    assert next_actions(a_rollout(stop_on_lost=6), some, NOBODY).start == ("r02",)
    stopped = next_actions(a_rollout(stop_on_lost=5), some, NOBODY)
    assert (stopped.status, stopped.reason) == (RolloutStatus.STOPPED, StopReason.TOO_MANY_LOST)
    assert "6 probes lost, 5 allowed" in stopped.detail


def test_a_new_round_counts_from_nothing() -> None:
    some = [*members("done", "rolled_back", lost=9), Member("r02")]
    stopped = next_actions(a_rollout(stop_on_lost=5), some, NOBODY)
    assert stopped.status is RolloutStatus.STOPPED
    taken_up = resumed(replace(a_rollout(stop_on_lost=5), status=RolloutStatus.STOPPED))
    decision = next_actions(taken_up, [again(member) for member in some], NOBODY)
    assert (decision.status, decision.start) == (RolloutStatus.RUNNING, ("r01",))


def test_a_stop_waits_for_what_has_begun() -> None:
    stopping = replace(a_rollout(), status=RolloutStatus.STOPPING, reason="asked")
    waits = next_actions(stopping, members("done", "running", "pending"), NOBODY)
    assert (waits.status, waits.start) == (RolloutStatus.STOPPING, ())
    ends = next_actions(stopping, members("done", "done", "pending"), NOBODY)
    assert (ends.status, ends.reason) == (RolloutStatus.STOPPED, "asked")


def test_done_means_that_nothing_is_left() -> None:
    assert next_actions(a_rollout(), [], NOBODY).status is RolloutStatus.DONE
    over = next_actions(a_rollout(), members("done", "skipped"), NOBODY)
    assert (over.status, over.reason) == (RolloutStatus.DONE, "")
    left = next_actions(a_rollout(), members("done", "refused"), NOBODY)
    assert (left.status, left.reason) == (RolloutStatus.STOPPED, StopReason.INCOMPLETE)
    assert left.detail.startswith("1 of 2 routers are not done: r01")


def test_what_has_ended_stays_ended() -> None:
    for status in (RolloutStatus.DONE, RolloutStatus.STOPPED):
        ended = replace(a_rollout(), status=status, reason="why")
        decision = next_actions(ended, members("pending"), NOBODY)
        assert (decision.status, decision.reason, decision.start) == (status, "why", ())


def test_lost_is_what_was_measured() -> None:
    stream = Measured("in", 0.0, 1.0, 100, 2)
    nothing = replace(stream, lost=99, unavailable="no neighbour")
    assert lost_in([Evidence(measured=(stream, stream)), Evidence(measured=(nothing,))]) == 4
    assert lost_in([Evidence(measured=(nothing,)), Evidence()]) is None


OUTCOMES = st.sampled_from(["done", "done", "done", "rolled_back", "refused", "skipped"])


class Simulation:
    """What an orchestrator would do, with outcomes and interleavings drawn at random."""

    def __init__(self, data: st.DataObject, rollout: Rollout, count: int) -> None:
        self.draw = data.draw
        self.rollout = rollout
        self.members = {name: Member(name) for name in NAMES[:count]}
        self.started: list[str] = []

    def turn(self) -> None:
        busy = self.draw(st.sets(st.sampled_from(NAMES), max_size=3))
        foreign = {n for n in busy if self.draw(st.booleans())}
        running = {n for n, m in self.members.items() if m.status is MemberStatus.RUNNING}
        self.decide(frozenset(foreign | running))
        self.end_some()

    def decide(self, busy: frozenset[str]) -> None:
        rollout, before = self.rollout, list(self.members.values())
        decision = next_actions(rollout, before, busy)
        assert not set(decision.start) & busy
        assert not decision.start or decision.status is RolloutStatus.RUNNING
        for name in decision.start:
            assert self.members[name].status is MemberStatus.PENDING
            outcome = self.draw(OUTCOMES)
            status = MemberStatus.RUNNING if outcome in ("done", "rolled_back") else outcome
            self.members[name] = Member(name, MemberStatus(status), rollout.round, run=outcome)
        self.rollout = replace(rollout, status=decision.status, reason=decision.reason)
        self.check_limits(decision.start, before)

    def check_limits(self, started: tuple[str, ...], before: list[Member]) -> None:
        rollout = self.rollout
        at_once = [m for m in self.members.values() if m.status is MemberStatus.RUNNING]
        assert len(at_once) <= rollout.request.max_parallel
        proved = [m for m in before if m.status == "done" and m.round == rollout.round]
        if not proved:
            assert len(at_once) <= 1
        failed = [m for m in before if m.status == "rolled_back" and m.round == rollout.round]
        lost = sum(m.lost or 0 for m in before if m.round == rollout.round)
        if failed and not rollout.request.keep_going:
            assert not started
        if rollout.request.stop_on_lost is not None and lost > rollout.request.stop_on_lost:
            assert not started

    def end_some(self) -> None:
        for name, member in self.members.items():
            if member.status is MemberStatus.RUNNING and self.draw(st.booleans()):
                lost = self.draw(st.none() | st.integers(0, 3))
                self.members[name] = replace(member, status=MemberStatus(member.run), lost=lost)

    def run_out(self) -> None:
        """No luck is needed to come to an end: all runs end, nobody else is busy."""
        for _ in range(3 * len(self.members) + 3):
            self.decide(NOBODY)
            if not self.rollout.status.open:
                return
            for name, member in self.members.items():
                if member.status is MemberStatus.RUNNING:
                    self.members[name] = replace(member, status=MemberStatus(member.run))
        raise AssertionError("the rollout does not end")

    def check_end(self) -> None:
        statuses = {m.status for m in self.members.values()}
        assert MemberStatus.RUNNING not in statuses
        over = {MemberStatus.DONE, MemberStatus.SKIPPED}
        assert (self.rollout.status is RolloutStatus.DONE) == (statuses <= over)
        assert (self.rollout.status is RolloutStatus.DONE) == (self.rollout.reason == "")


@given(
    st.data(),
    st.integers(1, 5),
    st.none() | st.integers(0, 4),
    st.booleans(),
    st.integers(0, len(NAMES)),
)
def test_limits_hold_and_it_ends(
    data: st.DataObject, parallel: int, lost: int | None, keep_going: bool, count: int
) -> None:
    simulation = Simulation(data, a_rollout(parallel, lost, keep_going), count)
    for _ in range(data.draw(st.integers(0, 8))):
        simulation.turn()
    simulation.run_out()
    simulation.check_end()


@given(st.data(), st.integers(1, 5), st.integers(0, len(NAMES)))
def test_resuming_often_enough_gets_everything_done(
    data: st.DataObject, parallel: int, count: int
) -> None:
    simulation = Simulation(data, a_rollout(parallel, 2), count)
    simulation.run_out()
    done_before = {n for n, m in simulation.members.items() if m.status is MemberStatus.DONE}
    for _ in range(2):
        if simulation.rollout.status is RolloutStatus.STOPPED:
            simulation.rollout = resumed(simulation.rollout)
            simulation.members = {n: again(m) for n, m in simulation.members.items()}
            first = next_actions(simulation.rollout, list(simulation.members.values()), NOBODY)
            assert len(first.start) == 1
            simulation.run_out()
            simulation.check_end()
    assert all(simulation.members[n].status is MemberStatus.DONE for n in done_before)
