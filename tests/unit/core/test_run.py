"""The run machine: every pair of status and event, and every way a run can end."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.core import plan
from vrha.core.happenings import (
    CheckedIn,
    CheckInFailed,
    Dispatch,
    Event,
    Finished,
    Limits,
    NodeLost,
    Resume,
    StepDone,
    StepFailed,
    TakenOver,
    Tick,
    Withdrawn,
)
from vrha.core.run import TRANSITIONS, advance, diagram
from vrha.core.steps import node_of
from vrha.model.runs import Run, RunStatus, StepStatus, Strategy
from vrha.model.spec import InstanceRef, InstanceSpec, Network, PortSpec, Router, Subnet
from vrha.model.steps import Announce, Build, Destroy, Mute, Swap, Unmute

LIMITS = Limits(step_s=10, check_in_s=10, forward_attempts=3, undo_attempts=2, retry_s=0)
OLD, NEW = InstanceRef("r1", 1), InstanceRef("r1", 2)


def spec(ref: InstanceRef, epoch: int = 2) -> InstanceSpec:
    subnet = Subnet(ip_network("10.1.1.0/24"), ip_address("10.1.1.1"))
    network = Network("blue", "br-blue", (subnet,))
    port = PortSpec("n0", "blue", "br-blue", "02:00:00:00:00:01", (ip_interface("10.1.1.1/24"),))
    return InstanceSpec(ref, epoch, Router("r1", ("blue",)), (network,), (port,))


LIVE = plan.Live("n1", spec(OLD, 1))


def parallel(node: str = "n1") -> Run:
    return plan.restart("run", plan.Way(Strategy.PARALLEL), LIVE, node, spec(NEW))


def serial() -> Run:
    return plan.restart("run", plan.Way(Strategy.SERIAL), LIVE, "n1", spec(NEW))


def failover() -> Run:
    return plan.failover("run", OLD, "n2", spec(NEW))


class Driver:
    """Feeds events to a run and remembers what it asked for."""

    def __init__(self, run: Run) -> None:
        self.run, self.now = run, 0.0
        self.dispatched: list[Dispatch] = []
        self.finished: list[RunStatus] = []
        self.feed(Resume())

    def feed(self, event: Event) -> None:
        self.run, effects = advance(self.run, event, self.now, LIMITS)
        for effect in effects:
            if isinstance(effect, Dispatch):
                self.dispatched.append(effect)
            elif isinstance(effect, Finished):
                self.finished.append(effect.status)

    def succeed(self) -> None:
        """All steps of the last batch are reported done; a build checks in."""
        batch = self.dispatched[-1]
        for record in batch.records:
            self.feed(StepDone(record.seq, batch.undo, batch.attempt))
        for record in batch.records:
            if isinstance(record.step, Build) and not batch.undo:
                self.feed(CheckedIn(record.step.spec.ref))

    def fail(self, seq: int | None = None, code: str = "broken") -> None:
        batch = self.dispatched[-1]
        seq = batch.records[0].seq if seq is None else seq
        self.feed(StepFailed(seq, batch.undo, batch.attempt, code, "it broke"))
        self.feed(Tick())

    def steps(self) -> list[object]:
        return [record.step for record in self.dispatched[-1].records]

    def to_the_end(self, rounds: int = 50) -> None:
        for _ in range(rounds):
            if self.finished:
                return
            self.succeed()


def test_parallel_on_one_node_swaps_in_one_batch_and_destroys_in_another() -> None:
    driver = Driver(parallel())
    assert driver.steps() == [Build("n1", spec(NEW), leases_from=OLD)]
    driver.succeed()
    assert driver.steps() == [Swap("n1", OLD, NEW), Announce("n1", NEW)]
    driver.succeed()
    assert driver.steps() == [Destroy("n1", OLD)]
    driver.succeed()
    assert driver.finished == [RunStatus.DONE]


def test_parallel_across_nodes_mutes_before_it_unmutes() -> None:
    driver = Driver(parallel("n2"))
    batches = []
    while not driver.finished:
        batches.append((driver.dispatched[-1].node, driver.steps()))
        driver.succeed()
    assert batches[1:] == [
        ("n1", [Mute("n1", OLD)]),
        ("n2", [Unmute("n2", NEW), Announce("n2", NEW)]),
        ("n1", [Destroy("n1", OLD)]),
    ]


def test_the_check_in_may_overtake_the_report_of_the_build() -> None:
    driver = Driver(parallel())
    driver.feed(CheckedIn(NEW))
    assert driver.steps() == [Swap("n1", OLD, NEW), Announce("n1", NEW)]
    driver.feed(StepDone(0, False, 1))
    assert len(driver.dispatched) == 2


def test_no_check_in_rolls_back_without_touching_the_old_one() -> None:
    driver = Driver(parallel())
    driver.feed(StepDone(0, False, 1))
    driver.now = 10.0
    driver.feed(Tick())
    assert driver.run.status is RunStatus.ROLLING_BACK
    assert driver.run.reason == "no-check-in"
    assert driver.steps() == [Destroy("n1", NEW)]
    driver.succeed()
    assert driver.finished == [RunStatus.ROLLED_BACK]
    touched = [s for d in driver.dispatched for s in (r.step for r in d.records)]
    assert not any(isinstance(s, Swap | Mute | Unmute) for s in touched)


def test_the_way_back_waits_while_nobody_can_be_told() -> None:
    driver = Driver(parallel())
    for driver.now in (10.0, 20.0, 30.0, 500.0, 1000.0):
        driver.feed(Tick(cut_off=True))
    assert driver.run.status is RunStatus.ROLLING_BACK
    assert len(driver.dispatched) == 2
    for driver.now in (1009.9, 1010.0):
        driver.feed(Tick())
    assert [d.attempt for d in driver.dispatched] == [1, 1, 2]
    driver.succeed()
    assert (driver.finished, driver.run.leftovers) == ([RunStatus.ROLLED_BACK], ())


def test_a_lost_node_ends_the_way_back_though_nobody_can_be_told() -> None:
    driver = Driver(parallel())
    for driver.now in (10.0, 20.0):
        driver.feed(Tick(cut_off=True))
    driver.feed(NodeLost("n1"))
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert "node-lost" in driver.run.leftovers[0]


def test_the_way_forward_waits_for_nobody() -> None:
    driver = Driver(parallel())
    driver.succeed()
    driver.succeed()
    assert driver.steps() == [Destroy("n1", OLD)]
    for driver.now in (10.0, 20.0, 30.0):
        driver.feed(Tick(cut_off=True))
    assert driver.finished == [RunStatus.DONE]
    assert "no-answer" in driver.run.leftovers[0]


def test_a_tick_before_the_deadline_changes_nothing() -> None:
    driver = Driver(parallel())
    before = driver.run
    driver.now = 9.9
    driver.feed(Tick())
    assert driver.run == before


def test_an_unfit_replacement_rolls_back_with_the_reason() -> None:
    driver = Driver(parallel())
    driver.feed(CheckInFailed(NEW, "wrong-digest", "kernel has 3 rules"))
    assert driver.run.reason == "wrong-digest"
    driver.succeed()
    assert driver.finished == [RunStatus.ROLLED_BACK]


def test_failure_in_the_switch_swaps_back_announces_and_destroys_the_new() -> None:
    driver = Driver(parallel())
    driver.succeed()
    driver.fail(seq=3)
    driver.to_the_end()
    undone = [r.step for r in driver.run.undo]
    assert undone == [Swap("n1", NEW, OLD), Announce("n1", OLD), Destroy("n1", NEW)]
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert [r.status for r in driver.run.steps[:4]] == [StepStatus.UNDONE] * 4


def test_after_the_point_of_no_return_it_only_goes_forward_and_names_what_is_left() -> None:
    driver = Driver(parallel())
    driver.succeed()
    driver.succeed()
    for _ in range(LIMITS.forward_attempts):
        driver.fail(code="namespace-busy")
    assert driver.finished == [RunStatus.DONE]
    assert driver.run.steps[-1].status is StepStatus.ABANDONED
    assert "namespace-busy" in driver.run.leftovers[0]


def test_attempts_after_a_failure_wait_longer_and_longer() -> None:
    limits = replace(LIMITS, retry_s=1.0)
    run, _ = advance(parallel(), Resume(), 0.0, limits)
    run, _ = advance(run, CheckedIn(NEW), 0.0, limits)
    for seq in (2, 3):
        run, effects = advance(run, StepDone(seq, False, 1), 0.0, limits)
    now, sent_at = 0.0, []
    while not run.status.terminal:
        for effect in effects:
            if isinstance(effect, Dispatch):
                sent_at.append(now)
                failed = StepFailed(4, False, effect.attempt, "busy", "")
                run, _ = advance(run, failed, now, limits)
        now += 0.5
        run, effects = advance(run, Tick(), now, limits)
    assert sent_at == [0.0, 1.0, 3.0]
    assert run.status is RunStatus.DONE
    assert "busy" in run.leftovers[0]


def test_an_orchestrator_that_comes_back_does_not_wait_for_the_old_clock() -> None:
    limits = replace(LIMITS, retry_s=1000.0)
    driver = Driver(serial())
    driver.fail(seq=2)
    undo = driver.dispatched[-1]
    failed = StepFailed(undo.records[0].seq, True, undo.attempt, "busy", "")
    waiting, effects = advance(driver.run, failed, 0.0, limits)
    assert effects == ()
    _, effects = advance(waiting, Resume(), 0.0, limits)
    assert isinstance(effects[0], Dispatch)


def test_serial_failure_rebuilds_the_old_one() -> None:
    driver = Driver(serial())
    driver.fail(seq=2)
    driver.to_the_end()
    assert [r.step for r in driver.run.undo] == [
        Destroy("n1", NEW),
        Build("n1", LIVE.spec),
        Unmute("n1", OLD),
        Announce("n1", OLD),
    ]
    assert driver.finished == [RunStatus.ROLLED_BACK]


def test_undo_is_tried_a_bounded_number_of_times() -> None:
    driver = Driver(parallel())
    driver.fail()
    for _ in range(LIMITS.undo_attempts):
        driver.fail(code="node-gone")
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert "node-gone" in driver.run.leftovers[0]


def mute_given_up() -> Driver:
    """On the way back across nodes; the mute of the new one was never confirmed."""
    driver = Driver(parallel("n2"))
    driver.succeed()
    driver.succeed()
    driver.fail()
    assert driver.steps() == [Mute("n2", NEW)]
    for _ in range(LIMITS.undo_attempts):
        driver.fail(code="no-answer-at-all")
    assert driver.steps() == [Destroy("n2", NEW)]
    return driver


def test_nobody_is_unmuted_when_a_mute_could_not_be_confirmed() -> None:
    driver = mute_given_up()
    for _ in range(LIMITS.undo_attempts):
        driver.fail(code="no-answer-at-all")
    sent = [r.step for d in driver.dispatched if d.undo for r in d.records]
    assert Unmute("n1", OLD) not in sent
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert any("owner-unknown" in leftover for leftover in driver.run.leftovers)


def test_what_is_destroyed_need_not_be_muted() -> None:
    driver = mute_given_up()
    driver.succeed()
    assert driver.steps() == [Unmute("n1", OLD), Announce("n1", OLD)]
    driver.succeed()
    assert driver.finished == [RunStatus.ROLLED_BACK]


def test_what_may_be_the_only_one_to_serve_is_not_destroyed() -> None:
    driver = Driver(parallel())
    driver.succeed()
    driver.fail(seq=3)
    for _ in range(LIMITS.undo_attempts):
        assert driver.steps()[0] == Swap("n1", NEW, OLD)
        driver.fail(code="no-instance")
    for _ in range(LIMITS.undo_attempts):
        assert driver.steps() == [Announce("n1", OLD)]
        driver.fail(code="not-active")
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert [r.status for r in driver.run.undo] == [StepStatus.ABANDONED] * 3


def test_resume_sends_started_steps_again_with_a_new_attempt() -> None:
    driver = Driver(parallel())
    driver.succeed()
    driver.feed(Resume())
    assert [d.attempt for d in driver.dispatched] == [1, 1, 2]
    assert driver.dispatched[2].records[0].step == Swap("n1", OLD, NEW)
    driver.feed(StepDone(2, False, 1))
    assert driver.run.steps[2].status is StepStatus.STARTED, "a report of the first attempt"
    driver.to_the_end()
    assert driver.finished == [RunStatus.DONE]


def test_resume_during_a_roll_back_goes_on_rolling_back() -> None:
    driver = Driver(parallel())
    driver.fail()
    driver.feed(Resume())
    driver.to_the_end()
    assert driver.finished == [RunStatus.ROLLED_BACK]


EVENTS: tuple[Event, ...] = (
    Resume(),
    StepDone(0, False, 1),
    StepFailed(0, False, 1, "broken", ""),
    CheckedIn(NEW),
    CheckInFailed(NEW, "dns-silent", ""),
    TakenOver(NEW),
    Withdrawn("node-returned", ""),
    NodeLost("n1"),
    Tick(),
)


@pytest.mark.parametrize(
    ("status", "event"),
    [
        pair
        for pair in itertools.product(RunStatus, EVENTS)
        if (pair[0], type(pair[1])) not in {(r.status, r.event) for r in TRANSITIONS}
    ],
)
def test_pairs_without_a_row_change_nothing(status: RunStatus, event: Event) -> None:
    run = replace(parallel(), status=status)
    assert advance(run, event, 0.0, LIMITS) == (run, ())


def test_every_row_is_reachable_and_leads_where_it_says() -> None:
    """A walk over all short event sequences meets every row and only the targets it names."""
    seen: dict[tuple[RunStatus, type[Event]], set[RunStatus]] = {}
    frontier = [
        advance(run, Resume(), 0.0, LIMITS)[0] for run in (serial(), parallel(), failover())
    ]
    known: set[Hashable] = set()
    for _ in range(9):
        reached: dict[Hashable, Run] = {}
        for run in frontier:
            for event in events_for(run):
                after, _ = advance(run, event, 1e9, LIMITS)
                seen.setdefault((run.status, type(event)), set()).add(after.status)
                reached[what_differs(after)] = after
        frontier = [run for key, run in reached.items() if key not in known]
        known |= reached.keys()
    for row in TRANSITIONS:
        found = seen[row.status, row.event]
        assert found <= {*row.to, row.status}, row
        assert found & set(row.to), row


def what_differs(run: Run) -> Hashable:
    """All of a run that events change; its long specs they do not."""
    records = [
        (r.status, r.attempt, r.deadline, r.error, type(r.step), node_of(r.step))
        for r in (*run.steps, *run.undo)
    ]
    return (run.status, run.reason, run.detail, run.leftovers, len(run.steps), *records)


def events_for(run: Run) -> list[Event]:
    undo = run.status is RunStatus.ROLLING_BACK
    events: list[Event] = [Tick(), CheckedIn(NEW), CheckInFailed(NEW, "dns-silent", "")]
    events += [TakenOver(NEW), Withdrawn("node-returned", ""), NodeLost("n1")]
    if all(r.attempt < 2 for r in (*run.steps, *run.undo)):
        events.append(Resume())
    for record in run.undo if undo else run.steps:
        if record.status is StepStatus.STARTED:
            events.append(StepDone(record.seq, undo, record.attempt))
            events.append(StepFailed(record.seq, undo, record.attempt, "broken", ""))
            break
    return events


@given(
    st.sampled_from([serial(), parallel(), parallel("n2")]),
    st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 3)), max_size=40),
)
def test_any_order_of_messages_ends_and_keeps_one_owner(
    run: Run, moves: list[tuple[int, bool, int]]
) -> None:
    """Random reports, duplicates and resumes; then silence. It ends, and unmutes only one."""
    run, effects = advance(run, Resume(), 0.0, LIMITS)
    for seq, flag, what in moves:
        attempt = max((r.attempt for r in (*run.steps, *run.undo)), default=1)
        event: Event = (
            StepDone(seq, flag, attempt),
            StepFailed(seq, flag, attempt, "broken", ""),
            CheckedIn(NEW),
            Resume(),
        )[what]
        run, effects = advance(run, event, 0.0, LIMITS)
    for tick in range(1, 200):
        if run.status.terminal:
            break
        run, effects = advance(run, Tick(), tick * 100.0, LIMITS)
    assert run.status.terminal
    after, effects = advance(run, Resume(), 0.0, LIMITS)
    assert (after, effects) == (run, ())


def test_the_diagram_names_every_status() -> None:
    text = diagram()
    for status in RunStatus:
        assert str(status) in text
