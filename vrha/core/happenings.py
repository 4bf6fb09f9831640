"""What happens to a run, what is to be done about it, and the limits of both."""

from __future__ import annotations

from dataclasses import dataclass

from vrha.model.runs import Run, RunStatus, StepRecord
from vrha.model.spec import InstanceRef
from vrha.model.steps import Confirm, Flip, Step, Sync


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds and numbers of attempts."""

    step_s: float = 10.0
    sync_s: float = 60.0
    """Of a sync: a second or so for every ten thousand connections."""
    check_in_s: float = 10.0
    take_over_s: float = 30.0
    """For the votes on a silent node, and its lease to end."""
    forward_attempts: int = 5
    """Attempts of a step after the point of no return."""
    undo_attempts: int = 5
    retry_s: float = 0.5
    """Pause before the second attempt of a step that failed; doubles with every further one."""

    def of(self, step: Step) -> float:
        """Seconds that a node has for `step`; a flip may have to catch up and ask another node."""
        if isinstance(step, Flip | Confirm):
            return 2 * self.step_s
        return self.sync_s if isinstance(step, Sync) else self.step_s


@dataclass(frozen=True, slots=True)
class Resume:
    """The run begins, or its orchestrator has come back and knows nothing of started steps."""


@dataclass(frozen=True, slots=True)
class StepDone:
    seq: int
    undo: bool
    attempt: int


@dataclass(frozen=True, slots=True)
class StepFailed:
    seq: int
    undo: bool
    attempt: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class CheckedIn:
    """The replacement's check-in was accepted."""

    instance: InstanceRef


@dataclass(frozen=True, slots=True)
class CheckInFailed:
    """The replacement checked in with its right token, but its self-test is not good enough."""

    instance: InstanceRef
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class TakenOver:
    """The instance has the only right to speak of its router, by the store."""

    instance: InstanceRef


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """There is no reason for the run any more."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class NodeLost:
    """Nothing can be expected of that node for now."""

    node: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; `cut_off`: in a time in which nobody could be told or heard."""

    cut_off: bool = False


Event = (
    Resume
    | StepDone
    | StepFailed
    | CheckedIn
    | CheckInFailed
    | TakenOver
    | Withdrawn
    | NodeLost
    | Tick
)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send these steps of the run, in order, to `node`; not after `expires` (None: however late).

    `order` grows with every dispatch of a run. `valid_s`: seconds from now to `expires`.
    """

    node: str
    undo: bool
    attempt: int
    records: tuple[StepRecord, ...]
    order: int
    expires: float | None
    valid_s: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The run has ended."""

    status: RunStatus


Effect = Dispatch | Finished
Result = tuple[Run, tuple[Effect, ...]]
