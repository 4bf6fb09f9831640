"""What a standby needs, what the runs for it consist of, and what is true afterwards."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.core.test_instance import DESIRED, ROUTER
from vrha.core import plan
from vrha.core.happenings import Limits, Resume, StepFailed
from vrha.core.instance import instance_spec
from vrha.core.outcome import outcome_of
from vrha.core.ownership.wanted import claimant_of
from vrha.core.placement import Candidate
from vrha.core.run import advance
from vrha.core.standby import Need, Seen, is_in_sync, need, place_standby, standby_of
from vrha.model.runs import Run, RunStatus, StepStatus
from vrha.model.spec import InstanceRef, Node, Policy, Router
from vrha.model.state import Activity, Following, ObservedInstance, RouterState
from vrha.model.steps import Build, Destroy, Offer, Peer, Sync

ACTIVE, STANDBY, NEXT = (InstanceRef("r1", number) for number in (1, 2, 3))
WANTED = replace(ROUTER, policy=Policy.STANDBY)
SPEC = instance_spec(DESIRED, WANTED, STANDBY, 2)
LIVE = plan.Live("n1", instance_spec(DESIRED, WANTED, ACTIVE, 1))
STATE = RouterState("r1", 3, 2, "n1", ACTIVE, LIVE.spec, "", STANDBY, "n2", SPEC)
ALONE = replace(STATE, standby=None, standby_node="", standby_spec=None)
FOLLOWING = Following(ACTIVE, 5, 10, 2.0)
THERE = ObservedInstance(STANDBY, 2, Activity.MUTED, True, FOLLOWING)


def of(router: Router | None, state: RouterState, *found: ObservedInstance) -> Need:
    wanted = instance_spec(DESIRED, router, NEXT, 4) if router else None
    return need(router, state, wanted, Seen(True, found))


def test_one_in_sync_needs_nothing() -> None:
    assert of(WANTED, STATE, THERE) is Need.NOTHING
    assert is_in_sync(STATE, THERE)


def test_what_is_wanted_and_not_there_is_built_and_what_is_not_wanted_goes() -> None:
    assert of(WANTED, ALONE) is Need.BUILD
    assert of(ROUTER, ALONE) is Need.NOTHING
    assert of(ROUTER, STATE, THERE) is Need.REMOVE
    assert of(None, STATE, THERE) is Need.REMOVE


@pytest.mark.parametrize("following", [None, replace(FOLLOWING, old=NEXT)])
def test_who_follows_nobody_or_somebody_else_is_synced(following: Following | None) -> None:
    assert of(WANTED, STATE, replace(THERE, follows=following)) is Need.FOLLOW


def test_remains_are_built_anew() -> None:
    assert of(WANTED, STATE) is Need.BUILD
    assert of(WANTED, STATE, replace(THERE, activity=Activity.PARTIAL)) is Need.BUILD


def test_on_the_serving_node_or_a_lost_one_it_is_of_no_use() -> None:
    assert of(WANTED, replace(STATE, node="n2"), THERE) is Need.BUILD
    wanted = instance_spec(DESIRED, WANTED, NEXT, 4)
    assert need(WANTED, STATE, wanted, Seen(False, (THERE,))) is Need.BUILD


def test_nothing_is_concluded_from_an_inventory_that_may_be_older() -> None:
    wanted = instance_spec(DESIRED, WANTED, NEXT, 4)
    assert need(WANTED, STATE, wanted, Seen(True, None)) is Need.NOTHING


def test_other_rules_are_configured_and_other_ports_are_built() -> None:
    routed = replace(WANTED, source_nat=(ip_address("203.0.113.10"),))
    assert of(routed, STATE, THERE) is Need.CONFIGURE
    assert of(replace(WANTED, networks=("blue",)), STATE, THERE) is Need.BUILD


def test_while_nobody_serves_for_sure_it_is_left_alone() -> None:
    assert of(WANTED, replace(STATE, active=None), THERE) is Need.NOTHING
    assert of(WANTED, replace(STATE, failed="owner-unknown: x")) is Need.NOTHING
    assert of(WANTED, STATE, replace(THERE, activity=Activity.ACTIVE)) is Need.NOTHING


def test_another_zone_goes_before_a_node_with_less_load() -> None:
    near, far, full = Node("n2", "z1"), Node("n3", "z2"), Node("n4", "z2", capacity=0)
    here = Candidate(Node("n1", "z1"), 1, heard=True)
    found = [here, Candidate(near, 0, heard=True), Candidate(far, 9, heard=True)]
    assert place_standby(WANTED, found, "n1").node == "n3"
    found[2] = Candidate(full, 9, heard=True)
    assert place_standby(WANTED, found, "n1").node == "n2"
    assert place_standby(WANTED, found[:1], "n1").node == ""
    assert place_standby(replace(WANTED, zone="z1"), found, "n1").node == "n2"


def ended(run: Run) -> Run:
    return replace(run, status=RunStatus.DONE)


def test_a_standby_has_no_right_and_afterwards_it_is_known() -> None:
    run = plan.standby("x", "n2", SPEC, replaced=plan.Live("n3", replace(SPEC, ref=NEXT)))
    assert [type(r.step) for r in run.steps][::2] == [Build, Destroy]
    assert run.point_of_no_return == 2
    assert claimant_of(run) is None
    after = outcome_of(ended(run), ALONE)
    assert after == STATE
    standby = standby_of(after)
    assert standby is not None
    assert (standby.node, standby.ref) == ("n2", STANDBY)


def test_a_build_that_fails_is_taken_back_and_nothing_is_known_of_it() -> None:
    limits = Limits()
    run, _ = advance(plan.standby("x", "n2", SPEC), Resume(), 0, limits)
    run, effects = advance(run, StepFailed(0, False, 1, "broken", ""), 1, limits)
    assert run.status is RunStatus.ROLLING_BACK
    assert [r.step for r in run.undo if r.status is StepStatus.STARTED] == [Destroy("n2", STANDBY)]
    assert effects
    assert outcome_of(replace(run, status=RunStatus.ROLLED_BACK), ALONE) == ALONE


def test_it_is_told_by_the_serving_node_and_its_state_stays() -> None:
    peers = Peer("n1", "n1:1", "PEM 1", "t"), Peer("n2", "n2:1", "PEM 2", "t")
    run = plan.follow("x", LIVE, plan.Live("n2", SPEC), 4, peers)
    offer, sync = (record.step for record in run.steps)
    assert offer == Offer("n1", ACTIVE, STANDBY, peers[1], standby=True)
    assert sync == Sync("n2", ACTIVE, STANDBY, peers[0], standby=True)
    assert outcome_of(ended(run), STATE) == STATE


def test_who_stands_down_is_gone_and_so_is_the_standby_of_a_deleted_router() -> None:
    standby = plan.Live("n2", SPEC)
    assert outcome_of(ended(plan.stand_down("x", standby, 4)), STATE) == ALONE
    run = plan.delete("x", LIVE, 4, standby)
    assert run.steps[-1].step == Destroy("n2", STANDBY)
    after = outcome_of(ended(run), STATE)
    assert (after.active, after.standby) == (None, None)
