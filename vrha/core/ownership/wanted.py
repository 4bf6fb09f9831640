"""Which instances have to have a right where, from what the orchestrator knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from vrha.model.ownership import instance_key
from vrha.model.runs import Run, RunStatus, StepStatus
from vrha.model.spec import InstanceRef
from vrha.model.state import RouterState
from vrha.model.steps import Build, TakeOver


class Claim(StrEnum):
    """What right an open run needs for the instance that it brings."""

    BESIDE = "beside"
    """From the beginning, beside that of the serving one: the run's steps decide who speaks."""
    LATER = "later"
    """In place of all others of the router, once it is complete."""
    NOW = "now"
    """As above: it is complete."""
    MET = "met"
    """It has taken over."""


@dataclass(frozen=True, slots=True)
class Claimant:
    """The instance of an open run that needs a right, and how."""

    run: str
    instance: InstanceRef
    node: str
    claim: Claim

    @property
    def waits(self) -> bool:
        """Whether it is to take over, and has not."""
        return self.claim in (Claim.LATER, Claim.NOW)

    @property
    def key(self) -> str:
        return instance_key(self.instance)


def claimant_of(run: Run) -> Claimant | None:
    """What the run needs; None when that is nothing."""
    for record in run.steps:
        if isinstance(record.step, TakeOver):
            claim = Claim.LATER
            if record.status is StepStatus.DONE:
                claim = Claim.MET
            elif run.status is not RunStatus.RUNNING:
                return None
            elif record.status is StepStatus.STARTED:
                claim = Claim.NOW
            return Claimant(run.id, record.step.instance, record.step.node, claim)
    for record in run.steps:
        # One that stands by has no right yet.
        if isinstance(record.step, Build) and not record.step.ready:
            return Claimant(run.id, record.step.spec.ref, record.step.node, Claim.BESIDE)
    return None


def wanted_rights(
    states: Iterable[RouterState], claimants: Collection[Claimant]
) -> Mapping[str, str]:
    """Instance to node: those that serve, and those that an open run has brought beside them.

    What a run is about to replace keeps its right until the run has ended: a relay, or the way
    back. The steps of the run see to it that only one of them shows itself. Not so where the other
    one is out of reach: then rights go from one to the other at once.
    """
    wanted: dict[str, str] = {}
    met = {each.instance.router for each in claimants if each.claim is Claim.MET}
    for state in states:
        if state.active is not None and state.node and state.router not in met:
            wanted[instance_key(state.active)] = state.node
    for each in claimants:
        if each.claim in (Claim.BESIDE, Claim.MET):
            wanted[each.key] = each.node
    return wanted
