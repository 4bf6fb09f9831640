"""Runs, router states and nodes as rows and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from vrha import codec
from vrha.model.messages import Inventory
from vrha.model.runs import Run, StepRecord, StepStatus
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.state import NodeState, RouterState
from vrha.model.steps import Build, Step

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunTimes:
    """When a run started and ended: ISO 8601 in UTC; `ended_at` is empty while it is open."""

    started_at: str
    ended_at: str


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message to a node that was not sent yet; `id` is never given out again.

    Not to be sent after `expires` (seconds of the monotonic clock; None: however late).
    """

    id: int
    node: str
    body: bytes
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class _Progress:
    """A StepRecord without its step."""

    status: StepStatus
    attempt: int
    deadline: float | None
    error: str
    result: tuple[tuple[str, str], ...]


class Remembered(Generic[T]):
    """What texts mean; the last ones are kept, as many as have `budget` characters together.

    A text that is kept always gives the same object, so comparing it with itself costs nothing.
    The text of a router with 20,000 rules has 2 MB, and its objects take five times that. Not
    for several threads at once.
    """

    def __init__(self, read: Callable[[str], T], budget: int = 16 * 1024 * 1024) -> None:
        self._read = read
        self._budget = budget
        self._kept: dict[str, T] = {}
        self._size = 0

    def __call__(self, text: str) -> T:
        found = self._kept[text] if text in self._kept else self._read(text)
        self.keep(text, found)
        return found

    def keep(self, text: str, found: T) -> None:
        """Remember that `text` means `found`."""
        if self._kept.pop(text, None) is None:
            self._size += len(text)
        # A dict keeps the order in which keys were put in: the first is the longest unused.
        self._kept[text] = found
        while len(self._kept) > 1 and self._size > self._budget:
            oldest = next(iter(self._kept))
            self._size -= len(oldest)
            del self._kept[oldest]


class Memory:
    """What is kept as JSON text, and back; remembered because it may be large, or is read often."""

    def __init__(self) -> None:
        self.step = Remembered(_step)
        self.applied = Remembered(lambda text: codec.decode(InstanceSpec, text))
        self.run = Remembered(lambda text: codec.decode(Run, text))
        """Runs without their steps."""
        self.inventory = Remembered(lambda text: codec.decode(Inventory, text))

    def step_text(self, step: Step) -> str:
        text = codec.encode(step, Step).decode()
        self.step.keep(text, step)
        return text

    def spec_text(self, spec: InstanceSpec) -> str:
        text = codec.encode(spec).decode()
        self.applied.keep(text, spec)
        return text

    def inventory_text(self, inventory: Inventory) -> str:
        text = codec.encode(inventory).decode()
        self.inventory.keep(text, inventory)
        return text

    def node_state(self, row: Any) -> NodeState:
        inventory = self.inventory(row.inventory)
        return NodeState(
            name=inventory.node,
            agent=inventory.agent,
            version=inventory.version,
            capabilities=inventory.capabilities,
            instances=inventory.instances,
            seen_at=row.seen_at,
            highest_epochs=inventory.highest_epochs,
            sync_address=inventory.sync_address,
            certificate=inventory.certificate,
            uplinks=inventory.uplinks,
        )

    def record(self, seq: int, step: str, progress: str) -> StepRecord:
        p = codec.decode(_Progress, progress)
        return StepRecord(
            seq=seq,
            step=self.step(step),
            status=p.status,
            attempt=p.attempt,
            deadline=p.deadline,
            error=p.error,
            result=p.result,
        )

    def router_state(self, row: Any) -> RouterState:
        return RouterState(
            router=row.router,
            epoch=row.epoch,
            generation=row.generation,
            node=row.node,
            active=None if row.active is None else InstanceRef(row.router, row.active),
            applied=None if row.applied is None else self.applied(row.applied),
            failed=row.failed,
            standby=None if row.standby is None else InstanceRef(row.router, row.standby),
            standby_node=row.standby_node or "",
            standby_spec=None if row.standby_spec is None else self.applied(row.standby_spec),
        )


def _step(text: str) -> Step:
    return codec.decode(Step, text)  # type: ignore[arg-type]


def progress_text(record: StepRecord) -> str:
    progress = _Progress(
        record.status, record.attempt, record.deadline, record.error, record.result
    )
    return codec.encode(progress).decode()


def run_text(run: Run) -> str:
    """The run without its steps."""
    return codec.encode(replace(run, steps=(), undo=())).decode()


def deadline_of(run: Run) -> float | None:
    """When time next matters to the run."""
    deadlines = (r.deadline for r in (*run.steps, *run.undo))
    return min((each for each in deadlines if each is not None), default=None)


def build_node_of(run: Run) -> str:
    """The node on which the run builds an instance; empty when it builds none."""
    return next((r.step.node for r in run.steps if isinstance(r.step, Build)), "")


def with_steps(run: Run, steps: tuple[StepRecord, ...], undo: tuple[StepRecord, ...]) -> Run:
    """What `run_text` left out is there again."""
    return replace(run, steps=steps, undo=undo)


def router_values(state: RouterState) -> dict[str, Any]:
    """The row of a router that is there, without what was applied."""
    return {
        "router": state.router,
        "epoch": state.epoch,
        "generation": state.generation,
        "node": state.node,
        "active": state.active.generation if state.active else None,
        "failed": state.failed,
        "dropped": False,
    }
