"""What has to be done so that observed state becomes desired state: runs, as values.

Level-triggered: it looks at what is, not at what was told, so a lost message costs a second.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from vrha.core import plan
from vrha.core.choice import HANDOVER, Choice, choose
from vrha.core.damping import is_delayed, is_suppressed
from vrha.core.dhcp import nodes_of_partners
from vrha.core.instance import (
    in_disguise,
    instance_spec,
    reconfigured,
    same_service,
    same_shape,
)
from vrha.core.outcome import OWNER_UNKNOWN, is_unsettled
from vrha.core.pauses import paused_by
from vrha.core.placement import Candidate, Placement, place
from vrha.core.standby import standby_of
from vrha.errors import NotFoundError, RefusedError
from vrha.model.health import NodeHealth
from vrha.model.messages import Inventory
from vrha.model.pauses import Pause
from vrha.model.runs import AS_CONFIGURED, RestartOptions, Run, RunKind, Strategy
from vrha.model.spec import Desired, InstanceRef, InstanceSpec, Router
from vrha.model.state import Activity, NodeState, ObservedInstance, RouterState
from vrha.model.steps import Build, Configure, Peer, Relay
from vrha.store import Tx

SILENT_AFTER_S = 15.0
"""A node whose agent was not heard for so long gets no new instances (three inventories)."""

NO_NODE = "no-node"


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


def live_of(state: RouterState) -> plan.Live | None:
    """The serving instance, if there is one."""
    return plan.Live(state.node, state.applied) if state.active and state.applied else None


def converge(tx: Tx, desired: Desired, only: frozenset[str] | None = None) -> tuple[Run, ...]:
    """The runs that bring routers without an open run to their desired state; `only` these."""
    wanted = {router.name: router for router in desired.routers}
    names = only if only is not None else wanted.keys() | {s.router for s in tx.router_briefs()}
    busy = tx.busy()
    runs: list[Run] = []
    # Second DHCP servers last: they go where their router is not.
    seconds = {router.name for router in desired.routers if router.dhcp_of}
    for name in sorted(names - busy.keys(), key=lambda name: (name in seconds, name)):
        state = tx.router_state(name) or RouterState(name)
        run = _converge_router(tx, desired, wanted.get(name), state, runs)
        if run is not None:
            runs.append(run)
    return tuple(runs)


def leads_elsewhere(desired: Desired, run: Run) -> bool:
    """Whether the open `run` leads to something else than `desired`; a standby's gives way."""
    if run.kind is RunKind.STANDBY:
        return False
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
        return _delete(tx, live, state)
    if is_unsettled(state) or (live is not None and _needs_rebuild(desired, wanted, live)):
        return _rebuild(tx, desired, wanted, state, planned)
    if live is None:
        return _create(tx, desired, wanted, state, planned)
    spec = instance_spec(desired, wanted, live.ref, live.spec.epoch)
    if same_service(live.spec, spec):
        return None
    state = _next_epoch(tx, state)
    return plan.update(
        new_run_id(), live, reconfigured(live.spec, replace(spec, epoch=state.epoch))
    )


def _needs_rebuild(desired: Desired, wanted: Router, live: plan.Live) -> bool:
    return not same_shape(live.spec, instance_spec(desired, wanted, live.ref, live.spec.epoch))


def _rebuild(
    tx: Tx, desired: Desired, router: Router, state: RouterState, planned: Sequence[Run]
) -> Run | None:
    """A restart that nobody asked for; where it cannot be, the router waits and says why."""
    try:
        return restart(tx, desired, router, Wanted(Strategy.PARALLEL, planned=planned))
    except RefusedError as error:
        if not is_unsettled(state):
            _not_placed(tx, state, error.message)
        return None


def _not_placed(tx: Tx, state: RouterState, why: str) -> None:
    failed = f"{NO_NODE}: {why}"
    if failed != state.failed:
        tx.put_router_state(replace(state, failed=failed))
        tx.add_event("not-placed", NO_NODE, router=state.router, detail=why)


def _create(
    tx: Tx, desired: Desired, router: Router, state: RouterState, planned: Sequence[Run]
) -> Run | None:
    placement = placement_of(tx, desired, router, planned=planned)
    if not placement.node:
        _not_placed(tx, state, placement.explain())
        return None
    state = _next_owner(tx, replace(state, failed=""))
    ref = InstanceRef(router.name, state.generation)
    spec = instance_spec(desired, router, ref, state.epoch)
    return plan.create(new_run_id(), placement.node, spec)


def _delete(tx: Tx, live: plan.Live | None, state: RouterState) -> Run | None:
    standby = standby_of(state)
    if live is not None:
        return plan.delete(new_run_id(), live, _next_epoch(tx, state).epoch, standby)
    if standby is None:
        tx.drop_router_state(state.router)
        return None
    return plan.stand_down(new_run_id(), standby, _next_epoch(tx, state).epoch)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a restart. `preferred` gives way to what is possible; `strategy` not."""

    preferred: Strategy
    options: RestartOptions = AS_CONFIGURED
    kind: RunKind = RunKind.RESTART
    dry_run: bool = False
    planned: Sequence[Run] = ()
    """Runs that are about to start."""
    avoid: Set[str] = frozenset()
    """Nodes that must not be chosen."""


def restart(tx: Tx, desired: Desired, router: Router, wanted: Wanted) -> Run:
    """`restart network with cleanup` of the router, or its move.

    Raises RefusedError, NotFoundError `no-such-node`.
    """
    state = tx.router_state(router.name) or RouterState(router.name)
    following = replace(state, epoch=state.epoch + 1, generation=state.generation + 1)
    ref = InstanceRef(router.name, following.generation)
    spec = instance_spec(desired, router, ref, following.epoch)
    live = live_of(state)
    if is_unsettled(state):
        live = _found_live(tx, desired, state, live.spec if live else spec)
    if live is None:
        raise RefusedError(
            "no-instance",
            f"router {router.name} has no instance to restart"
            + (f" ({state.failed})" if state.failed else ""),
            "`vrha apply` tries again to create it; `vrha node list` shows the nodes.",
        )
    node = _target(tx, desired, router, live, wanted)
    way = _way(tx, state, live, node, spec, wanted)
    if is_unsettled(state):
        way = replace(way, silence=_others(tx, desired, state, live))
    if way.strategy is Strategy.HANDOVER and node == live.node:
        spec = in_disguise(live.spec, spec)
    if not wanted.dry_run:
        tx.put_router_state(following)
    return plan.restart(new_run_id(), way, live, node, spec, wanted.kind)


def _target(tx: Tx, desired: Desired, router: Router, live: plan.Live, wanted: Wanted) -> str:
    if wanted.options.node:
        _refuse_unknown(desired, wanted.options.node)
        _refuse_unfit(tx, desired, router, wanted.options.node, wanted.planned)
        return wanted.options.node
    placement = placement_of(tx, desired, router, live.node, wanted.planned, wanted.avoid)
    if not placement.node:
        raise RefusedError(
            NO_NODE,
            f"no node can host a replacement of {router.name}: {placement.explain()}",
            "`vrha node list` shows when each agent was last heard, and what is being drained.",
        )
    return placement.node


def _way(
    tx: Tx, state: RouterState, live: plan.Live, node: str, spec: InstanceSpec, wanted: Wanted
) -> plan.Way:
    """How the replacement takes over. Raises RefusedError `strategy-impossible`."""
    nodes = {n.name: n for n in tx.node_states()}
    old, new = nodes.get(live.node), nodes.get(node)
    asked = wanted.options.strategy
    choice = choose(asked or wanted.preferred, live, spec, old, new)
    if is_unsettled(state) and choice.strategy is Strategy.HANDOVER:
        choice = Choice(Strategy.PARALLEL, "it is not certain which instance serves")
    if asked is not None and choice.strategy is not asked:
        raise RefusedError(
            "strategy-impossible",
            f"router {state.router} cannot be restarted by strategy {asked}: {choice.why}",
            f"Without --strategy it would be {choice.strategy}.",
        )
    options = wanted.options
    way = plan.Way(choice.strategy, options.hold, options.max_lost)
    if choice.strategy is Strategy.HANDOVER and old is not None and new is not None and old != new:
        token = secrets.token_urlsafe(32)
        way = replace(way, old_peer=peer_of(old, token), new_peer=peer_of(new, token))
    return way


def peer_of(node: NodeState, token: str) -> Peer:
    """The agent of the node as others find and recognise it."""
    return Peer(node.name, node.sync_address, node.certificate, token)


def _found_live(tx: Tx, desired: Desired, state: RouterState, spec: InstanceSpec) -> plan.Live:
    """What serves a router whose last roll-back was not confirmed, by what the nodes say now.

    Raises RefusedError `owner-unknown` unless the nodes in question were heard since, and at
    most one instance of the router is active: a second owner would be worse than none (I1).
    """
    names = {node.name for node in desired.nodes}
    nodes = [node for node in tx.node_states() if node.name in names]
    silent = [node.name for node in nodes if node.seen_at == 0]
    active = [
        (node.name, found.ref)
        for node in nodes
        for found in node.instances
        if found.ref.router == state.router and _may_own(found)
    ]
    if silent or len(active) > 1:
        seen = ", ".join(f"{ref} on {node}" for node, ref in active) or "none"
        raise RefusedError(
            OWNER_UNKNOWN,
            f"router {state.router}: active is {seen}; not heard: {', '.join(silent) or 'none'}",
            "Start the agents of these nodes, or take a lost node out of the desired state.",
        )
    node, ref = active[0] if active else (state.node, state.active or spec.ref)
    return plan.Live(node, replace(spec, ref=ref))


def _others(tx: Tx, desired: Desired, state: RouterState, live: plan.Live) -> tuple[Relay, ...]:
    """What silences every other instance of a router whose owner is unknown.

    Steps of the roll-back that were given up may still wait in the queue of a node, and make one
    of them owner before the node takes the steps of the run that comes now (I1). Agents that know
    no relays must do without.
    """
    wanted = {node.name for node in desired.nodes}
    found: list[Relay] = []
    for node in tx.node_states():
        if node.name not in wanted or HANDOVER not in node.capabilities:
            continue
        refs = {i.ref for i in node.instances if i.ref.router == state.router}
        if state.active is not None and state.node == node.name:
            refs.add(state.active)
        here = live.ref if live.node == node.name else None
        found += [Relay(node.name, ref) for ref in sorted(refs) if ref != here]
    return tuple(found)


def refuse_target(tx: Tx, desired: Desired, router: Router, node: str) -> None:
    """Whether the router may be moved to `node`, as a user asks for it.

    Raises NotFoundError `no-such-node`, RefusedError `already-there`, `no-node`.
    """
    _refuse_unknown(desired, node)
    state = tx.router_state(router.name)
    if state is not None and state.active and state.node == node:
        raise RefusedError(
            "already-there",
            f"router {router.name} is on {node} already",
            "`vrha network restart` replaces it there.",
        )
    _refuse_unfit(tx, desired, router, node)


def _refuse_unknown(desired: Desired, node: str) -> None:
    if node not in (n.name for n in desired.nodes):
        known = ", ".join(n.name for n in desired.nodes)
        raise NotFoundError("no-such-node", f"no node {node}", f"Nodes: {known}.")


def _refuse_unfit(
    tx: Tx, desired: Desired, router: Router, node: str, planned: Sequence[Run] = ()
) -> None:
    reason = placement_of(tx, desired, router, planned=planned).unfit.get(node)
    if reason is not None:
        raise RefusedError(NO_NODE, f"{node} cannot host router {router.name}: {reason}")


def placement_of(
    tx: Tx,
    desired: Desired,
    router: Router,
    beside: str = "",
    planned: Sequence[Run] = (),
    avoid: Set[str] = frozenset(),
) -> Placement:
    """Where an instance of `router` may be built now; `planned` runs are about to start."""
    found = hosted(tx, planned)
    # The instance to be replaced makes room: a full node can restart what it hosts.
    others = {(name, node) for name, node in found if name != router.name}
    draining = tx.rollouts.cordoned() | avoid
    health = tx.node_health.all()
    nodes = candidates(desired, tx.node_states(), others, draining, health)
    away = nodes_of_partners(desired, router, found)
    apart = [c for c in nodes if c.node.name not in away or c.node.name == beside]
    placement = place(router, apart, beside)
    # Rather two on one node than one that is nowhere: clients renew with either.
    return placement if placement.node or not away else place(router, nodes, beside)


def hosted(tx: Tx, planned: Sequence[Run] = ()) -> set[tuple[str, str]]:
    """Routers and the nodes that host them or their standbys, or are about to."""
    routers = tx.router_briefs()
    serving = {(state.router, state.node) for state in routers if state.active}
    serving |= {(state.router, state.standby_node) for state in routers if state.standby}
    builds = {
        (r.router, s.step.node) for r in planned for s in r.steps if isinstance(s.step, Build)
    }
    return serving | builds | tx.open_builds()


def candidates(
    desired: Desired,
    nodes: Sequence[NodeState],
    hosted: Set[tuple[str, str]],
    draining: Set[str] = frozenset(),
    health: Mapping[str, NodeHealth] | None = None,
    pauses: Sequence[Pause] = (),
) -> tuple[Candidate, ...]:
    """The desired nodes with their load, whether their agents are heard, and whether they flap."""
    seen = {state.name: state.seen_at for state in nodes}
    now = time.time()
    load = Counter(node for _, node in hosted)
    known = {n.name: (health or {}).get(n.name, NodeHealth(n.name)) for n in desired.nodes}
    return tuple(
        Candidate(
            node,
            load[node.name],
            heard=seen.get(node.name, 0.0) >= now - SILENT_AFTER_S,
            draining=node.name in draining,
            paused=paused_by(pauses, zone=node.zone, node=node.name) is not None,
            suppressed=is_suppressed(known[node.name], now),
            delayed=is_delayed(known[node.name], now),
        )
        for node in desired.nodes
    )


def after_inventory(
    tx: Tx, inventory: Inventory, previous: NodeState | None, heals: bool = True
) -> tuple[Run, ...]:
    """Runs that a node's inventory gives reason to; `heals`: sick routers are restarted.

    Orphans go; routers without a place get one; and once two inventories in a row have come
    from a node that fell silent, or lost an instance (a reboot), routers whose owner is unknown
    for that are rebuilt.
    """
    _tell_of_strangers(tx, inventory, previous)
    _miss(tx, inventory, previous)
    runs = _orphans(tx, inventory, previous)
    if heals:
        runs += _sick(tx, inventory, {run.router for run in runs})
    waiting = (NO_NODE,) if previous is None else (NO_NODE, OWNER_UNKNOWN)
    names = {s.router for s in tx.router_briefs() if s.failed.startswith(waiting)}
    if previous is None:
        names |= {router.name for router in tx.desired()[1].routers}
    names -= {run.router for run in runs}
    if names:
        runs += converge(tx, tx.desired()[1], frozenset(names))
    return tuple(runs)


def _sick(tx: Tx, inventory: Inventory, planned: Set[str]) -> list[Run]:
    """Restarts of routers through which nothing comes any more, but those that are `planned`; what
    serves is kept until a new instance has proved itself."""
    desired, pauses = tx.desired()[1], tx.pauses.all()
    busy = tx.busy().keys() | planned
    zone = next((node.zone for node in desired.nodes if node.name == inventory.node), "")
    runs: list[Run] = []
    for ref in (found.ref for found in inventory.instances if found.sick):
        router, state = desired.router(ref.router), tx.router_state(ref.router)
        if router is None or state is None or ref.router in busy:
            continue
        is_paused = paused_by(pauses, zone=zone, node=inventory.node, router=ref.router)
        if is_paused or (state.active, state.node) != (ref, inventory.node):
            continue
        try:
            run = restart(tx, desired, router, Wanted(Strategy.PARALLEL, planned=runs))
        except RefusedError as error:
            _not_placed(tx, state, error.message)
            continue
        what = f"nothing comes through {ref}; it is built anew"
        tx.add_event("router-sick", "vr-sick", router=router.name, node=inventory.node, detail=what)
        runs.append(run)
    return runs


def _miss(tx: Tx, inventory: Inventory, previous: NodeState | None) -> None:
    """A serving instance that its node has not got any more, or that is silent or lacks a port or
    its namespace, serves nobody.

    Only when two inventories in a row say so: one may be older than the run that built it. Were
    they wrong all the same, the rebuild would mute what is there before it enables another.
    """
    seen = (*(previous.instances if previous else ()), *inventory.instances)
    present = {i.ref for i in seen if i.activity is Activity.ACTIVE}
    silent = {i.ref: i.activity for i in inventory.instances}
    busy = tx.busy()
    for brief in tx.router_briefs():
        gone = brief.active is not None and brief.active not in present
        if not gone or brief.node != inventory.node or brief.router in busy or brief.failed:
            continue
        there = silent.get(brief.active) if brief.active else None
        what = f"is only {there}" if there else "is no longer"
        why = f"{OWNER_UNKNOWN}: {brief.active} {what} on {inventory.node}"
        state = tx.router_state(brief.router)
        assert state is not None
        tx.put_router_state(replace(state, failed=why))
        tx.add_event(
            "instance-missing", OWNER_UNKNOWN, router=brief.router, node=inventory.node, detail=why
        )


def _may_own(observed: ObservedInstance) -> bool:
    """Whether the instance may answer for the router's addresses; a relay only forwards."""
    return observed.activity not in (Activity.MUTED, Activity.RELAY)


def _tell_of_strangers(tx: Tx, inventory: Inventory, previous: NodeState | None) -> None:
    """An active instance that nothing names may be a second owner: people must hear of it."""
    known = {i.ref for i in previous.instances if i.activity is Activity.ACTIVE} if previous else ()
    named = {(state.active, state.node) for state in tx.router_briefs()}
    busy = tx.open_run_ids()
    for ref in (i.ref for i in inventory.instances if i.activity is Activity.ACTIVE):
        if ref not in known and ref.router not in busy and (ref, inventory.node) not in named:
            detail = f"{ref} is active and nothing names it"
            tx.add_event(
                "stranger-found", "active", router=ref.router, node=inventory.node, detail=detail
            )


def _orphans(tx: Tx, inventory: Inventory, previous: NodeState | None) -> list[Run]:
    """Muted instances and relays that no run and no router names any more, one of each router.

    Only when two inventories in a row show one: a single one may have been taken before the
    run that removed it had ended. An instance that is active, or whose router the store has
    never heard of, is left alone: it may serve somebody (I2).
    """
    before = {i.ref for i in previous.instances} if previous else set()
    suspects = [
        o for o in inventory.instances if o.ref in before and o.activity is not Activity.ACTIVE
    ]
    runs: dict[str, Run] = {}
    busy = tx.open_run_ids() if suspects else {}
    for observed in suspects:
        router = observed.ref.router
        if router in busy or router in runs:
            continue
        state = tx.router_state(router)
        if state is None or observed.ref.generation > state.generation:
            continue
        named = ((state.active, state.node), (state.standby, state.standby_node))
        if is_unsettled(state) or (observed.ref, inventory.node) in named:
            continue
        runs[router] = _reap(tx, inventory.node, state, observed)
    return list(runs.values())


def _reap(tx: Tx, node: str, state: RouterState, observed: ObservedInstance) -> Run:
    tx.add_event(
        "orphan-found", "not-named", router=state.router, node=node, detail=str(observed.ref)
    )
    return plan.reap(new_run_id(), node, observed.ref, _next_epoch(tx, state).epoch)


def _next_owner(tx: Tx, state: RouterState) -> RouterState:
    """Hand out the router's next epoch and generation."""
    return _next_epoch(tx, replace(state, generation=state.generation + 1))


def _next_epoch(tx: Tx, state: RouterState) -> RouterState:
    """Hand out the router's next epoch: every run has one of its own."""
    state = replace(state, epoch=state.epoch + 1)
    tx.put_router_state(state)
    return state
