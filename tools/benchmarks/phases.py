"""How long the phases of a run took, as its nodes measured them."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise
from typing import Any

from vrha.model.views import RunView, StepView

PHASES = {
    "build": "build",
    "offer": "sync",
    "sync": "sync",
    "mute": "flip",
    "unmute": "flip",
    "swap": "flip",
    "verify": "verify",
    "announce": "announce",
    "destroy": "retire",
}
"""Kind of step to phase; in a serial restart retiring comes before building."""
_TURNS = ("flip", "swap", "mute")
"""Kinds of steps with which the old instance stops serving."""


def of_run(run: RunView) -> dict[str, float]:
    """Milliseconds per phase.

    `flip` is the turn itself: of a step `flip` the phase of that name, without what it prepares
    and the time it lingers. `before_flip` is from the run's start to that, `total` to its end.
    """
    found: dict[str, float] = {}
    for step in run.steps:
        timings = dict(step.timings_ms)
        name = PHASES.get(step.kind)
        if step.kind == "flip" and "flip" in timings:
            found["flip"] = timings["flip"]
        elif name is not None and "total" in timings:
            found[name] = found.get(name, 0.0) + timings["total"]
    start = _unix_ms(run.started_at)
    turn = next((step for step in run.steps if step.kind in _TURNS), None)
    if turn is not None and turn.began is not None:
        found["before_flip"] = turn.began * 1000 + _before_the_turn(turn) - start
    if (proof := _check_in(run)) is not None:
        found["checkin"] = proof
    found["total"] = _unix_ms(run.ended_at) - start
    return {name: round(ms, 3) for name, ms in found.items()}


def details(run: RunView) -> dict[str, dict[str, float]]:
    """All phases of all steps, by kind of step."""
    return {
        step.kind: {name: round(ms, 3) for name, ms in step.timings_ms}
        for step in run.steps
        if step.timings_ms
    }


def carried(run: RunView) -> dict[str, Any]:
    """What was carried over in the end: sent, taken, and refused by reason."""
    return {
        item.what: {"sent": item.sent, "taken": item.taken, "refused": dict(item.refused)}
        for step in run.steps
        for item in step.evidence.carried
    }


def _before_the_turn(step: StepView) -> float:
    """Milliseconds from the beginning of the step to the turn; not all of them are in a phase."""
    names = [name for name, _ in step.timings_ms]
    if "flip" not in names or "total" not in names:
        return 0.0
    since = sum(ms for name, ms in step.timings_ms[names.index("flip") :] if name != "total")
    return dict(step.timings_ms)["total"] - since


def _check_in(run: RunView) -> float | None:
    """From the end of the build to the next step on a node, which the check-in lets begin."""
    begun = [step for step in run.steps if step.began is not None]
    for step, following in pairwise(begun):
        if step.kind == "build" and step.began is not None and following.began is not None:
            return (following.began - step.began) * 1000 - dict(step.timings_ms).get("total", 0.0)
    return None


def _unix_ms(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp() * 1000
