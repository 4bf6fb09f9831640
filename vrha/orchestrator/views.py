"""From rows to what people see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vrha.core.dhcp import name_of_second
from vrha.core.instance import same_service
from vrha.core.outcome import is_unsettled
from vrha.core.steps import describe, node_of, undo_of
from vrha.model.evidence import NO_EVIDENCE, Evidence, Measurement
from vrha.model.runs import Run, StepRecord
from vrha.model.spec import Desired, InstanceSpec, Network, Node, Router
from vrha.model.state import NodeState, RouterState
from vrha.model.steps import Step
from vrha.model.views import (
    NetworkView,
    NodeView,
    RouterStatus,
    RouterView,
    RunView,
    StandbyView,
    StepView,
)
from vrha.store import RunTimes

Timings = Mapping[tuple[int, bool], tuple[tuple[str, float], ...]]
Evidences = Mapping[tuple[int, bool], Evidence]
Begins = Mapping[tuple[int, bool], float]


def run_view(
    run: Run,
    times: RunTimes | None = None,
    timings: Timings | None = None,
    evidence: Evidences | None = None,
    begins: Begins | None = None,
    measurement: Measurement | None = None,
) -> RunView:
    """A run as people see it; without times: one that was only planned."""

    def step(record: StepRecord, undo: bool) -> StepView:
        key = (record.seq, undo)
        view = _step(record, (timings or {}).get(key, ()), (evidence or {}).get(key, NO_EVIDENCE))
        return replace(view, began=(begins or {}).get(key))

    return RunView(
        id=run.id,
        kind=run.kind,
        router=run.router,
        epoch=run.epoch,
        strategy=run.strategy,
        status=run.status,
        steps=tuple(step(r, False) for r in run.steps),
        undo=tuple(step(r, True) for r in run.undo),
        point_of_no_return=run.point_of_no_return,
        old=str(run.old or ""),
        new=str(run.new or ""),
        reason=run.reason,
        detail=run.detail,
        leftovers=run.leftovers,
        started_at=times.started_at if times else "",
        ended_at=times.ended_at if times else "",
        measurement=measurement,
    )


def _step(
    record: StepRecord, timings: tuple[tuple[str, float], ...], evidence: Evidence
) -> StepView:
    return StepView(
        seq=record.seq,
        what=describe(record.step),
        node=node_of(record.step),
        status=record.status,
        attempt=record.attempt,
        error=record.error,
        undo="; ".join(_undo(step, node_of(record.step)) for step in undo_of(record.step)),
        timings_ms=timings,
        kind=record.step.kind,
        evidence=evidence,
    )


def _undo(step: Step, node: str) -> str:
    """`step` in words, with its node where that is another one."""
    elsewhere = f" on {node_of(step)}" if node_of(step) != node else ""
    return describe(step) + elsewhere


NOT_APPLIED = "not-applied"


def router_view(
    router: Router,
    state: RouterState | None,
    open_run: str,
    wanted: InstanceSpec | None,
    standby: StandbyView | None = None,
) -> RouterView:
    """A router and what serves it; `wanted` is what its instance should be now."""
    return RouterView(
        name=router.name,
        networks=router.networks,
        status=_status(state, open_run),
        instance=str(state.active or "") if state else "",
        node=state.node if state else "",
        epoch=state.epoch if state else 0,
        run=open_run,
        reason="" if state is None else state.failed or _behind(state, open_run, wanted),
        policy=router.policy,
        priority=router.priority,
        standby=standby,
    )


def _behind(state: RouterState, open_run: str, wanted: InstanceSpec | None) -> str:
    """Why a serving instance is not what it should be."""
    if open_run or state.applied is None or wanted is None or same_service(state.applied, wanted):
        return ""
    return f"{NOT_APPLIED}: it serves an older desired state; `vrha apply` tries again"


def network_view(
    network: Network, desired: Desired, routers: Mapping[str, RouterView]
) -> NetworkView:
    """A network and the router that serves it."""
    router = desired.router_of(network.name)
    view = routers[router.name] if router else None
    return NetworkView(
        name=network.name,
        bridge=network.bridge,
        subnets=tuple(str(subnet.cidr) for subnet in network.subnets),
        router=view.name if view else "",
        status=view.status if view else RouterStatus.ABSENT,
        node=view.node if view else "",
        run=view.run if view else "",
        second_dhcp=_second_dhcp(network, routers),
    )


def _second_dhcp(network: Network, routers: Mapping[str, RouterView]) -> str:
    if network.shared_dhcp is None:
        return ""
    second = routers.get(name_of_second(network.name))
    node = second.node if second and second.status is not RouterStatus.ABSENT else ""
    return f"{network.dhcp_peer_address} on {node or 'no node'}"


def node_view(node: Node, state: NodeState | None, now: float, draining: bool = False) -> NodeView:
    """A node and what its agent last said; `now` in seconds of the wall clock."""
    return NodeView(
        name=node.name,
        zone=node.zone,
        instances=tuple(str(i.ref) for i in state.instances) if state else (),
        capacity=node.capacity,
        heard_seconds_ago=max(0.0, now - state.seen_at) if state else None,
        version=state.version if state else "",
        draining=draining,
        uplinks=state.uplinks if state else (),
    )


def _status(state: RouterState | None, open_run: str) -> RouterStatus:
    if open_run:
        return RouterStatus.CHANGING
    if state is None:
        return RouterStatus.ABSENT
    if state.active is not None and not is_unsettled(state):
        return RouterStatus.SERVING
    return RouterStatus.FAILED if state.failed else RouterStatus.ABSENT
