"""Whether what a node holds may go: one rule for the watcher, for init and for a person."""

from __future__ import annotations

import math
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
    """It is there, and does not show that it gets on."""
    DEAD = "dead"
    STOPPED = "stopped"
    """Somebody has stopped it on purpose, and will start it again."""


class Reason(StrEnum):
    """Why."""

    AGENT_LIVES = "agent-lives"
    STOPPED_BY_HAND = "stopped-by-hand"
    """For an upgrade, say. A person may take the responsibility to sweep all the same."""
    AGENT_HUNG = "agent-hung"
    """It must be ended first: it may go on at any moment."""
    STAND_IN = "stand-in"
    """A process in the place of the agent gives its routers away."""
    GRACE = "grace"
    """The agent is expected back, or the lease."""
    LEASE_LIVE = "lease-live"
    """The kernel still lets the node speak, and nobody has said that the owner must not."""
    STILL_SERVING = "still-serving"
    """Nobody governs this node, and it forwards for its tenants."""
    REVOKED = "revoked"
    """Who may say so has said that it must not serve here any more."""
    FORCED = "forced"
    ORPHANED = "orphaned"


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of the node; times in ms, infinite where it was so before anybody looked.

    `missing_ms`: for how long the agent has been dead, or stopped.
    `lease_ms`: for how long the kernel still lets governed ports speak; None where nobody governs.
    `serving`: owners with ports that may speak and that nobody governs.
    `forced`: a person takes responsibility for what still serves, or was stopped on purpose.
    `lapsed_ms`: for how long the kernel has not let them.
    `revoked`: owners whose right was taken back.
    """

    agent: Agent
    missing_ms: float = 0.0
    grace_ms: float = 0.0
    lease_ms: float | None = None
    serving: frozenset[str] = frozenset()
    forced: bool = False
    lapsed_ms: float = math.inf
    stand_in: bool = False
    revoked: frozenset[str] = frozenset()

    @property
    def grace_left_ms(self) -> float:
        """0.0 when it is over. A lease that has just ended may be back soon, as an agent may."""
        lapsed = self.lapsed_ms if self.lease_ms == 0 else math.inf
        return max(0.0, self.grace_ms - min(self.missing_ms, lapsed))


@dataclass(frozen=True, slots=True)
class Decision:
    """`again_ms`: when to ask again; 0 where that is not known."""

    choice: Choice
    reason: Reason
    again_ms: float = 0.0


def decide(owner: str, now: Situation) -> Decision:
    """What is done about `owner`; empty: about what belongs to the agent as a whole.

    Neither a living agent, nor a stand-in, nor a living lease is ever overruled.
    """
    if now.agent is Agent.ALIVE:
        return Decision(Choice.KEEP, Reason.AGENT_LIVES)
    if now.stand_in:
        return Decision(Choice.WAIT, Reason.STAND_IN)
    if now.agent is Agent.HUNG:
        return Decision(Choice.WAIT, Reason.AGENT_HUNG)
    if now.agent is Agent.STOPPED and not now.forced:
        return Decision(Choice.KEEP, Reason.STOPPED_BY_HAND)
    if now.grace_left_ms:
        return Decision(Choice.WAIT, Reason.GRACE, now.grace_left_ms)
    if now.lease_ms:
        if owner in now.revoked:
            return Decision(Choice.SWEEP, Reason.REVOKED)
        # Also what has no right: it may be granted at any moment, as a standby is.
        return Decision(Choice.WAIT, Reason.LEASE_LIVE, now.lease_ms)
    if owner in now.serving:
        if not now.forced:
            return Decision(Choice.KEEP, Reason.STILL_SERVING)
        return Decision(Choice.SWEEP, Reason.FORCED)
    return Decision(Choice.SWEEP, Reason.ORPHANED)
