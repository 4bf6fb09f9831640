"""The plan of a handover, and what the machine makes of it when any of its steps fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.core.test_run import LIMITS, LIVE, NEW, OLD, Driver, spec
from vrha.core import plan
from vrha.core.happenings import Dispatch, Limits, Resume, StepDone, StepFailed, Tick
from vrha.core.outcome import outcome_of
from vrha.core.steps import describe, node_of, outline, undo_of
from vrha.model.runs import Run, RunKind, RunStatus, StepStatus, Strategy
from vrha.model.spec import InstanceRef
from vrha.model.state import RouterState
from vrha.model.steps import (
    Announce,
    AwaitCheckIn,
    Build,
    Destroy,
    Flip,
    Mute,
    Offer,
    Peer,
    Relay,
    Step,
    Swap,
    Sync,
    Unmute,
    Verify,
)

P1 = Peer("n1", "192.0.2.1:7443", "PEM 1", "secret")
P2 = Peer("n2", "192.0.2.2:7443", "PEM 2", "secret")
HERE = plan.Way(Strategy.HANDOVER, hold=True, max_lost=2)
THERE = plan.Way(Strategy.HANDOVER, max_lost=0, old_peer=P1, new_peer=P2)
STATE = RouterState("r1", 2, 2, "n1", OLD, LIVE.spec)


def on_one_node() -> Run:
    return plan.restart("run", HERE, LIVE, "n1", spec(NEW))


def to_another() -> Run:
    return plan.restart("run", THERE, LIVE, "n2", spec(NEW), RunKind.MOVE)


def steps_of(run: Run) -> list[Step]:
    return [record.step for record in run.steps]


def batches(run: Run) -> list[list[str]]:
    driver, found = Driver(run), []
    while not driver.finished:
        last = driver.dispatched[-1]
        found.append([last.node, *(r.step.kind for r in last.records)])
        driver.succeed()
    assert driver.finished == [RunStatus.DONE]
    return found


def driven_to(run: Run, kind: type[Step]) -> Driver:
    """Everything before the first step of `kind` is done, and that step is sent."""
    driver = Driver(run)
    while not any(isinstance(step, kind) for step in driver.steps()):
        driver.succeed()
    return driver


def failed_at(run: Run, kind: type[Step]) -> Driver:
    """What comes before the step in its batch is reported done, the step failed."""
    driver = driven_to(run, kind)
    batch = driver.dispatched[-1]
    for record in batch.records:
        if isinstance(record.step, kind):
            driver.fail(seq=record.seq)
            break
        driver.feed(StepDone(record.seq, False, batch.attempt))
    return driver


def give_up(driver: Driver, times: int = 1) -> None:
    """The first step of what was sent last fails, as often as it is tried; so the next ones."""
    for _ in range(times * LIMITS.undo_attempts):
        driver.fail(code="node-gone")


def sent_back(driver: Driver) -> list[Step]:
    return [r.step for d in driver.dispatched if d.undo for r in d.records]


# --- the plan -------------------------------------------------------------------------------


def test_on_one_node_everything_is_carried_over_before_one_flip() -> None:
    run = on_one_node()
    assert steps_of(run) == [
        Build("n1", spec(NEW), leases_from=OLD),
        AwaitCheckIn(NEW),
        Sync("n1", OLD, NEW),
        Flip("n1", OLD, NEW, hold=True),
        Verify("n1", OLD, NEW, max_lost=2),
        Destroy("n1", OLD),
    ]
    assert run.point_of_no_return == 5
    assert (run.old, run.new, run.strategy) == (OLD, NEW, Strategy.HANDOVER)
    assert batches(run) == [
        ["n1", "build"],
        ["n1", "sync"],
        ["n1", "flip", "verify"],
        ["n1", "destroy"],
    ]


def test_between_two_nodes_the_old_one_is_offered_to_the_agent_of_the_new_one() -> None:
    run = to_another()
    assert steps_of(run) == [
        Build("n2", spec(NEW)),
        AwaitCheckIn(NEW),
        Offer("n1", OLD, NEW, P2),
        Sync("n2", OLD, NEW, P1),
        Flip("n2", OLD, NEW, from_peer="n1"),
        Verify("n2", OLD, NEW, max_lost=0),
        Destroy("n1", OLD),
    ]
    assert run.point_of_no_return == 6
    assert batches(run) == [
        ["n2", "build"],
        ["n1", "offer"],
        ["n2", "sync"],
        ["n2", "flip", "verify"],
        ["n1", "destroy"],
    ]


def test_others_are_silenced_before_anybody_is_enabled() -> None:
    stranger = Relay("n1", InstanceRef("r1", 0))
    for strategy, first in ((Strategy.PARALLEL, Swap), (Strategy.SERIAL, Mute)):
        way = plan.Way(strategy, silence=(stranger,))
        kinds = [type(s) for s in steps_of(plan.restart("run", way, LIVE, "n1", spec(NEW)))]
        assert kinds[kinds.index(first) - 1] is Relay
    assert undo_of(stranger) == (), "whoever is silenced for that reason is never enabled again"


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_nothing_that_touches_the_old_one_precedes_the_flip(run: Run) -> None:
    kinds = [step.kind for step in steps_of(run)]
    before = steps_of(run)[: kinds.index("flip")]
    assert not any(isinstance(s, Mute | Relay | Destroy | Swap | Unmute) for s in before)
    assert kinds.index("verify") < kinds.index("destroy") == len(kinds) - 1


# --- deadlines and validity -----------------------------------------------------------------


def test_a_sync_has_a_minute_a_flip_twenty_seconds_and_every_other_step_ten() -> None:
    limits = Limits()
    special = {Sync: 60, Flip: 20}
    for run in (on_one_node(), to_another()):
        for record in run.steps:
            assert limits.of(record.step) == special.get(type(record.step), 10)


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_what_can_be_taken_back_expires_with_its_deadline(run: Run) -> None:
    driver = Driver(run)
    driver.now = 1000.0
    while not driver.finished:
        driver.succeed()
    valid = {d.records[0].step.kind: (d.valid_s, d.expires) for d in driver.dispatched[1:]}
    assert valid["sync"] == (60.0, 1060.0)
    assert valid["flip"] == (20.0, 1020.0)
    assert valid["destroy"] == (None, None)


def test_a_sync_without_answer_rolls_back_after_a_minute_and_not_before() -> None:
    driver = driven_to(on_one_node(), Sync)
    driver.now = 59.9
    driver.feed(Tick())
    assert driver.run.status is RunStatus.RUNNING
    driver.now = 60.0
    driver.feed(Tick())
    assert (driver.run.status, driver.run.reason) == (RunStatus.ROLLING_BACK, "no-answer")


def test_the_way_back_holds_for_ever_but_a_destroy_in_doubt() -> None:
    driver = failed_at(on_one_node(), Verify)
    assert (driver.dispatched[-1].valid_s, driver.dispatched[-1].expires) == (None, None)
    driver = failed_at(to_another(), Verify)
    give_up(driver)
    assert driver.steps() == [Destroy("n2", NEW)]
    assert driver.dispatched[-1].valid_s == LIMITS.step_s


# --- the way back ---------------------------------------------------------------------------

BACK_HERE: dict[type[Step], list[Step]] = {
    Build: [Destroy("n1", NEW)],
    Sync: [Destroy("n1", NEW)],
    Flip: [Flip("n1", NEW, OLD), Destroy("n1", NEW)],
    Verify: [Flip("n1", NEW, OLD), Destroy("n1", NEW)],
}
TURN_BACK: list[Step] = [Relay("n2", NEW), Unmute("n1", OLD), Announce("n1", OLD)]
BACK_THERE: dict[type[Step], list[Step]] = {
    Build: [Destroy("n2", NEW)],
    Offer: [Destroy("n2", NEW)],
    Sync: [Destroy("n2", NEW)],
    Flip: [*TURN_BACK, Destroy("n2", NEW)],
    Verify: [*TURN_BACK, Destroy("n2", NEW)],
}
FAILURES = [
    *((on_one_node(), kind, back) for kind, back in BACK_HERE.items()),
    *((to_another(), kind, back) for kind, back in BACK_THERE.items()),
]


@pytest.mark.parametrize(("run", "kind", "back"), FAILURES)
def test_a_failed_step_is_taken_back_with_all_before_it(
    run: Run, kind: type[Step], back: list[Step]
) -> None:
    driver = failed_at(run, kind)
    assert [r.step for r in driver.run.undo] == back
    driver.to_the_end()
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert sent_back(driver) == back
    assert outcome_of(driver.run, STATE) == STATE


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_no_check_in_takes_back_the_build_alone(run: Run) -> None:
    driver = Driver(run)
    driver.feed(StepDone(0, False, 1))
    driver.now = 10.0
    driver.feed(Tick())
    assert [r.step.kind for r in driver.run.undo] == ["destroy"]


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_once_the_old_one_is_being_destroyed_there_is_no_way_back(run: Run) -> None:
    driver = driven_to(run, Destroy)
    for _ in range(LIMITS.forward_attempts):
        driver.fail(code="process-stuck")
    assert driver.finished == [RunStatus.DONE]
    (leftover,) = driver.run.leftovers
    assert leftover == f"destroy {OLD} on n1: process-stuck: it broke"
    after = outcome_of(driver.run, STATE)
    assert (after.active, after.node, after.failed) == (NEW, node_of(run.steps[0].step), "")


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_up_to_the_verification_there_is_a_way_back(run: Run) -> None:
    driver = driven_to(run, Verify)
    batch = driver.dispatched[-1]
    driver.feed(StepDone(batch.records[0].seq, False, batch.attempt))
    driver.fail(seq=batch.records[1].seq)
    assert driver.run.status is RunStatus.ROLLING_BACK


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_a_resumed_run_sends_its_flip_again(run: Run) -> None:
    driver = driven_to(run, Flip)
    driver.feed(Resume())
    assert [s.kind for s in driver.steps()] == ["flip", "verify"]  # type: ignore[attr-defined]
    assert driver.dispatched[-1].attempt == 2
    driver.to_the_end()
    assert driver.finished == [RunStatus.DONE]


# --- a way back that is not confirmed -------------------------------------------------------


def test_a_flip_back_that_is_not_confirmed_leaves_both() -> None:
    driver = failed_at(on_one_node(), Verify)
    give_up(driver)
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert [r.status for r in driver.run.undo] == [StepStatus.ABANDONED] * 2
    assert len(driver.run.leftovers) == 2
    after = outcome_of(driver.run, STATE)
    assert after.failed.startswith(f"owner-unknown: turn the traffic from {NEW} to {OLD} on n1")
    assert after.active == OLD


def test_a_flip_back_without_answer_destroys_nothing_later() -> None:
    driver = failed_at(on_one_node(), Verify)
    first = len(driver.dispatched)
    while not driver.finished:
        driver.now += LIMITS.step_s
        driver.feed(Tick())
    for dispatch in driver.dispatched[first - 1 :]:
        assert dispatch.records[0].step == Flip("n1", NEW, OLD), "before every destroy in a batch"
    assert outcome_of(driver.run, STATE).failed.startswith("owner-unknown")


def test_nobody_speaks_while_the_new_one_may_not_be_silent() -> None:
    driver = failed_at(to_another(), Verify)
    give_up(driver)
    assert driver.steps() == [Destroy("n2", NEW)], "gone is as good as silent"
    give_up(driver)
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert not any(isinstance(s, Unmute | Announce) for s in sent_back(driver))
    assert outcome_of(driver.run, STATE).failed.startswith(f"owner-unknown: silence {NEW}")


def test_a_new_one_that_is_gone_is_as_good_as_silent() -> None:
    driver = failed_at(to_another(), Verify)
    give_up(driver)
    driver.succeed()
    assert driver.steps() == [Unmute("n1", OLD), Announce("n1", OLD)]
    driver.succeed()
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert outcome_of(driver.run, STATE).failed == ""


def test_the_new_one_stays_when_the_old_one_may_not_serve() -> None:
    driver = failed_at(to_another(), Verify)
    driver.succeed()
    assert driver.steps() == [Unmute("n1", OLD), Announce("n1", OLD)]
    give_up(driver, times=2)
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert Destroy("n2", NEW) not in sent_back(driver)
    assert any(left.startswith(f"destroy {NEW} on n2") for left in driver.run.leftovers)
    assert outcome_of(driver.run, STATE).failed.startswith(f"owner-unknown: unmute {OLD}")


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_a_new_one_that_cannot_be_destroyed_is_named_and_leaves_no_doubt(run: Run) -> None:
    driver = failed_at(run, Verify)
    while driver.steps() != [Destroy(node_of(run.steps[0].step), NEW)]:
        batch = driver.dispatched[-1]
        for record in batch.records:
            if isinstance(record.step, Destroy):
                driver.feed(StepFailed(record.seq, True, batch.attempt, "stuck", ""))
                driver.feed(Tick())
            else:
                driver.feed(StepDone(record.seq, True, batch.attempt))
    while not driver.finished:
        driver.fail(code="stuck")
    assert any("stuck" in left for left in driver.run.leftovers)
    assert outcome_of(driver.run, STATE) == STATE


def test_an_announcement_that_fails_leaves_no_doubt() -> None:
    driver = failed_at(to_another(), Verify)
    driver.succeed()
    batch = driver.dispatched[-1]
    driver.feed(StepDone(batch.records[0].seq, True, batch.attempt))
    driver.feed(StepFailed(batch.records[1].seq, True, batch.attempt, "announce-failed", ""))
    driver.feed(Tick())
    give_up(driver)
    driver.to_the_end()
    assert Destroy("n2", NEW) in sent_back(driver)
    assert outcome_of(driver.run, STATE) == STATE


def test_whatever_is_given_up_there_is_never_an_unmute_beside_an_unsilenced_new_one() -> None:
    """Every subset of the steps back fails for good: two owners are impossible, and it ends."""
    for broken in range(2 ** len(BACK_THERE[Verify])):
        driver = failed_at(to_another(), Verify)
        fails = {s for i, s in enumerate(BACK_THERE[Verify]) if broken >> i & 1}
        done: list[Step] = []
        while not driver.finished:
            batch: Dispatch = driver.dispatched[-1]
            for record in batch.records:
                if record.step in fails:
                    driver.feed(StepFailed(record.seq, True, batch.attempt, "broken", ""))
                    driver.feed(Tick())
                    break
                driver.feed(StepDone(record.seq, True, batch.attempt))
                done.append(record.step)
        silent = Relay("n2", NEW), Destroy("n2", NEW)
        if Unmute("n1", OLD) in done:
            assert any(step in done[: done.index(Unmute("n1", OLD))] for step in silent)
        elif Relay("n2", NEW) in done:
            assert Destroy("n2", NEW) not in done
        settled = outcome_of(driver.run, STATE).failed == ""
        assert settled is (Unmute("n1", OLD) in done)


# --- steps as words and as records ----------------------------------------------------------


def test_every_undo_stands_beside_its_step() -> None:
    assert undo_of(Flip("n1", OLD, NEW, hold=True)) == (Flip("n1", NEW, OLD),)
    assert undo_of(Flip("n2", OLD, NEW, from_peer="n1")) == tuple(TURN_BACK)
    quiet = (
        Offer("n1", OLD, NEW, P2),
        Sync("n1", OLD, NEW),
        Verify("n1", OLD, NEW),
        Relay("n1", OLD),
    )
    assert [undo_of(step) for step in quiet] == [()] * 4


def test_what_a_handover_says_of_itself() -> None:
    said = [describe(r.step) for r in on_one_node().steps[2:5]]
    assert said == [
        "carry connections and neighbours of r1#1 into r1#2, and follow them",
        "turn the traffic from r1#1 to r1#2, packets held meanwhile",
        "verify that packets pass through r1#2, at most 2 lost",
    ]
    assert describe(Verify("n1", OLD, NEW)) == "verify that packets pass through r1#2"
    assert describe(Relay("n1", OLD)) == "silence r1#1, which forwards on what still reaches it"


@pytest.mark.parametrize("run", [on_one_node(), to_another()])
def test_an_outline_keeps_words_node_and_undo_and_no_secret(run: Run) -> None:
    for record in run.steps:
        kept = outline(record.step)
        assert describe(kept) == describe(record.step)
        assert node_of(kept) == node_of(record.step)
        assert [describe(s) for s in undo_of(kept)] == [describe(s) for s in undo_of(record.step)]
        assert outline(kept) == kept
        if isinstance(kept, Offer | Sync) and kept.peer is not None:
            assert (kept.peer.certificate, kept.peer.token) == ("", "")


def test_secrets_of_a_peer_are_not_in_its_text() -> None:
    assert "secret" not in repr(replace(THERE))
    assert "PEM" not in repr(to_another())
