"""What a rollout does next: which routers have their turn, when it stops, when it is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from vrha.model.evidence import Evidence
from vrha.model.rollouts import Member, MemberStatus, Rollout, RolloutStatus, StopReason

_OVER = (MemberStatus.DONE, MemberStatus.SKIPPED)


@dataclass(frozen=True, slots=True)
class Decision:
    """The routers whose turn it is, and how the rollout stands now."""

    status: RolloutStatus
    start: tuple[str, ...] = ()
    reason: str = ""
    detail: str = ""


def next_actions(rollout: Rollout, members: Sequence[Member], busy: Set[str]) -> Decision:
    """What to do about `rollout` now; routers in `busy` have an open run, whoever's it is."""
    standing = Decision(rollout.status, (), rollout.reason, rollout.detail)
    if not rollout.status.open:
        return standing
    running = [m for m in members if m.status is MemberStatus.RUNNING]
    if rollout.status is RolloutStatus.RUNNING:
        stop = _stop(rollout, members)
        if stop is not None:
            standing = stop
    if all(m.ended for m in members):
        return _end(standing, members)
    if standing.status is RolloutStatus.STOPPING:
        return standing if running else replace(standing, status=RolloutStatus.STOPPED)
    at_once = rollout.request.max_parallel if _proved(rollout, members) else 1
    ready = [m.router for m in members if m.status is MemberStatus.PENDING and m.router not in busy]
    return replace(standing, start=tuple(ready[: max(0, at_once - len(running))]))


def _proved(rollout: Rollout, members: Sequence[Member]) -> bool:
    """Whether the canary came through: one router is done since the rollout was taken up."""
    return any(m.status is MemberStatus.DONE and m.round == rollout.round for m in members)


def _stop(rollout: Rollout, members: Sequence[Member]) -> Decision | None:
    """Why no further router may be taken up; None: go on."""
    now = [m for m in members if m.round == rollout.round]
    failed = next((m for m in now if m.status is MemberStatus.ROLLED_BACK), None)
    if failed is not None:
        why = f"router {failed.router}, run {failed.run}: {failed.reason}: {failed.detail}"
        if not _proved(rollout, members):
            return Decision(RolloutStatus.STOPPING, (), StopReason.CANARY_FAILED, why)
        if not rollout.request.keep_going:
            return Decision(RolloutStatus.STOPPING, (), StopReason.ROLLED_BACK, why)
    limit = rollout.request.stop_on_lost
    lost = sum(m.lost or 0 for m in now)
    if limit is not None and lost > limit:
        worst = max(now, key=lambda m: m.lost or 0)
        why = f"{lost} probes lost, {limit} allowed; most by router {worst.router}: {worst.lost}"
        return Decision(RolloutStatus.STOPPING, (), StopReason.TOO_MANY_LOST, why)
    return None


def _end(standing: Decision, members: Sequence[Member]) -> Decision:
    """Every router had its turn."""
    left = [m for m in members if m.status not in _OVER]
    if not left:
        return Decision(RolloutStatus.DONE)
    if standing.reason:
        return replace(standing, status=RolloutStatus.STOPPED)
    why = f"{len(left)} of {len(members)} routers are not done: " + ", ".join(
        f"{m.router} ({m.reason})" for m in left[:5]
    )
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return Decision(RolloutStatus.STOPPED, (), StopReason.INCOMPLETE, why + more)


def resumed(rollout: Rollout) -> Rollout:
    """The stopped `rollout` taken up again."""
    return replace(
        rollout, status=RolloutStatus.RUNNING, reason="", detail="", round=rollout.round + 1
    )


def again(member: Member) -> Member:
    """`member` as it enters the next round: what was not done has another turn."""
    if member.status in (MemberStatus.ROLLED_BACK, MemberStatus.REFUSED):
        return Member(member.router)
    return member


def lost_in(evidence: Iterable[Evidence]) -> int | None:
    """Probes lost in all of `evidence`; None when nothing was measured."""
    lost = [m.lost for each in evidence for m in each.measured if not m.unavailable]
    return sum(lost) if lost else None
