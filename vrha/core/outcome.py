"""What is true of a router once a run has ended."""

from __future__ import annotations

from dataclasses import replace

from vrha.core.steps import describe, node_of
from vrha.model.runs import Run, RunKind, RunStatus, StepRecord, StepStatus
from vrha.model.spec import InstanceSpec
from vrha.model.state import RouterState
from vrha.model.steps import (
    Build,
    Configure,
    Destroy,
    Flip,
    Mute,
    Relay,
    Step,
    Swap,
    TakeOver,
    Unmute,
)

OWNER_UNKNOWN = "owner-unknown"
"""A roll-back could not be confirmed: the old instance serves, the new one, or neither."""
NOT_RESTORED = "not-restored"
"""As above, and the one restart that was tried on that account did not help."""


def is_unsettled(state: RouterState) -> bool:
    """Whether it is not known who serves the router, if anybody."""
    return state.failed.startswith((OWNER_UNKNOWN, NOT_RESTORED))


def outcome_of(run: Run, state: RouterState) -> RouterState:
    """The router's state after the ended `run`."""
    if run.kind is RunKind.STANDBY:
        return _stood_by(run, state) if run.status is RunStatus.DONE else state
    if run.status is RunStatus.ROLLED_BACK:
        return _rolled_back(run, state)
    if run.kind is RunKind.DELETE:
        if run.old != state.active:
            return state
        return _alone(replace(state, active=None, applied=None, node="", failed=""))
    node, spec = next(made for r in run.steps if (made := _made(r.step)) is not None)
    if run.new == state.standby:
        state = _alone(state)
    return replace(state, active=run.new, applied=spec, node=node, failed="")


def _made(step: Step) -> tuple[str, InstanceSpec] | None:
    """Where the step brings what into service."""
    match step:
        case Build(node=node, spec=spec) | Configure(node=node, spec=spec):
            return node, spec
        case TakeOver(node=node, spec=InstanceSpec() as spec):
            return node, spec
    return None


def _stood_by(run: Run, state: RouterState) -> RouterState:
    for record in run.steps:
        if isinstance(record.step, Build | Configure):
            step = record.step
            return replace(
                state, standby=step.spec.ref, standby_node=step.node, standby_spec=step.spec
            )
    removes = isinstance(run.steps[0].step, Destroy)
    return _alone(state) if removes and run.new == state.standby else state


def _alone(state: RouterState) -> RouterState:
    """The state with nobody standing by."""
    return replace(state, standby=None, standby_node="", standby_spec=None)


def _rolled_back(run: Run, state: RouterState) -> RouterState:
    doubt = next((r for r in run.undo if _leaves_doubt(run, r)), None)
    again = is_unsettled(state) and run.kind is not RunKind.DELETE
    if doubt is not None:
        word = NOT_RESTORED if again else OWNER_UNKNOWN
        why = f"{describe(doubt.step)} on {node_of(doubt.step)}: {doubt.error}"
        return replace(state, failed=f"{word}: {why}")
    if again:
        return replace(state, failed=f"{NOT_RESTORED}: {run.reason}: {run.detail}")
    if run.kind is RunKind.CREATE:
        return replace(state, failed=f"{run.reason}: {run.detail}")
    return state


def _leaves_doubt(run: Run, record: StepRecord) -> bool:
    """Whether `record` of a roll-back was given up and decides who serves."""
    if record.status is not StepStatus.ABANDONED:
        return False
    if isinstance(record.step, Mute | Relay):
        return not is_gone(run.undo, record.step)
    return isinstance(record.step, Build | Swap | Flip | Unmute)


def is_gone(records: tuple[StepRecord, ...], mute: Mute | Relay) -> bool:
    """Whether the instance to be silenced was destroyed, which is as good."""
    return any(
        isinstance(r.step, Destroy)
        and r.step.instance == mute.instance
        and r.status is StepStatus.DONE
        for r in records
    )
