"""Whether what a node holds may go: one rule for the watcher, for init and for a person."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Choice(StrEnum):
    """What is done about one owner."""

    KEEP = "keep"
    WAIT = "wait"
    """Not yet; the same question later may be answered otherwise."""
    SWEEP = "sweep"


class Agent(StrEnum):
    """The agent of the node."""

    ALIVE = "alive"
    HUNG = "hung"
    DEAD = "dead"


class Reason(StrEnum):
    """Why."""

    AGENT_LIVES = "agent-lives"
    AGENT_HUNG = "agent-hung"
    """It must be ended first: it may go on at any moment."""
    GRACE = "grace"
    """The agent is expected back."""
    LEASE_LIVE = "lease-live"
    """The kernel still lets the node speak."""
    STILL_SERVING = "still-serving"
    """Nobody governs this node, and it forwards for its tenants."""
    FORCED = "forced"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of the node; times in ms.

    `lease_ms`: for how long the kernel still lets governed ports speak; None where nobody governs.
    `serving`: owners with ports that may speak and that nobody governs.
    `forced`: a person takes responsibility for what still serves.
    """

    agent: Agent
    missing_ms: float = 0.0
    grace_ms: float = 0.0
    lease_ms: float | None = None
    serving: frozenset[str] = frozenset()
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """`again_ms`: when to ask again; 0 where that is not known."""

    choice: Choice
    reason: Reason
    again_ms: float = 0.0


def decide(owner: str, now: Situation) -> Decision:
    """What is done about `owner`. Neither a living agent nor a living lease is ever overruled."""
    if now.agent is Agent.ALIVE:
        return Decision(Choice.KEEP, Reason.AGENT_LIVES)
    if now.agent is Agent.HUNG:
        return Decision(Choice.WAIT, Reason.AGENT_HUNG)
    if now.missing_ms < now.grace_ms:
        return Decision(Choice.WAIT, Reason.GRACE, now.grace_ms - now.missing_ms)
    if now.lease_ms:
        return Decision(Choice.WAIT, Reason.LEASE_LIVE, now.lease_ms)
    if owner in now.serving:
        if not now.forced:
            return Decision(Choice.KEEP, Reason.STILL_SERVING)
        return Decision(Choice.SWEEP, Reason.FORCED)
    return Decision(Choice.SWEEP, Reason.ORPHANED)
