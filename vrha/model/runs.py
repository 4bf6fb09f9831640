"""Runs: journaled operations and their steps, as the store keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vrha.model.spec import InstanceRef
from vrha.model.steps import Step


class RunKind(StrEnum):
    """Why a run exists."""

    CREATE = "create"
    UPDATE = "update"
    RESTART = "restart"
    MOVE = "move"
    FAILOVER = "failover"
    DELETE = "delete"
    STANDBY = "standby"
    """A warm instance on another node is built, brought up to date, changed or removed."""


class Strategy(StrEnum):
    """How a planned restart hands over."""

    SERIAL = "serial"
    PARALLEL = "parallel"
    HANDOVER = "handover"


@dataclass(frozen=True, slots=True)
class RestartOptions:
    """How a restart or move is to be done.

    `strategy` None: the best that the nodes are capable of. `node` empty: placement decides.
    `hold` and `max_lost` as in `vrha.model.steps.Flip` and `Verify`.
    """

    strategy: Strategy | None = None
    node: str = ""
    hold: bool = False
    max_lost: int | None = None


AS_CONFIGURED = RestartOptions()
"""Nothing in particular is asked for."""


class RunStatus(StrEnum):
    """A run is terminal in `done` and `rolled_back` and nowhere else (I3)."""

    RUNNING = "running"
    ROLLING_BACK = "rolling_back"
    DONE = "done"
    ROLLED_BACK = "rolled_back"

    @property
    def terminal(self) -> bool:
        return self in (RunStatus.DONE, RunStatus.ROLLED_BACK)


class StepStatus(StrEnum):
    """Life of one step in the journal."""

    PENDING = "pending"
    STARTED = "started"
    """Journaled before its effect: it may or may not have happened."""
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"
    ABANDONED = "abandoned"
    """Given up after the last attempt; what it may have left is named in the run's leftovers."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step in the journal. Times are seconds of the orchestrator's monotonic clock."""

    seq: int
    step: Step
    status: StepStatus = StepStatus.PENDING
    attempt: int = 0
    deadline: float | None = None
    error: str = ""
    result: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """One journaled operation on one router.

    `point_of_no_return` is the seq of the first step after whose start there is no way back
    (None: every step can be undone). `undo` holds the steps of a roll-back once it has begun.
    """

    id: str
    kind: RunKind
    router: str
    epoch: int
    strategy: Strategy | None
    status: RunStatus
    steps: tuple[StepRecord, ...]
    undo: tuple[StepRecord, ...] = ()
    point_of_no_return: int | None = None
    old: InstanceRef | None = None
    new: InstanceRef | None = None
    reason: str = ""
    detail: str = ""
    leftovers: tuple[str, ...] = ()
