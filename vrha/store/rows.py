"""Runs, router states and nodes as rows and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vrha import codec
from vrha.model.runs import Run, StepRecord, StepStatus
from vrha.model.spec import InstanceRef, InstanceSpec
from vrha.model.state import RouterState
from vrha.model.steps import Step


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


_LARGE = 4096
"""Characters of a step from which on it is quicker to remember it than to decode it again."""


class Steps:
    """Steps as JSON text and back; remembers the last large ones: builds with their rules.

    A text always gives the same object, so comparing an unchanged step costs nothing.
    """

    def __init__(self, remembered: int = 32) -> None:
        self._remembered = remembered
        self._known: dict[str, Step] = {}

    def step(self, text: str) -> Step:
        found = self._known.pop(text, None)
        step = found or codec.decode(Step, text)  # type: ignore[arg-type]
        self._remember(text, step)
        return step

    def text(self, step: Step) -> str:
        text = codec.encode(step, Step).decode()
        self._remember(text, step)
        return text

    def _remember(self, text: str, step: Step) -> None:
        if len(text) < _LARGE:
            return
        self._known[text] = step
        if len(self._known) > self._remembered:
            del self._known[next(iter(self._known))]

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
    started = (r for r in (*run.steps, *run.undo) if r.status is StepStatus.STARTED)
    return min((r.deadline for r in started if r.deadline is not None), default=None)


def run_of(body: str, steps: tuple[StepRecord, ...], undo: tuple[StepRecord, ...]) -> Run:
    return replace(codec.decode(Run, body), steps=steps, undo=undo)


def router_values(state: RouterState) -> dict[str, Any]:
    return {
        "router": state.router,
        "epoch": state.epoch,
        "generation": state.generation,
        "node": state.node,
        "active": state.active.generation if state.active else None,
        "applied": codec.encode(state.applied).decode() if state.applied else None,
        "failed": state.failed,
        "dropped": False,
    }


def router_state_of(row: Any) -> RouterState:
    return RouterState(
        router=row.router,
        epoch=row.epoch,
        generation=row.generation,
        node=row.node,
        active=None if row.active is None else InstanceRef(row.router, row.active),
        applied=None if row.applied is None else codec.decode(InstanceSpec, row.applied),
        failed=row.failed,
    )
