"""Standbys are kept as they should be: built, brought up to date, changed, removed.

Level-triggered: every look compares what is wanted with what the nodes say. What failed is tried
again after a pause that grows; a run of a standby gives way to every other run of its router.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from vrha.core import plan
from vrha.core.choice import STANDBY
from vrha.core.instance import instance_spec, reconfigured
from vrha.core.ownership.wanted import Claim
from vrha.core.placement import Candidate
from vrha.core.plan import Live
from vrha.core.standby import Need, Seen, is_in_sync, is_wanted, need, place_standby, standby_of
from vrha.core.steps import node_of
from vrha.model.runs import Run, RunKind, RunStatus
from vrha.model.spec import Desired, InstanceRef, InstanceSpec, Router
from vrha.model.state import Activity, NodeState, ObservedInstance, RouterState
from vrha.model.steps import Build
from vrha.model.views import StandbyView
from vrha.orchestrator import reconcile
from vrha.store import Tx

AT_ONCE = 6
"""Runs of standbys that one node takes part in at a time: they must not hold up failovers. Slow
nodes get the next one later."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Before something that failed is tried again."""
_SETTLED_S = 1.0
"""An inventory that comes so soon after a run of the standby may have been taken before it."""

Start = Callable[[Tx, Run], Run]


@dataclass(frozen=True, slots=True)
class _Pause:
    failures: int
    until: float


@dataclass(frozen=True, slots=True)
class _Zone:
    """What one look at the store has shown."""

    tx: Tx
    desired: Desired
    nodes: Mapping[str, NodeState]
    candidates: tuple[Candidate, ...]
    found: Mapping[str, Mapping[InstanceRef, ObservedInstance]]
    """What the nodes have, by node."""

    def can_follow(self, node: str) -> bool:
        found = self.nodes.get(node)
        return found is not None and STANDBY in found.capabilities and bool(found.sync_address)


class Standbys:
    """Methods are safe from any thread, and do nothing where no router has or wants a standby."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self.idle = False
        """No router had or wanted one, and none has been asked for since."""
        self._clock = clock
        self._lock = threading.Lock()
        self._pauses: dict[str, _Pause] = {}
        self._touched: dict[str, float] = {}
        self._in_order: dict[str, tuple[int, int]] = {}
        """Routers whose standby was what version of desired state and which epoch wanted."""
        self._open: dict[str, tuple[str, ...]] = {}
        """Nodes that take part in the runs that were started here."""
        self._unplaced: dict[str, str] = {}
        self._new: set[str] = set()
        """Routers whose standby was just built, and cannot follow anybody yet."""

    def look(self, tx: Tx, start: Start) -> tuple[Run, ...]:
        """Start the runs that are needed now; those that were started."""
        version, desired = tx.desired()
        wanted = {router.name: router for router in desired.routers}
        states = [
            state
            for state in tx.router_briefs()
            if state.standby is not None or is_wanted(wanted.get(state.router))
        ]
        if not states:
            return ()
        self.idle = False
        if sum(claimant.claim is not Claim.BESIDE for claimant in tx.claimants()) > AT_ONCE:
            # A node is being failed over: nothing that can wait takes its time.
            return ()
        busy = tx.open_run_ids()
        zone = _zone(tx, desired)
        if not any(candidate.heard for candidate in zone.candidates):
            # Rather this orchestrator is cut off, or has stood still, than all nodes at once.
            return ()
        started = []
        with self._lock:
            self._open = {name: nodes for name, nodes in self._open.items() if name in busy}
            load = Counter(node for nodes in self._open.values() for node in nodes)
            for brief in states:
                if brief.router in busy or self._pauses_now(brief.router):
                    continue
                run = self._run_for(zone, version, wanted.get(brief.router), brief)
                nodes = _nodes_of(run)
                if run is None or any(load[node] >= AT_ONCE for node in nodes):
                    continue
                _hand_out(tx, run)
                started.append(start(tx, run))
                self._open[brief.router] = nodes
                load.update(nodes)
        return tuple(started)

    def ended(self, run: Run) -> None:
        """A run has ended; what it says of its router's standby is newer than any inventory."""
        if run.kind is not RunKind.STANDBY:
            return
        with self._lock:
            self._open.pop(run.router, None)
            self._touched[run.router] = time.time()
            self._new.discard(run.router)
            if run.status is RunStatus.DONE:
                self._pauses.pop(run.router, None)
                if any(isinstance(record.step, Build) for record in run.steps):
                    self._new.add(run.router)
                return
            failures = self._pauses.get(run.router, _Pause(0, 0.0)).failures + 1
            pause = min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S)
            self._pauses[run.router] = _Pause(failures, self._clock() + pause)

    def views(self, tx: Tx, states: Iterable[RouterState]) -> Mapping[str, StandbyView]:
        """The standbys of these routers, as people see them."""
        nodes = tx.node_states()
        found = {node.name: {each.ref: each for each in node.instances} for node in nodes}
        with self._lock:
            why = dict(self._unplaced)
        return {
            s.router: _view(s, found.get(s.standby_node, {}), why.get(s.router, "")) for s in states
        }

    def _pauses_now(self, router: str) -> bool:
        pause = self._pauses.get(router)
        return pause is not None and self._clock() < pause.until

    def _run_for(
        self, zone: _Zone, version: int, router: Router | None, brief: RouterState
    ) -> Run | None:
        seen = self._seen(zone, brief)
        mark = (version, brief.epoch)
        if self._in_order.get(brief.router) == mark and _is_in_order(brief, seen):
            self._unplaced.pop(brief.router, None)
            return None
        state = zone.tx.router_state(brief.router)
        assert state is not None
        ref = InstanceRef(state.router, state.generation + 1)
        wanted = instance_spec(zone.desired, router, ref, state.epoch + 1) if router else None
        what = need(router, state, wanted, seen)
        if what is Need.NOTHING:
            if router is not None and is_wanted(router):
                self._in_order[brief.router] = mark
            self._unplaced.pop(brief.router, None)
            return None
        self._in_order.pop(brief.router, None)
        if what is Need.BUILD:
            assert router is not None
            assert wanted is not None
            return self._build(zone, router, state, wanted)
        return _run(zone, what, state, wanted)

    def _build(
        self, zone: _Zone, router: Router, state: RouterState, spec: InstanceSpec
    ) -> Run | None:
        fit = [c for c in zone.candidates if zone.can_follow(c.node.name)]
        serving = [c for c in zone.candidates if c.node.name == state.node]
        placement = place_standby(
            router, list({c.node.name: c for c in serving + fit}.values()), state.node
        )
        if not placement.node:
            self._tell_unplaced(zone.tx, router.name, placement.explain())
            return None
        self._unplaced.pop(router.name, None)
        old = standby_of(state)
        # One on a node that is not heard goes once it is: nothing names it any more.
        heard = {c.node.name for c in zone.candidates if c.heard}
        replaced = old if old is not None and old.node in heard else None
        return plan.standby(reconcile.new_run_id(), placement.node, spec, replaced)

    def _tell_unplaced(self, tx: Tx, router: str, why: str) -> None:
        if self._unplaced.get(router) != why:
            self._unplaced[router] = why
            tx.add_event("standby-not-placed", reconcile.NO_NODE, router=router, detail=why)

    def _seen(self, zone: _Zone, state: RouterState) -> Seen:
        candidate = next((c for c in zone.candidates if c.node.name == state.standby_node), None)
        usable = candidate is not None and candidate.heard and not candidate.draining
        if state.standby is not None and state.router in self._new:
            new = ObservedInstance(state.standby, state.epoch, Activity.MUTED, dnsmasq_alive=True)
            return Seen(usable, (new,))
        node = zone.nodes.get(state.standby_node)
        since = self._touched.get(state.router)
        fresh = node is not None and (since is None or node.seen_at > since + _SETTLED_S)
        if node is None or not fresh:
            return Seen(usable, None)
        there = zone.found[node.name].get(state.standby) if state.standby else None
        return Seen(usable, () if there is None else (there,))


def _is_in_order(state: RouterState, seen: Seen) -> bool:
    """Whether nothing has changed in the inventory of a standby that was as wanted."""
    if state.standby is None or not seen.usable:
        return False
    there = seen.instance(state)
    complete = there is not None and there.activity is Activity.MUTED
    return seen.found is None or (complete and is_in_sync(state, there))


def _zone(tx: Tx, desired: Desired) -> _Zone:
    nodes = tx.node_states()
    candidates = reconcile.candidates(
        desired,
        nodes,
        reconcile.hosted(tx),
        tx.rollouts.cordoned(),
        tx.node_health.all(),
        tx.pauses.all(),
    )
    found = {node.name: {each.ref: each for each in node.instances} for node in nodes}
    return _Zone(tx, desired, {node.name: node for node in nodes}, candidates, found)


def _run(zone: _Zone, what: Need, state: RouterState, wanted: InstanceSpec | None) -> Run | None:
    run_id, epoch = reconcile.new_run_id(), state.epoch + 1
    standby = standby_of(state)
    assert standby is not None
    if what is Need.REMOVE:
        return plan.stand_down(run_id, standby, epoch)
    if what is Need.CONFIGURE:
        assert wanted is not None
        return plan.reconfigure(run_id, standby, reconfigured(standby.spec, wanted))
    live = reconcile.live_of(state)
    giver, taker = zone.nodes.get(state.node), zone.nodes.get(standby.node)
    if live is None or giver is None or taker is None or not zone.can_follow(giver.name):
        return None
    return _follow(run_id, live, standby, epoch, (giver, taker))


def _follow(
    run_id: str, live: Live, standby: Live, epoch: int, nodes: tuple[NodeState, NodeState]
) -> Run:
    token = secrets.token_urlsafe(32)
    giver, taker = (reconcile.peer_of(node, token) for node in nodes)
    return plan.follow(run_id, live, standby, epoch, (giver, taker))


def _hand_out(tx: Tx, run: Run) -> None:
    """The run's epoch, and the generation of what it builds, are its own."""
    state = tx.router_state(run.router)
    assert state is not None
    built = run.new.generation if run.new else 0
    generation = max(state.generation, built)
    tx.put_router_state(replace(state, epoch=run.epoch, generation=generation))


def _nodes_of(run: Run | None) -> tuple[str, ...]:
    steps = run.steps if run else ()
    return tuple({node for r in steps if (node := node_of(r.step))})


def _view(
    state: RouterState, found: Mapping[InstanceRef, ObservedInstance], why: str
) -> StandbyView:
    there = found.get(state.standby) if state.standby else None
    follows = there.follows if there is not None else None
    in_sync = is_in_sync(state, there)
    if follows is None:
        return StandbyView(str(state.standby or ""), state.standby_node, in_sync, why=why)
    return StandbyView(
        instance=str(state.standby or ""),
        node=state.standby_node,
        in_sync=in_sync,
        connections=follows.connections,
        changes_per_second=follows.changes / max(follows.seconds, 1.0),
        memory_kib=follows.memory_kib,
        why=why,
    )
