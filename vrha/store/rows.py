"""Runs, router states and nodes as rows and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
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
    """A message to a node that was not sent yet; `id` is never given out again."""

    id: int
    node: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Progress:
    """A StepRecord without its step."""

    status: StepStatus
    attempt: int
    deadline: float | None
    error: str
    result: tuple[tuple[str, str], ...]


class Steps:
    """Steps as JSON text and back; remembers the last texts, because builds are large.

    A text always gives the same object, so comparing an unchanged step costs nothing.
    """

    def __init__(self, remembered: int = 256) -> None:
        self.step = lru_cache(remembered)(self._step)

    @staticmethod
    def _step(text: str) -> Step:
        return codec.decode(Step, text)  # type: ignore[arg-type]

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


def step_text(record: StepRecord) -> str:
    return codec.encode(record.step, Step).decode()


def progress_text(record: StepRecord) -> str:
    progress = _Progress(
        record.status, record.attempt, record.deadline, record.error, record.result
    )
    return codec.encode(progress).decode()


def run_text(run: Run) -> str:
    """The run without its steps."""
    return codec.encode(replace(run, steps=(), undo=())).decode()


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
