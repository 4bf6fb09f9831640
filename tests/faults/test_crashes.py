"""kill -9 of agent, orchestrator or broker at every boundary of a handover, and inside its flip.

Whoever dies when: the run ends, nothing is left behind, no connection breaks, no packet is lost.
"""

from __future__ import annotations

import logging

import pytest

from tests.faults.cases import AGENT, MOVE, PEER, Case
from tests.faults.conftest import Stages
from tests.faults.inventory import assert_same, at_rest
from tests.faults.stage import Outcome
from vrha.model.runs import RunStatus

log = logging.getLogger(__name__)

HALF_WAY = 3
"""Fresh flows, one every 5 ms, whose answer is on its way at one moment."""
pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]


def test_a_death_ends_in_done_or_rolled_back(stages: Stages, case: Case) -> None:
    stage = stages.fit()
    before = at_rest(stage.zone)
    try:
        outcome = stage.play(case)
        log.info("%s", summary(case, outcome))
        assert_ended(case, outcome)
        assert_same(before, stage.zone)
        assert_not_felt(case, outcome)
    except BaseException as error:
        log.error("FAULT %s: %s\n%s", case.name, error, stage.last_words())
        stages.spoiled()
        raise


def assert_ended(case: Case, outcome: Outcome) -> None:
    if outcome.run is None:
        assert case.place == "orchestrator.build.journaled"
        return
    assert outcome.run.status.terminal
    assert outcome.run.leftovers == ()
    # A failure that was never committed is forgotten, and the step done again.
    if case.undo and not case.place.endswith(".journaled"):
        assert outcome.run.status is RunStatus.ROLLED_BACK


def assert_not_felt(case: Case, outcome: Outcome) -> None:
    probes = outcome.probes
    lost = {s.stream.name: s.loss.lost for s in probes.streams if s.loss.lost}
    if may_lose(case):
        assert lost.pop("fresh", 0) <= HALF_WAY
    assert lost == {}
    assert not probes.unrestored
    for result in filter(None, (probes, outcome.late)):
        dead = {c.stream.name: c.errors for c in result.connections if c.alive < c.total}
        assert dead == {}


def may_lose(case: Case) -> bool:
    """Whether flows that are just beginning may be lost.

    When an agent dies after the flip of a move, nobody carries new flows to the other node. On the
    way back of one nothing is held: a reply may come before the other node has heard of its flow.
    """
    moved = case.scenario == MOVE and not case.before_flip
    return moved and (case.undo or case.victim in (AGENT, PEER))


def summary(case: Case, outcome: Outcome) -> str:
    """One line for people."""
    run = outcome.run
    ended = f"{run.status} {run.reason}: {run.detail[:100]}" if run else "never began"
    lost = {s.stream.name: (s.loss.lost, s.loss.sent) for s in outcome.probes.streams}
    tcp = {c.stream.name: f"{c.alive}/{c.total}" for c in outcome.probes.connections}
    return f"CASE {case.name} | {outcome.seconds:.1f}s | {ended} | lost {lost} | tcp {tcp}"
