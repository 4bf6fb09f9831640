"""A run while it goes on: a live list of steps on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import click

from vrha.cli.output import clean
from vrha.errors import DeadlineError, StepError, UnreachableError
from vrha.model.runs import RunStatus, StepStatus
from vrha.model.views import RunView, StepView

if TYPE_CHECKING:
    from rich.text import Text

    from vrha.cli.client import Client

POLL_SECONDS = 0.1
_MARKS = {
    StepStatus.PENDING: ("·", "dim"),
    StepStatus.STARTED: ("▶", "bold yellow"),
    StepStatus.DONE: ("✓", "green"),
    StepStatus.FAILED: ("✗", "bold red"),
    StepStatus.UNDONE: ("↶", "yellow"),
    StepStatus.ABANDONED: ("!", "bold red"),
}


class Progress(Protocol):
    """Shows a run on standard error each time it is told how the run stands."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, run: RunView) -> None: ...


def progress() -> Progress:
    """What suits standard error."""
    return LiveProgress() if sys.stderr.isatty() else PlainProgress()


def follow(client: Client, run_id: str, timeout: float, shown: Progress) -> RunView:
    """The run once it has ended, shown all along; `timeout` in seconds.

    An orchestrator that goes away is waited for: the run is in its journal. Raises
    DeadlineError (`still-running`), or UnreachableError when it has not come back by then.
    """
    deadline = time.monotonic() + timeout
    with shown:
        while True:
            gone: UnreachableError | None = None
            try:
                run = client.run(run_id)
            except UnreachableError as error:
                gone = error
            else:
                shown.update(run)
                if run.status.terminal:
                    return run
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
    if gone is not None:
        raise gone
    raise DeadlineError(
        "still-running",
        f"run {run_id} has not ended within {timeout:g} s and goes on",
        f"`vrha run watch {run_id}` shows it.",
    )


def demand_done(runs: Sequence[RunView]) -> None:
    """Raise StepError (`rolled-back`) when a run of `runs` did not end `done`."""
    failed = [run for run in runs if run.status is not RunStatus.DONE]
    if not failed:
        return
    raise StepError(
        "rolled-back",
        "; ".join(f"run {run.id} of router {run.router} {_why(run)}" for run in failed),
        "\n".join(_next_steps(failed)),
    )


def _why(run: RunView, took: str = "") -> str:
    words = [clean(run.status).replace("_", " ") + took, clean(run.reason), clean(run.detail)]
    return ": ".join(word for word in words if word)


def _next_steps(failed: Sequence[RunView]) -> list[str]:
    lines = [
        f"Left behind by run {run.id}: {', '.join(map(clean, run.leftovers))}."
        for run in failed
        if run.leftovers
    ]
    if any(run.reason in ("no-answer", "no-check-in") for run in failed):
        lines.append(
            "An answer that does not come: `vrha node list` shows whether the agent is heard;"
            " if none is, look at the broker."
        )
    return [*lines, f"`vrha run show {failed[0].id}` shows which step failed."]


def summary(run: RunView) -> str:
    """How the run ended, in one line."""
    took = ""
    if run.started_at and run.ended_at:
        begin, end = map(datetime.fromisoformat, (run.started_at, run.ended_at))
        took = f" after {(end - begin).total_seconds():.2f} s"
    if run.status is not RunStatus.DONE:
        return f"run {run.id} {_why(run, took)}"
    now = f", {run.old} gave way to {run.new}" if run.old and run.new not in ("", run.old) else ""
    return f"run {run.id} done{took}: {run.kind} of router {run.router}{now}"


def headline(run: RunView) -> str:
    """What the run is about, in one line."""
    change = " -> ".join(dict.fromkeys(name for name in (run.old, run.new) if name))
    by = f" by strategy {run.strategy}" if run.strategy else ""
    about = f": {change}" if change else ""
    return f"run {run.id}: {run.kind} of router {run.router}{by}{about}"


def describe(step: StepView) -> str:
    """The step, where it runs, and what is known about it."""
    where = f" on {step.node}" if step.node else ""
    tries = f", attempt {step.attempt}" if step.attempt > 1 else ""
    times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in step.timings_ms)
    spent = f" ({times})" if times else ""
    error = f": {step.error}" if step.error else ""
    return clean(f"{step.what}{where}{tries}{spent}{error}")


class PlainProgress:
    """One line for each step that changed."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, run: RunView) -> None:
        if not self._seen:
            self._say(headline(run))
        for steps, name in ((run.steps, "step"), (run.undo, "undo step")):
            for place, step in enumerate(steps, start=1):
                if step.status is not StepStatus.PENDING:
                    self._say(f"{name} {place}/{len(steps)} {step.status}: {describe(step)}")

    def _say(self, line: str) -> None:
        if line not in self._seen:
            self._seen.add(line)
            click.echo(line, err=True)


class LiveProgress:
    """All steps, redrawn in place, with a clock."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._begin = time.monotonic()
        self._live = Live(console=Console(stderr=True), refresh_per_second=10)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, run: RunView) -> None:
        self._live.update(self._draw(run))

    def _draw(self, run: RunView) -> Text:
        from rich.text import Text

        picture = Text(f"{headline(run)}  {time.monotonic() - self._begin:.1f} s")
        for step in run.steps:
            if step.seq == run.point_of_no_return:
                picture.append("\n  ── from here on there is no way back ──", "dim")
            self._line(picture, step)
        if run.undo:
            picture.append("\n  rolling back")
        for step in run.undo:
            self._line(picture, step)
        return picture

    def _line(self, picture: Text, step: StepView) -> None:
        mark, style = _MARKS[step.status]
        picture.append(f"\n  {mark} ", style)
        picture.append(describe(step), "dim" if step.status is StepStatus.PENDING else "")
