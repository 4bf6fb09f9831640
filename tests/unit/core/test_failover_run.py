"""The run that brings a router of a lost node elsewhere, and what loss does to other runs."""

from __future__ import annotations

import pytest

from tests.unit.core.test_run import LIVE, NEW, OLD, Driver, failover, parallel, spec
from vrha.core import plan
from vrha.core.happenings import CheckedIn, NodeLost, Resume, TakenOver, Tick, Withdrawn
from vrha.core.outcome import is_unsettled, outcome_of
from vrha.core.ownership.wanted import Claim, Claimant, claimant_of, wanted_rights
from vrha.model.runs import Run, RunStatus, StepStatus
from vrha.model.state import RouterState
from vrha.model.steps import Build, Confirm, Destroy

SERVING = RouterState("r1", 2, 2, "n1", OLD, spec(OLD, 1))


def promotion() -> Run:
    return plan.promote("run", OLD, plan.Live("n2", spec(NEW)), 3)


def kinds(driver: Driver) -> list[str]:
    return [record.step.kind for batch in driver.dispatched for record in batch.records]


def test_it_is_built_ready_and_takes_over_only_when_told() -> None:
    driver = Driver(failover())
    (built,) = (r.step for r in driver.dispatched[0].records)
    assert isinstance(built, Build)
    assert built.ready
    driver.succeed()
    assert kinds(driver) == ["build"]
    driver.feed(TakenOver(NEW))
    assert kinds(driver) == ["build", "confirm"]
    driver.succeed()
    assert driver.finished == [RunStatus.DONE]
    state = outcome_of(driver.run, SERVING)
    assert (state.node, state.active, state.applied) == ("n2", NEW, spec(NEW))


def test_what_was_kept_ready_needs_no_command_before_it_takes_over() -> None:
    driver = Driver(promotion())
    assert driver.dispatched == []
    driver.feed(TakenOver(NEW))
    driver.succeed()
    assert driver.finished == [RunStatus.DONE]
    state = outcome_of(driver.run, SERVING)
    assert (state.node, state.active, state.applied) == ("n2", NEW, spec(NEW))


def test_a_takeover_before_the_check_in_is_not_believed() -> None:
    driver = Driver(failover())
    driver.feed(TakenOver(NEW))
    assert driver.run.steps[2].status is StepStatus.PENDING


def test_it_is_withdrawn_until_it_has_taken_over() -> None:
    driver = Driver(failover())
    driver.succeed()
    driver.feed(Withdrawn("node-returned", "n1 is back"))
    assert [type(r.step) for r in driver.dispatched[-1].records] == [Destroy]
    driver.to_the_end()
    assert driver.finished == [RunStatus.ROLLED_BACK]
    assert driver.run.reason == "node-returned"
    assert outcome_of(driver.run, SERVING) == SERVING


def test_what_has_taken_over_stays() -> None:
    driver = Driver(failover())
    driver.succeed()
    driver.feed(TakenOver(NEW))
    driver.feed(Withdrawn("node-returned", "n1 is back"))
    assert driver.run.status is RunStatus.RUNNING
    driver.succeed()
    assert driver.finished == [RunStatus.DONE]


def test_it_does_not_wait_for_ever() -> None:
    driver = Driver(promotion())
    driver.now = 1e6
    driver.feed(Tick())
    assert driver.finished == [RunStatus.ROLLED_BACK]


def test_the_next_leader_waits_again_for_the_takeover() -> None:
    driver = Driver(failover())
    driver.succeed()
    driver.feed(Resume())
    assert claimant_of(driver.run) == Claimant("run", NEW, "n2", Claim.NOW)
    driver.feed(TakenOver(NEW))
    assert kinds(driver)[-1] == "confirm"


def test_a_run_that_needs_a_lost_node_rolls_back_at_once_without_it() -> None:
    driver = Driver(parallel("n2"))
    driver.succeed()
    driver.feed(NodeLost("n1"))
    assert driver.run.status is RunStatus.ROLLING_BACK
    while not driver.finished:
        driver.feed(NodeLost("n1"))
    assert driver.finished == [RunStatus.ROLLED_BACK]
    # Nobody knows whether the old one serves, so the new one is left for whoever decides that.
    assert is_unsettled(outcome_of(driver.run, SERVING))
    assert "destroy r1#2 on n2" in driver.run.leftovers[-1]


def test_a_run_that_does_not_need_the_lost_node_goes_on() -> None:
    driver = Driver(parallel("n1"))
    driver.feed(NodeLost("n3"))
    driver.to_the_end()
    assert driver.finished == [RunStatus.DONE]


def test_the_confirmation_is_given_up_when_its_node_is_lost_too() -> None:
    driver = Driver(promotion())
    driver.feed(TakenOver(NEW))
    driver.feed(NodeLost("n2"))
    assert driver.finished == [RunStatus.DONE]
    assert driver.run.leftovers
    assert outcome_of(driver.run, SERVING).node == "n2"


def test_claims_follow_the_run() -> None:
    driver = Driver(failover())
    seen = [claimant_of(driver.run)]
    driver.feed(CheckedIn(NEW))
    seen.append(claimant_of(driver.run))
    driver.feed(TakenOver(NEW))
    seen.append(claimant_of(driver.run))
    assert [each.claim if each else None for each in seen] == [Claim.LATER, Claim.NOW, Claim.MET]
    withdrawn = Driver(failover())
    withdrawn.feed(Withdrawn("node-returned", ""))
    assert claimant_of(withdrawn.run) is None
    assert claimant_of(plan.update("run", LIVE, spec(OLD))) is None


@pytest.mark.parametrize(
    ("claim", "wanted"),
    [
        (None, {"r1/1": "n1"}),
        (Claim.BESIDE, {"r1/1": "n1", "r1/2": "n2"}),
        (Claim.LATER, {"r1/1": "n1"}),
        (Claim.NOW, {"r1/1": "n1"}),
        (Claim.MET, {"r1/2": "n2"}),
    ],
)
def test_rights_that_are_wanted(claim: Claim | None, wanted: dict[str, str]) -> None:
    claimants = [Claimant("run", NEW, "n2", claim)] if claim else []
    assert wanted_rights([SERVING], claimants) == wanted


def test_confirmations_have_time_to_wait_for_the_grant() -> None:
    driver = Driver(promotion())
    driver.feed(TakenOver(NEW))
    (record,) = driver.dispatched[-1].records
    assert isinstance(record.step, Confirm)
    assert record.deadline is not None
    assert record.deadline > 10.0
