"""Every combination of what can be known of a node and an owner on it."""

from __future__ import annotations

import itertools
import math

import pytest

from vrha.core.cleanup.decide import Agent, Choice, Decision, Reason, Situation, decide

GRACE = 30_000.0
LIVE, ENDED, UNGOVERNED = 80.0, 0.0, None
YES_NO = (False, True)
RIGHTS = ("serving", "revoked", "none")


def situation(
    agent: Agent,
    lease_ms: float | None,
    is_missed: bool = True,
    is_lapsed: bool = True,
    stand_in: bool = False,
    right: str = "none",
    forced: bool = False,
) -> Situation:
    """`is_missed`, `is_lapsed`: whether agent and lease have been away for the whole grace."""
    return Situation(
        agent,
        missing_ms=GRACE if is_missed else GRACE / 4,
        grace_ms=GRACE,
        lease_ms=lease_ms,
        serving=frozenset(["r1/1"] if right == "serving" else []),
        forced=forced,
        lapsed_ms=GRACE if is_lapsed else GRACE / 2,
        stand_in=stand_in,
        revoked=frozenset(["r1/1"] if right == "revoked" else []),
    )


@pytest.mark.parametrize("agent", Agent)
@pytest.mark.parametrize("lease_ms", [LIVE, ENDED, UNGOVERNED])
@pytest.mark.parametrize("right", RIGHTS)
def test_nothing_of_the_living_is_swept(agent: Agent, lease_ms: float | None, right: str) -> None:
    for rest in itertools.product(YES_NO, YES_NO, YES_NO, YES_NO):
        is_missed, is_lapsed, stand_in, forced = rest
        now = situation(agent, lease_ms, is_missed, is_lapsed, stand_in, right, forced)
        is_over = is_missed and (is_lapsed or lease_ms != ENDED)
        is_held = {
            LIVE: right != "revoked",
            ENDED: right == "serving" and not forced,
            UNGOVERNED: right == "serving" and not forced,
        }[lease_ms]
        is_gone = agent is Agent.DEAD or (agent is Agent.STOPPED and forced)
        wanted = is_gone and not stand_in and is_over and not is_held
        found = decide("r1/1", now)
        assert (found.choice is Choice.SWEEP) == wanted, (now, found)


@pytest.mark.parametrize(
    ("now", "choice", "reason"),
    [
        (situation(Agent.ALIVE, ENDED), "keep", "agent-lives"),
        (situation(Agent.ALIVE, LIVE, stand_in=True, right="revoked"), "keep", "agent-lives"),
        (situation(Agent.HUNG, ENDED), "wait", "agent-hung"),
        (situation(Agent.HUNG, ENDED, stand_in=True), "wait", "stand-in"),
        (situation(Agent.DEAD, ENDED, stand_in=True), "wait", "stand-in"),
        (situation(Agent.DEAD, ENDED, is_lapsed=False), "wait", "grace"),
        (situation(Agent.DEAD, UNGOVERNED, is_missed=False, forced=True), "wait", "grace"),
        (situation(Agent.DEAD, LIVE, right="serving"), "wait", "lease-live"),
        (situation(Agent.DEAD, LIVE, right="serving", forced=True), "wait", "lease-live"),
        (situation(Agent.DEAD, LIVE), "wait", "lease-live"),
        (situation(Agent.DEAD, LIVE, is_lapsed=False, right="revoked"), "sweep", "revoked"),
        (situation(Agent.DEAD, ENDED), "sweep", "orphaned"),
        (situation(Agent.DEAD, ENDED, right="serving"), "keep", "still-serving"),
        (situation(Agent.DEAD, UNGOVERNED, right="serving"), "keep", "still-serving"),
        (situation(Agent.DEAD, UNGOVERNED, right="serving", forced=True), "sweep", "forced"),
        (situation(Agent.DEAD, UNGOVERNED), "sweep", "orphaned"),
    ],
)
def test_the_reason_is_told(now: Situation, choice: str, reason: str) -> None:
    found = decide("r1/1", now)
    assert (found.choice, found.reason) == (choice, reason)


def test_what_belongs_to_all_waits_for_the_lease() -> None:
    assert decide("", situation(Agent.DEAD, LIVE, right="revoked")).choice is Choice.WAIT
    assert decide("", situation(Agent.DEAD, ENDED)).choice is Choice.SWEEP


def test_the_grace_counts_from_what_was_lost_last() -> None:
    for missing, lapsed, left in (
        (math.inf, GRACE - 10, 10),
        (GRACE - 20, math.inf, 20),
        (5.0, 10.0, GRACE - 5),
    ):
        now = Situation(Agent.DEAD, missing, GRACE, ENDED, lapsed_ms=lapsed)
        assert decide("r1/1", now) == Decision(Choice.WAIT, Reason.GRACE, left)
