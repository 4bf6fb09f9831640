"""Which instances have to have a right where, from what the orchestrator knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vrha.model.ownership import instance_key
from vrha.model.runs import Run
from vrha.model.state import RouterState
from vrha.model.steps import Build


def wanted_rights(states: Iterable[RouterState], open_runs: Iterable[Run]) -> Mapping[str, str]:
    """Instance to node: those that serve, and those that an open run builds beside them.

    What a run is about to replace keeps its right until the run has ended: a relay, or the way
    back. The steps of the run see to it that only one of them shows itself. A standby has none.
    """
    wanted = {
        instance_key(state.active): state.node
        for state in states
        if state.active is not None and state.node
    }
    for run in open_runs:
        for record in run.steps:
            if isinstance(record.step, Build) and record.step.permitted:
                wanted[instance_key(record.step.spec.ref)] = record.step.node
    return wanted
