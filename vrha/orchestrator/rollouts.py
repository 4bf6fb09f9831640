"""Rollouts in motion: members whose runs have ended are settled, the next ones have their turn.

Everything is in the store before anything leaves this process, so a killed orchestrator goes on
where it was. Nothing here reads the routers' specifications but those of the routers that start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vrha.core.outcome import is_unsettled
from vrha.core.rollout import again, lost_in, next_actions, resumed
from vrha.core.steps import outline
from vrha.errors import InputError, NotFoundError, RefusedError
from vrha.model.rollouts import (
    Member,
    MemberStatus,
    PlannedMember,
    Rollout,
    RolloutBrief,
    RolloutKind,
    RolloutRequest,
    RolloutStatus,
    RolloutView,
    StopReason,
)
from vrha.model.runs import Run, RunKind, RunStatus, Strategy
from vrha.model.spec import Desired
from vrha.model.state import RouterState
from vrha.model.steps import Build
from vrha.orchestrator import reconcile, views
from vrha.orchestrator.reconcile import Wanted
from vrha.store import RunTimes, Tx

log = logging.getLogger(__name__)

Start = Callable[[Tx, Run], Run]


# --- what is asked for -----------------------------------------------------------------------


def routers_of(tx: Tx, desired: Desired, request: RolloutRequest) -> tuple[str, ...]:
    """The routers that `request` is about, by name.

    Raises NotFoundError: `no-such-node`, `no-such-zone`; InputError (`rollout-request`).
    """
    _check(desired, request)
    where = {state.router: state.node for state in tx.router_briefs()}
    if request.kind is RolloutKind.DRAIN:
        # What is being built there now will have to leave as well.
        coming = {router for router, node in tx.open_builds() if node == request.node}
        names = {name for name, node in where.items() if node == request.node} | coming
        return tuple(sorted(name for name in names if desired.router(name)))
    zones = {node.name: node.zone for node in desired.nodes}
    return tuple(
        sorted(
            router.name
            for router in desired.routers
            if request.zone in ("", zones.get(where.get(router.name, ""), router.zone))
        )
    )


def _check(desired: Desired, request: RolloutRequest) -> None:
    drains = request.kind is RolloutKind.DRAIN
    if drains is not bool(request.node) or (drains and request.zone) or request.options.node:
        raise InputError(
            "rollout-request",
            "a drain is of one node, a restart of one zone or of everything",
            "Placement decides where each router goes.",
        )
    if request.max_parallel < 1:
        raise InputError("rollout-request", "at least one router at a time must be allowed")
    if request.node:
        find_node(desired, request.node)
    zones = sorted({node.zone for node in desired.nodes})
    if request.zone and request.zone not in zones:
        known = ", ".join(zones) or "none"
        raise NotFoundError("no-such-zone", f"no zone {request.zone}", f"Zones: {known}.")


def find_node(desired: Desired, name: str) -> None:
    """Raises NotFoundError (`no-such-node`) when no node has that name."""
    if name not in (node.name for node in desired.nodes):
        known = ", ".join(node.name for node in desired.nodes) or "none"
        raise NotFoundError("no-such-node", f"no node {name}", f"Nodes: {known}.")


def begin(tx: Tx, request: RolloutRequest, preferred: Strategy) -> Rollout:
    """Journal a rollout; nothing has started yet. A node to be drained is cordoned.

    Raises what `routers_of` does, and RefusedError (`rollout-in-progress`).
    """
    routers = routers_of(tx, tx.desired()[1], request)
    _refuse_overlap(tx, routers)
    if request.node:
        tx.rollouts.cordon(request.node)
    rollout = Rollout(reconcile.new_run_id(), request, preferred)
    tx.rollouts.add(rollout, [Member(name) for name in routers])
    log.info("rollout %s: %s of %d routers", rollout.id, request.kind, len(routers))
    _tell(tx, rollout, "rollout-started", request.kind, f"{len(routers)} routers")
    return rollout


def _refuse_overlap(tx: Tx, routers: Sequence[str]) -> None:
    held = tx.rollouts.holding(routers)
    if held is not None:
        raise RefusedError(
            "rollout-in-progress",
            f"rollout {held[0]} has router {held[1]} and has not ended",
            f"`vrha rollout watch {held[0]}` follows it, `vrha rollout stop {held[0]}` ends it.",
        )


def stop(tx: Tx, rollout_id: str) -> None:
    """Take up no further router. Raises NotFoundError, RefusedError (`not-running`)."""
    rollout, _ = find(tx, rollout_id)
    if rollout.status is not RolloutStatus.RUNNING:
        raise RefusedError("not-running", f"rollout {rollout_id} is {rollout.status}")
    _become(tx, rollout, RolloutStatus.STOPPING, StopReason.ASKED, "")


def resume(tx: Tx, rollout_id: str) -> None:
    """Take a stopped rollout up again, with what is not done.

    Raises NotFoundError; RefusedError: `not-stopped`, `rollout-in-progress`.
    """
    rollout, _ = find(tx, rollout_id)
    if rollout.status is not RolloutStatus.STOPPED:
        raise RefusedError(
            "not-stopped",
            f"rollout {rollout_id} is {rollout.status}",
            f"`vrha rollout show {rollout_id}` shows it.",
        )
    members = tx.rollouts.members(rollout_id)
    left = [again(member) for member in members]
    _refuse_overlap(tx, [m.router for m in left if not m.ended])
    if rollout.request.node:
        find_node(tx.desired()[1], rollout.request.node)
        tx.rollouts.cordon(rollout.request.node)
    for before, after in zip(members, left, strict=True):
        if after != before:
            tx.rollouts.save_member(rollout_id, after)
    rollout = resumed(rollout)
    tx.rollouts.save(rollout)
    _tell(tx, rollout, "rollout-resumed", rollout.request.kind, f"round {rollout.round}")


def undrain(tx: Tx, node: str) -> None:
    """The node takes instances again. Raises NotFoundError, RefusedError."""
    find_node(tx.desired()[1], node)
    for rollout in tx.rollouts.open():
        if rollout.request.node == node:
            raise RefusedError(
                "rollout-in-progress",
                f"rollout {rollout.id} is draining {node}",
                f"`vrha rollout stop {rollout.id}` ends it.",
            )
    if node in tx.rollouts.cordoned():
        tx.rollouts.uncordon(node)
        tx.add_event("uncordoned", "undrain", node=node)


def find(tx: Tx, rollout_id: str) -> tuple[Rollout, RunTimes]:
    """Raises NotFoundError (`no-such-rollout`)."""
    found = tx.rollouts.get(rollout_id)
    if found is None:
        raise NotFoundError(
            "no-such-rollout", f"no rollout {rollout_id}", "See `vrha rollout list`."
        )
    return found


# --- in motion -------------------------------------------------------------------------------


def advance(tx: Tx, start: Start, resumed_at: float | None = None) -> bool:
    """Take every open rollout one turn further; whether another turn can follow at once.

    `resumed_at`: since when this orchestrator is back (seconds, Unix time; None: it never left).
    """
    more = False
    for rollout in tx.rollouts.open():
        more |= _advance(tx, rollout, start, resumed_at)
    return more


def _advance(tx: Tx, rollout: Rollout, start: Start, resumed_at: float | None) -> bool:
    busy = tx.busy()
    members = _settled(tx, rollout, busy)
    decision = next_actions(rollout, members, busy.keys())
    if decision.start and not _knows_the_nodes(tx, resumed_at):
        return False
    taken = [_take_up(tx, rollout, router, start) for router in decision.start]
    for member in taken:
        tx.rollouts.save_member(rollout.id, member)
    if decision.status is not rollout.status:
        _become(tx, rollout, decision.status, decision.reason, decision.detail)
        return decision.status.open
    return any(member.ended for member in taken)


def _knows_the_nodes(tx: Tx, resumed_at: float | None) -> bool:
    """Whether who is silent can be told: all were heard since, or had the time to be.

    When nobody is heard it is rather this orchestrator that is cut off.
    """
    now = time.time()
    seen = {state.name: state.seen_at for state in tx.node_states()}
    if not any(now - at < reconcile.SILENT_AFTER_S for at in seen.values()):
        return False
    if resumed_at is None or now - resumed_at >= reconcile.SILENT_AFTER_S:
        return True
    return all(seen.get(node.name, 0.0) >= resumed_at for node in tx.desired()[1].nodes)


def _settled(tx: Tx, rollout: Rollout, busy: Mapping[str, str]) -> tuple[Member, ...]:
    """The members after what has become of their runs."""
    members = []
    for member in tx.rollouts.members(rollout.id):
        if member.status is MemberStatus.RUNNING and busy.get(member.router) != member.run:
            member = _outcome(tx, member)
            tx.rollouts.save_member(rollout.id, member)
        members.append(member)
    return tuple(members)


def _outcome(tx: Tx, member: Member) -> Member:
    """The member after its run, which has ended."""
    run, times = tx.run(member.run), tx.run_times(member.run)
    if run is None or times is None:
        why = "the store has forgotten the run"
        return replace(member, status=MemberStatus.ROLLED_BACK, reason="no-such-run", detail=why)
    done = run.status is RunStatus.DONE
    return replace(
        member,
        status=MemberStatus.DONE if done else MemberStatus.ROLLED_BACK,
        lost=lost_in(tx.reports.evidence(run.id).values()),
        reason=run.reason,
        detail="; ".join(run.leftovers) or run.detail,
        started_at=times.started_at,
        ended_at=times.ended_at,
    )


def _take_up(tx: Tx, rollout: Rollout, name: str, start: Start) -> Member:
    """Start the run of a router whose turn it is; or the member as it is without one."""
    member = Member(name, round=rollout.round)
    desired = tx.desired()[1]
    router = desired.router(name)
    if router is None:
        return replace(member, status=MemberStatus.SKIPPED, reason="no-such-router")
    state = tx.router_state(name) or RouterState(name)
    if _has_left(rollout.request, state):
        return replace(member, status=MemberStatus.SKIPPED, reason="not-there")
    try:
        run = reconcile.restart(tx, desired, router, _wanted(rollout.request, rollout.preferred))
    except (NotFoundError, RefusedError) as error:
        log.warning("rollout %s: %s: %s", rollout.id, name, error.message)
        refused = replace(
            member, status=MemberStatus.REFUSED, reason=error.code, detail=error.message
        )
        tx.add_event("rollout-refused", error.code, router=name, detail=error.message)
        return refused
    run = start(tx, run)
    times = tx.run_times(run.id)
    return replace(
        member,
        status=MemberStatus.RUNNING,
        run=run.id,
        strategy=run.strategy,
        from_node=state.node,
        to_node=next((r.step.node for r in run.steps if isinstance(r.step, Build)), ""),
        old=str(run.old or ""),
        new=str(run.new or ""),
        started_at=times.started_at if times else "",
    )


def _has_left(request: RolloutRequest, state: RouterState) -> bool:
    """Whether the router of a drain is not on that node (any more)."""
    if request.kind is not RolloutKind.DRAIN or is_unsettled(state):
        return False
    return state.active is None or state.node != request.node


def _wanted(
    request: RolloutRequest,
    preferred: Strategy,
    *,
    dry_run: bool = False,
    planned: Sequence[Run] = (),
) -> Wanted:
    if request.kind is RolloutKind.RESTART:
        return Wanted(preferred, request.options, RunKind.RESTART, dry_run, planned)
    return Wanted(
        Strategy.HANDOVER,
        request.options,
        RunKind.MOVE,
        dry_run,
        planned,
        avoid=frozenset({request.node}),
    )


def _become(tx: Tx, rollout: Rollout, status: RolloutStatus, reason: str, detail: str) -> None:
    after = replace(rollout, status=status, reason=reason, detail=detail)
    tx.rollouts.save(after)
    log.info("rollout %s: %s %s %s", rollout.id, status, reason, detail)
    _tell(tx, after, f"rollout-{status}", reason or rollout.request.kind, detail)


def _tell(tx: Tx, rollout: Rollout, kind: str, reason: str, detail: str) -> None:
    words = [f"rollout {rollout.id}", detail]
    node = rollout.request.node
    tx.add_event(kind, reason, node=node, detail=": ".join(word for word in words if word))


# --- what people see -------------------------------------------------------------------------


def plan_one(
    tx: Tx, request: RolloutRequest, preferred: Strategy, name: str, planned: list[Run]
) -> PlannedMember:
    """The run that router `name` would get after those in `planned`, to which it is added."""
    desired = tx.desired()[1]
    router = desired.router(name)
    if router is None:
        return PlannedMember(name, None, "no-such-router")
    busy = tx.busy()
    if name in busy:
        return PlannedMember(name, None, "run-in-progress", f"it waits for run {busy[name]}")
    try:
        wanted = _wanted(request, preferred, dry_run=True, planned=planned)
        run = reconcile.restart(tx, desired, router, wanted)
    except (NotFoundError, RefusedError) as error:
        return PlannedMember(name, None, error.code, error.message)
    # Of 500 plans only the places are kept, not what would be built there.
    bare = tuple(replace(record, step=outline(record.step)) for record in run.steps)
    planned.append(replace(run, steps=bare))
    return PlannedMember(name, views.run_view(run))


def view_of(tx: Tx, rollout_id: str) -> RolloutView:
    """The rollout with all its members. Raises NotFoundError."""
    rollout, times = find(tx, rollout_id)
    return RolloutView(
        id=rollout.id,
        request=rollout.request,
        status=rollout.status,
        reason=rollout.reason,
        detail=rollout.detail,
        round=rollout.round,
        members=tx.rollouts.members(rollout_id),
        started_at=times.started_at,
        ended_at=times.ended_at,
    )


def briefs(tx: Tx, limit: int) -> tuple[RolloutBrief, ...]:
    """The newest rollouts."""
    return tuple(_brief(tx, rollout, times) for rollout, times in tx.rollouts.newest(limit))


def _brief(tx: Tx, rollout: Rollout, times: RunTimes) -> RolloutBrief:
    tally = tx.rollouts.tally(rollout.id)
    return RolloutBrief(
        id=rollout.id,
        kind=rollout.request.kind,
        zone=rollout.request.zone,
        node=rollout.request.node,
        status=rollout.status,
        reason=rollout.reason,
        detail=rollout.detail,
        routers=sum(tally.counts.values()),
        counts=tuple((s, tally.counts[s]) for s in MemberStatus if s in tally.counts),
        lost=tally.lost,
        started_at=times.started_at,
        ended_at=times.ended_at,
    )
