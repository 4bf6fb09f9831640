"""Runs as text: a plan before it starts, and a run in full."""

from __future__ import annotations

from collections.abc import Iterator

from vrha.cli.output import clean, record
from vrha.cli.progress import describe, headline
from vrha.model.views import RunView


def plan(run: RunView) -> str:
    """The steps that would be taken, each with its undo, and the point of no return."""
    title = headline(run).partition(": ")[2]
    return "\n".join([f"{title}", *planned(run), "", "Dry run: nothing was started."])


def planned(run: RunView) -> Iterator[str]:
    """The lines of the steps that would be taken, with their undo."""
    for place, step in enumerate(run.steps, start=1):
        if step.seq == run.point_of_no_return:
            yield "      --- from the start of the next step there is no way back ---"
        where = f" on {step.node}" if step.node else ""
        yield clean(f"{place:>4}  {step.what}{where}")
        if step.undo:
            yield clean(f"        undo: {step.undo}")


def full(run: RunView) -> str:
    """The run with all its steps and what became of them."""
    facts = record(
        (
            ("run", run.id),
            ("kind", run.kind),
            ("status", run.status.replace("_", " ")),
            ("reason", run.reason),
            ("detail", run.detail),
            ("router", run.router),
            ("epoch", run.epoch),
            ("strategy", run.strategy),
            ("old", run.old),
            ("new", run.new),
            ("started", run.started_at),
            ("ended", run.ended_at),
            ("left behind", run.leftovers),
        )
    )
    return "\n".join([facts, "steps:", *_steps(run)])


def _steps(run: RunView) -> Iterator[str]:
    for place, step in enumerate(run.steps, start=1):
        if step.seq == run.point_of_no_return:
            yield "      --- point of no return ---"
        yield f"{place:>4}  {step.status:<9}  {describe(step)}"
    if run.undo:
        yield "roll-back:"
    for place, step in enumerate(run.undo, start=1):
        yield f"{place:>4}  {step.status:<9}  {describe(step)}"
