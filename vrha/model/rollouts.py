"""Rollouts: one journaled operation over many routers, as the store keeps it and people see it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrha.model.runs import AS_CONFIGURED, RestartOptions, Strategy
from vrha.model.views import RunView


class RolloutKind(StrEnum):
    """What is done to each of the routers."""

    RESTART = "restart"
    """It is restarted with cleanup."""
    DRAIN = "drain"
    """It is moved away from one node."""


class RolloutStatus(StrEnum):
    """Life of a rollout. A stopped one can be resumed."""

    RUNNING = "running"
    STOPPING = "stopping"
    """No further router is taken up; runs that have begun are carried to their end."""
    STOPPED = "stopped"
    DONE = "done"
    """Nothing is left to be done; every router is, or is there no more."""

    @property
    def open(self) -> bool:
        return self in (RolloutStatus.RUNNING, RolloutStatus.STOPPING)


class MemberStatus(StrEnum):
    """What has become of one router of a rollout."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    """No run could be started, see its reason; the router serves on as it did."""
    SKIPPED = "skipped"
    """When its turn came there was nothing to be done with it any more."""


class StopReason(StrEnum):
    """Why a rollout takes up no further router."""

    ASKED = "asked"
    CANARY_FAILED = "canary-failed"
    """The run of the first router, which goes alone, was rolled back."""
    ROLLED_BACK = "rolled-back"
    TOO_MANY_LOST = "too-many-lost"
    INCOMPLETE = "incomplete"
    """Every router had its turn, and some were refused or rolled back."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What is asked for: the routers (of one `zone`, or on one `node`), and with which caution.

    The first router goes alone; then up to `max_parallel` at a time. Once the nodes have counted
    more than `stop_on_lost` lost probes in all (None: no such limit), or a run was rolled back
    (unless `keep_going`), no further router is taken up. `cause`: why the orchestrator asked for it
    by itself; with `returns` the node takes instances again once that is over.
    """

    kind: RolloutKind
    zone: str = ""
    node: str = ""
    max_parallel: int = 4
    stop_on_lost: int | None = None
    keep_going: bool = False
    options: RestartOptions = AS_CONFIGURED
    cause: str = ""
    returns: bool = False


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout without its members.

    `preferred` is the strategy where `request.options` names none. `round` counts how often it
    was taken up: each time the first router goes alone, and what was lost counts from 0.
    """

    id: str
    request: RolloutRequest
    preferred: Strategy
    status: RolloutStatus = RolloutStatus.RUNNING
    reason: str = ""
    detail: str = ""
    round: int = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One router of a rollout; `round` is the one in which it had its turn (0: not yet).

    `lost`: probes that the nodes counted as lost during its run (None: nothing was measured).
    Times are ISO 8601 in UTC.
    """

    router: str
    status: MemberStatus = MemberStatus.PENDING
    round: int = 0
    run: str = ""
    strategy: Strategy | None = None
    from_node: str = ""
    to_node: str = ""
    old: str = ""
    new: str = ""
    lost: int | None = None
    reason: str = ""
    detail: str = ""
    started_at: str = ""
    ended_at: str = ""

    @property
    def ended(self) -> bool:
        return self.status not in (MemberStatus.PENDING, MemberStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class RolloutBrief:
    """A rollout in one line: `counts` says how many routers are in which status."""

    id: str
    kind: RolloutKind
    zone: str
    node: str
    status: RolloutStatus
    reason: str
    detail: str
    routers: int
    counts: tuple[tuple[MemberStatus, int], ...]
    lost: int
    started_at: str
    ended_at: str


@dataclass(frozen=True, slots=True)
class RolloutView:
    """A rollout with every router, in the order of their turns. Times are ISO 8601 in UTC."""

    id: str
    request: RolloutRequest
    status: RolloutStatus
    reason: str
    detail: str
    round: int
    members: tuple[Member, ...]
    started_at: str
    ended_at: str


@dataclass(frozen=True, slots=True)
class PlannedMember:
    """The run that a router would get; without one the reason why."""

    router: str
    run: RunView | None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What a rollout would do, router by router."""

    request: RolloutRequest
    members: tuple[PlannedMember, ...]
