"""One verdict for each way in which something is the matter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vrha.core.causes import GONE, MEANINGS, Cause, Known, judge
from vrha.model.ownership import Health

WELL = Known("n1", Health(0), heard_ms_ago=100, since_ms=5000, inventory_s_ago=2.0)


@pytest.mark.parametrize(
    ("known", "cause", "signal"),
    [
        (WELL, Cause.SERVING, "agent is well"),
        (replace(WELL, health=Health.AGENT_DEAD), Cause.AGENT_DEAD, "agent is dead"),
        (replace(WELL, health=Health.AGENT_HUNG), Cause.AGENT_HUNG, "agent is stuck"),
        (replace(WELL, health=Health.AGENT_UNKNOWN), Cause.SERVING, "has seen no agent"),
        (replace(WELL, heard_ms_ago=401), Cause.NODE_SILENT, "last renewal"),
        (
            replace(WELL, heard_ms_ago=401, reached_by="the broker"),
            Cause.NODE_CUT_OFF,
            "by way of the broker",
        ),
        (
            replace(WELL, unanswered=True, reached_by="its own renewals"),
            Cause.NODE_CUT_OFF,
            "by way of its own renewals",
        ),
        (replace(WELL, broker=False), Cause.BROKER_GONE, "no broker"),
        (replace(WELL, uplink_dead_ms=200), Cause.UPLINK_DEAD, "the uplink is dead"),
        (replace(WELL, sick=("r1",)), Cause.VR_SICK, "do not come through r1"),
        (Known("n1", inventory_s_ago=2.0), Cause.SERVING, "no watcher of n1"),
        (Known("n1", inventory_s_ago=16.0), Cause.NODE_SILENT, "last report"),
        (Known("n1"), Cause.NODE_SILENT, "no report of an agent"),
        (
            replace(WELL, health=Health.AGENT_DEAD, heard_ms_ago=900),
            Cause.NODE_SILENT,
            "agent is dead",
        ),
        (
            replace(WELL, health=Health.AGENT_DEAD, uplink_dead_ms=9),
            Cause.UPLINK_DEAD,
            "agent is dead",
        ),
    ],
)
def test_verdicts(known: Known, cause: Cause, signal: str) -> None:
    verdict = judge(known)
    assert verdict.cause is cause
    assert any(signal in each.what for each in verdict.signals)
    assert (verdict.action, verdict.reason) == (MEANINGS[cause].action, MEANINGS[cause].reason)


def test_every_cause_has_a_meaning() -> None:
    assert MEANINGS.keys() == set(Cause)
    assert GONE.cause is Cause.ORCHESTRATOR_GONE


def test_what_is_done_and_what_holds_it() -> None:
    known = replace(WELL, health=Health.AGENT_DEAD, doing="its routers move", hold="paused by eve")
    assert judge(known).action == "its routers move; held: paused by eve"


def test_news_have_ages() -> None:
    said = {each.what: each.age_s for each in judge(WELL).signals}
    assert said["last renewal of the watcher of n1"] == 0.1
    assert said["the watcher says that the agent is well"] == 5.0
    assert said["last report of the agent"] == 2.0
