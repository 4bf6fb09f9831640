"""What is done about an agent that is dead, stuck, or falls again and again."""

from __future__ import annotations

import pytest

from vrha.core.agents import (
    Act,
    AgentHistory,
    AgentLimits,
    Decision,
    Surroundings,
    decide,
    follow,
)
from vrha.core.causes import Cause
from vrha.model.ownership import Health, NodeHealth

LIMITS = AgentLimits(grace_ms=1000, failures=3, window_ms=10_000, fail_back_ms=5000)
DEAD, HUNG, WELL = Health.AGENT_DEAD, Health.AGENT_HUNG, Health(0)
ALONE = Surroundings()
OURS = Surroundings(evacuated=True)
NOW = 100_000.0


def seen(health: Health, since_ms: float, failures: int = 0, heard: float = 50) -> NodeHealth:
    return NodeHealth("n1", heard, health, since_ms, failures)


def decided(now: NodeHealth, around: Surroundings = ALONE) -> Decision:
    return decide(now, follow(None, now, NOW, LIMITS), NOW, LIMITS, around)


@pytest.mark.parametrize(
    ("now", "around", "act", "cause", "said"),
    [
        (seen(WELL, 9000), ALONE, Act.WAIT, Cause.SERVING, ""),
        (seen(Health.AGENT_UNKNOWN, 9e9), ALONE, Act.WAIT, Cause.SERVING, ""),
        (seen(DEAD, 400), ALONE, Act.WAIT, Cause.AGENT_DEAD, "in 0.6 s"),
        (seen(DEAD, 1000), ALONE, Act.EVACUATE, Cause.AGENT_DEAD, "dead for 1.0 s"),
        (seen(HUNG, 1000), ALONE, Act.EVACUATE, Cause.AGENT_HUNG, "stuck for 1.0 s"),
        (seen(DEAD | Health.STAND_IN, 2000), OURS, Act.EVACUATE, Cause.AGENT_DEAD, "dead for 2"),
        (seen(DEAD, 2000, heard=401), ALONE, Act.WAIT, Cause.AGENT_DEAD, "lease decides"),
        (seen(DEAD, 2000), Surroundings(hold="paused"), Act.WAIT, Cause.AGENT_DEAD, "; paused"),
        (
            seen(DEAD, 2000),
            Surroundings(others_well=False),
            Act.WAIT,
            Cause.AGENT_DEAD,
            "no other node",
        ),
        (seen(WELL, 4000), OURS, Act.WAIT, Cause.SERVING, "again in 1.0 s"),
        (seen(WELL, 5000), OURS, Act.RETURN, Cause.SERVING, "lived for 5.0 s"),
    ],
)
def test_decisions(
    now: NodeHealth, around: Surroundings, act: Act, cause: Cause, said: str
) -> None:
    found = decided(now, around)
    assert (found.act, found.cause) == (act, cause)
    assert said in found.why
    assert bool(said) == bool(found.why)


def falling(times: int, every_ms: float, alive_ms: float) -> tuple[Decision, AgentHistory]:
    """An agent that dies and is started again; it has been alive for `alive_ms` at the end."""
    history, now = follow(None, seen(WELL, 0), NOW, LIMITS), NOW
    for failures in range(1, times + 1):
        now += every_ms
        history = follow(history, seen(DEAD, 10, failures), now, LIMITS)
        history = follow(history, seen(WELL, 10, failures), now + 100, LIMITS)
    now += 90 + alive_ms
    last = seen(WELL, alive_ms, times)
    history = follow(history, last, now, LIMITS)
    return decide(last, history, now, LIMITS, ALONE), history


@pytest.mark.parametrize(
    ("times", "every_ms", "alive_ms", "act"),
    [
        (2, 500, 100, Act.WAIT),
        (3, 500, 100, Act.EVACUATE),
        (3, 500, 1000, Act.WAIT),
        (9, 6000, 100, Act.WAIT),
    ],
    ids=["twice", "thrice", "steady since", "seldom"],
)
def test_a_crash_loop_counts_as_one_failure_that_lasts(
    times: int, every_ms: float, alive_ms: float, act: Act
) -> None:
    found, _ = falling(times, every_ms, alive_ms)
    assert found.act is act
    if act is Act.EVACUATE:
        assert found.cause is Cause.AGENT_DEAD
        assert "failed 3 times" in found.why


def test_what_failed_between_two_looks_counts() -> None:
    history = follow(None, seen(WELL, 0), NOW, LIMITS)
    history = follow(history, seen(WELL, 10, failures=2), NOW + 500, LIMITS)
    assert len(history.failed_at) == 2


def test_another_leader_counts_from_the_beginning() -> None:
    _, history = falling(3, 500, 100)
    after = follow(history, seen(DEAD, 10, failures=1), NOW + 9000, LIMITS)
    assert (after.counted, len(after.failed_at)) == (1, 1)
