"""What to do about an agent that its watcher says is dead or stuck: wait, or empty the node.

Nothing hurries: the kernel forwards on without an agent. It has a grace in which init may bring it
back; only a node whose agent stays away, or fails again and again, gives its routers to others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from vrha.core.causes import Cause
from vrha.model.ownership import AGENT_FAILS, Health, NodeHealth


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Times in ms. `failures` within `window_ms` count as one failure that lasts."""

    grace_ms: float = 10_000.0
    failures: int = 5
    window_ms: float = 60_000.0
    fail_back_ms: float = 60_000.0
    silent_ms: float = 400.0
    """A node whose watcher was not heard for so long is a matter of its lease."""


@dataclass(frozen=True, slots=True)
class AgentHistory:
    """Of one node, instants in ms on the clock of whoever keeps it.

    `since` when the agent has been as it is; `counted` are the failures taken from the leader's
    count, `failed_at` when they were (the newest ones).
    """

    fails: bool
    since: float
    counted: int
    failed_at: tuple[float, ...] = ()


def follow(
    history: AgentHistory | None, seen: NodeHealth, now: float, limits: AgentLimits
) -> AgentHistory:
    """The history after what was seen at `now`."""
    fails = bool(seen.health & AGENT_FAILS)
    since = now - seen.since_ms
    if history is None or seen.failures < history.counted:
        # Another leader counts from the beginning; what failed before is not known to be new.
        return AgentHistory(fails, since, seen.failures, (since,) if fails else ())
    fresh = (now,) * (seen.failures - history.counted)
    known = tuple(at for at in history.failed_at + fresh if now - at <= limits.window_ms)
    if fails is not history.fails:
        history = replace(history, fails=fails, since=since)
    return replace(history, counted=seen.failures, failed_at=known)


class Act(StrEnum):
    """What is done about the agent of a node."""

    WAIT = "wait"
    EVACUATE = "evacuate"
    RETURN = "return"
    """The node takes instances again."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else matters: `evacuated`, by us and not ended yet; `hold`, why nothing may move by
    itself now (empty: it may); whether any other node has an agent that is well."""

    evacuated: bool = False
    hold: str = ""
    others_well: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done, for which cause, and why in words."""

    act: Act
    cause: Cause
    why: str


def decide(
    seen: NodeHealth, history: AgentHistory, now: float, limits: AgentLimits, around: Surroundings
) -> Decision:
    """What to do about the agent of one node."""
    cause = cause_of(seen.health)
    if seen.heard_ms_ago > limits.silent_ms:
        return Decision(Act.WAIT, cause, "the watcher itself is silent: its lease decides")
    reason = _reason(seen, history, now, limits)
    if not reason:
        return Decision(*_calm(history, now, limits, around, cause))
    if around.hold:
        return Decision(Act.WAIT, cause, f"{reason}; {around.hold}")
    if not around.others_well:
        return Decision(Act.WAIT, cause, f"{reason}; no other node has an agent that is well")
    cause = Cause.AGENT_DEAD if cause is Cause.SERVING else cause
    return Decision(Act.EVACUATE, cause, f"{reason}: its routers move to other nodes")


def cause_of(health: Health) -> Cause:
    """What the bits say of the agent."""
    if health & Health.AGENT_DEAD:
        return Cause.AGENT_DEAD
    return Cause.AGENT_HUNG if health & Health.AGENT_HUNG else Cause.SERVING


def is_well(seen: NodeHealth, limits: AgentLimits) -> bool:
    """Whether the node can take routers, as far as its watcher knows."""
    return seen.heard_ms_ago <= limits.silent_ms and not seen.health & AGENT_FAILS


def _reason(seen: NodeHealth, history: AgentHistory, now: float, limits: AgentLimits) -> str:
    """Why the grace is over; empty: it is not, or there is nothing to be gracious about."""
    lasted = now - history.since
    if history.fails and lasted >= limits.grace_ms:
        word = "stuck" if seen.health & Health.AGENT_HUNG else "dead"
        return f"the agent has been {word} for {lasted / 1000:.1f} s"
    steady = not history.fails and lasted >= limits.grace_ms
    if len(history.failed_at) >= limits.failures and not steady:
        window = limits.window_ms / 1000
        return f"the agent failed {len(history.failed_at)} times within {window:g} s"
    return ""


def _calm(
    history: AgentHistory, now: float, limits: AgentLimits, around: Surroundings, cause: Cause
) -> tuple[Act, Cause, str]:
    lasted = (now - history.since) / 1000
    if history.fails:
        left = limits.grace_ms / 1000 - lasted
        return Act.WAIT, cause, f"init may bring the agent back; its routers move in {left:.1f} s"
    if not around.evacuated:
        return Act.WAIT, cause, ""
    if lasted * 1000 >= limits.fail_back_ms:
        return Act.RETURN, cause, f"the agent has lived for {lasted:.1f} s"
    left = limits.fail_back_ms / 1000 - lasted
    return Act.WAIT, cause, f"the agent is back; the node takes instances again in {left:.1f} s"
