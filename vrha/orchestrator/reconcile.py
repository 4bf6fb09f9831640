"""What has to be done so that observed state becomes desired state: runs, as values.

Level-triggered: it looks at what is, not at what was told, so a lost message costs a second.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence, Set
from dataclasses import replace

from vrha.core import plan
from vrha.core.instance import instance_spec, reconfigured, same_service, same_shape
from vrha.core.placement import Candidate, Placement, place
from vrha.errors import RefusedError
from vrha.model.messages import Inventory
from vrha.model.runs import Run, Strategy
from vrha.model.spec import Desired, InstanceRef, Router
from vrha.model.state import Activity, NodeState, ObservedInstance, RouterState
from vrha.model.steps import Build, Configure
from vrha.store import Tx

SILENT_AFTER_S = 15.0
"""A node whose agent was not heard for so long gets no new instances (three inventories)."""

NO_NODE = "no-node"


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


def live_of(state: RouterState) -> plan.Live | None:
    """The serving instance, if there is one."""
    return plan.Live(state.node, state.applied) if state.active and state.applied else None


def converge(tx: Tx, desired: Desired, hard: bool = True) -> tuple[Run, ...]:
    """The runs that bring every router without an open run to its desired state.

    Raises RefusedError when a router that must be restarted cannot be; not `hard`, it waits.
    """
    wanted = {router.name: router for router in desired.routers}
    states = {state.router: state for state in tx.router_states()}
    runs: list[Run] = []
    for name in sorted(wanted.keys() | states.keys()):
        if tx.open_run_of(name) is not None:
            continue
        state = states.get(name, RouterState(name))
        try:
            run = _converge_router(tx, desired, wanted.get(name), state, runs)
        except RefusedError:
            if hard:
                raise
            continue
        if run is not None:
            runs.append(run)
    return tuple(runs)


def leads_elsewhere(desired: Desired, run: Run) -> bool:
    """Whether the open `run` leads to something else than `desired`."""
    target = next((r.step.spec for r in run.steps if isinstance(r.step, Build | Configure)), None)
    wanted = desired.router(run.router)
    if wanted is None or target is None:
        return wanted is not None or target is not None
    return not same_service(target, instance_spec(desired, wanted, target.ref, 0))


def _converge_router(
    tx: Tx, desired: Desired, wanted: Router | None, state: RouterState, planned: Sequence[Run]
) -> Run | None:
    live = live_of(state)
    if wanted is None:
        return _delete(tx, live, state) if live else None
    if live is None:
        return _create(tx, desired, wanted, state, planned)
    spec = instance_spec(desired, wanted, live.ref, live.spec.epoch)
    if same_service(live.spec, spec):
        return None
    if same_shape(live.spec, spec):
        # With the newest epoch: a restart that was rolled back has raised it on the node.
        wanted_live = replace(reconfigured(live.spec, spec), epoch=state.epoch)
        return plan.update(new_run_id(), live, wanted_live)
    return restart(tx, desired, wanted, Strategy.PARALLEL, planned=planned)


def _create(
    tx: Tx, desired: Desired, router: Router, state: RouterState, planned: Sequence[Run]
) -> Run | None:
    placement = placement_of(tx, desired, router, planned=planned)
    if not placement.node:
        failed = f"{NO_NODE}: {placement.explain()}"
        if failed != state.failed:
            tx.put_router_state(replace(state, failed=failed))
            tx.add_event("not-placed", NO_NODE, router=router.name, detail=placement.explain())
        return None
    state = _next_owner(tx, replace(state, failed=""))
    ref = InstanceRef(router.name, state.generation)
    spec = instance_spec(desired, router, ref, state.epoch)
    return plan.create(new_run_id(), placement.node, spec)


def _delete(tx: Tx, live: plan.Live, state: RouterState) -> Run:
    state = _next_owner(tx, state)
    return plan.delete(new_run_id(), live, state.epoch)


def restart(
    tx: Tx,
    desired: Desired,
    router: Router,
    strategy: Strategy,
    dry_run: bool = False,
    planned: Sequence[Run] = (),
) -> Run:
    """`restart network with cleanup` of the router. Raises RefusedError."""
    state = tx.router_state(router.name) or RouterState(router.name)
    live = live_of(state)
    if live is None:
        raise RefusedError(
            "no-instance",
            f"router {router.name} has no instance to restart"
            + (f" ({state.failed})" if state.failed else ""),
            "`vrha apply` tries again to create it; `vrha node list` shows the nodes.",
        )
    placement = placement_of(tx, desired, router, live.node, planned)
    if not placement.node:
        raise RefusedError(
            NO_NODE,
            f"no node can host a replacement of {router.name}: {placement.explain()}",
            "`vrha node list` shows when each agent was last heard.",
        )
    if dry_run:
        state = replace(state, epoch=state.epoch + 1, generation=state.generation + 1)
    else:
        state = _next_owner(tx, state)
    ref = InstanceRef(router.name, state.generation)
    spec = instance_spec(desired, router, ref, state.epoch)
    return plan.restart(new_run_id(), strategy, live, placement.node, spec)


def placement_of(
    tx: Tx, desired: Desired, router: Router, beside: str = "", planned: Sequence[Run] = ()
) -> Placement:
    """Where an instance of `router` may be built now; `planned` runs are about to start."""
    hosted = _hosted(tx.router_states(), (*tx.open_runs(), *planned))
    # The instance to be replaced makes room: a full node can restart what it hosts.
    others = {(name, node) for name, node in hosted if name != router.name}
    return place(router, candidates(desired, tx.node_states(), others), beside)


def _hosted(routers: Sequence[RouterState], runs: Sequence[Run]) -> set[tuple[str, str]]:
    """Routers and the nodes that host them, or are about to."""
    serving = {(state.router, state.node) for state in routers if state.active}
    builds = {(r.router, s.step.node) for r in runs for s in r.steps if isinstance(s.step, Build)}
    return serving | builds


def candidates(
    desired: Desired, nodes: Sequence[NodeState], hosted: Set[tuple[str, str]]
) -> tuple[Candidate, ...]:
    """The desired nodes with their load, and whether their agents are heard."""
    seen = {state.name: state.seen_at for state in nodes}
    alive = time.time() - SILENT_AFTER_S
    return tuple(
        Candidate(
            node,
            sum(1 for _, name in hosted if name == node.name),
            seen.get(node.name, 0.0) >= alive,
        )
        for node in desired.nodes
    )


def after_inventory(tx: Tx, inventory: Inventory, previous: NodeState | None) -> tuple[Run, ...]:
    """Runs that a node's inventory gives reason to: orphans go, unplaced routers get a place."""
    runs = _orphans(tx, inventory, previous)
    if previous is None or any(s.failed.startswith(NO_NODE) for s in tx.router_states()):
        busy = {run.router for run in runs}
        runs += [run for run in converge(tx, tx.desired()[1], hard=False) if run.router not in busy]
    return tuple(runs)


def _orphans(tx: Tx, inventory: Inventory, previous: NodeState | None) -> list[Run]:
    """Muted instances that no run and no router names any more.

    Only when two inventories in a row show one: a single one may have been taken before the
    run that removed it had ended. An instance that is active, or whose router the store has
    never heard of, is left alone: it may serve somebody (I2).
    """
    before = {i.ref for i in previous.instances} if previous else set()
    return [
        _reap(tx, inventory.node, state, observed)
        for observed in inventory.instances
        if observed.ref in before
        and observed.activity is not Activity.ACTIVE
        and tx.open_run_of(observed.ref.router) is None
        and (state := tx.router_state(observed.ref.router)) is not None
        and observed.ref.generation <= state.generation
        and (state.active, state.node) != (observed.ref, inventory.node)
    ]


def _reap(tx: Tx, node: str, state: RouterState, observed: ObservedInstance) -> Run:
    tx.add_event(
        "orphan-found", "not-named", router=state.router, node=node, detail=str(observed.ref)
    )
    return plan.reap(new_run_id(), node, observed.ref, state.epoch)


def _next_owner(tx: Tx, state: RouterState) -> RouterState:
    """Hand out the router's next epoch and generation."""
    state = replace(state, epoch=state.epoch + 1, generation=state.generation + 1)
    tx.put_router_state(state)
    return state
