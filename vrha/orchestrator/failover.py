"""Journaled failovers: for every router of a lost node a run that brings it elsewhere.

Who is lost is decided beside this (`vrha.orchestrator.ownership`), by clocks and votes; here the
only hurry is to journal and to build. Level-triggered: what is lost, what runs, what is missing
is looked at again and again, so another leader goes on where this one was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from vrha.config.settings import FailoverSettings
from vrha.core import plan
from vrha.core.brake import BrakeEvent, share
from vrha.core.damping import came_back, failed_over, fell_silent
from vrha.core.dhcp import nodes_of_partners
from vrha.core.failover import DeadUplinks, by_priority, dead_uplinks
from vrha.core.instance import instance_spec
from vrha.core.judging import Note, Turn
from vrha.core.ownership.wanted import Claim, Claimant
from vrha.core.pauses import paused_by
from vrha.core.placement import Placement, Placer
from vrha.core.plan import Live
from vrha.core.standby import standby_of
from vrha.errors import NotLeaderError, VrhaError
from vrha.model.health import NodeHealth
from vrha.model.runs import Run
from vrha.model.spec import Desired, InstanceRef, Router
from vrha.model.state import Activity, RouterState
from vrha.model.steps import TakeOver
from vrha.orchestrator import reconcile
from vrha.orchestrator.engine import Engine
from vrha.store import Store, Tx

log = logging.getLogger(__name__)

AT_ONCE = 128
"""Runs that begin in one transaction: others must not wait for it for long."""
BUILDS = 4
"""So many of them weigh as much as one that builds: what stands by only has to be let speak."""
BUILDING = 32
"""Instances that a node that is left builds at a time, about: of hundreds that were sent at once
the last would pass their deadline before their turn came, and all would be done again."""
LOOK_S = 0.2
"""How often it looks while nodes are lost."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Before a router whose failover was rolled back gets the next one."""
UPLINK = "uplink-dead"
_DAMPING = {Turn.SILENT: fell_silent, Turn.GIVEN_UP: failed_over, Turn.BACK: came_back}


@dataclass(frozen=True, slots=True)
class Losses:
    """Nodes that are given up, and why; and those that are seen to live."""

    lost: Mapping[str, str] = field(default_factory=dict)
    living: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Concern:
    """A router that cannot stay where it is, or an empty `cause`: it can."""

    state: RouterState
    cause: str


@dataclass(slots=True)
class _Trial:
    """Failovers of one router from one node."""

    lost: str
    number: int = 0
    not_before: float = 0.0
    tried: set[str] = field(default_factory=set)


class Failovers:
    """Of one orchestrator, while it leads. `tell` and `uplinks_changed` are safe from any thread,
    the rest is for one."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        changed: Callable[[], None],
        settings: FailoverSettings | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._changed = changed
        self._settings = settings or FailoverSettings()
        self._losses = Losses()
        self._notes: deque[tuple[float, Note]] = deque()
        self._dead: DeadUplinks = frozenset()
        self._uplinks = threading.Event()
        self._told = threading.Event()
        self._trials: dict[str, _Trial] = {}

    def tell(self, losses: Losses) -> None:
        """What is lost now."""
        news = losses.lost != self._losses.lost
        self._losses = losses
        if news:
            self._told.set()

    def note(self, notes: Sequence[Note]) -> None:
        """What is to be kept about nodes."""
        now = time.time()
        self._notes.extend((now, note) for note in notes)
        if notes:
            self._told.set()

    def uplinks_changed(self) -> None:
        """A node has said something new of its uplinks."""
        self._uplinks.set()
        self._told.set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`."""
        self._uplinks.set()
        while not stop.is_set():
            self._told.wait(LOOK_S)
            self._told.clear()
            try:
                while not stop.is_set() and self.turn():
                    self._changed()
            except NotLeaderError:
                stop.wait(LOOK_S)
            except VrhaError as error:
                log.error("failover: %s", error)
                stop.wait(LOOK_S)
            except Exception:
                # Without it nothing would ever be served elsewhere.
                log.exception("failover failed")
                stop.wait(LOOK_S)

    def turn(self) -> bool:
        """One transaction; whether there may be more to do at once. Raises VrhaError."""
        losses = self._losses
        if self._uplinks.is_set():
            self._uplinks.clear()
            self._look_at_uplinks(losses)
        with self._store.reading() as tx:
            idle = not losses.lost and not self._dead and not _later(tx.claimants())
        if idle:
            self._trials.clear()
            self._write_notes()
            return False
        with self._store.transaction() as tx:
            concerns = self._concerns(tx, losses)
            claimants = {each.instance.router: each for each in tx.claimants()}
            ended = self._withdraw(tx, concerns, claimants, losses)
            begun = self._begin(tx, concerns, claimants, losses)
        self._write_notes()
        return ended + begun > 0

    # --- what is lost -----------------------------------------------------------------------

    def _look_at_uplinks(self, losses: Losses) -> None:
        with self._store.reading() as tx:
            nodes = tx.node_states()
            count = len(tx.desired()[1].nodes)
        dead = dead_uplinks(node for node in nodes if node.name in losses.living)
        without = {node for node, _ in dead}
        if not self._settings.enabled:
            dead = frozenset()
        elif len(without) > share(count, self._settings.mass_silence):
            log.warning("uplinks of %s are dead: too many to move anything", ", ".join(without))
            dead = frozenset()
        self._dead = dead

    def _concerns(self, tx: Tx, losses: Losses) -> dict[str, _Concern]:
        wanted = {router.name: router for router in tx.desired()[1].routers}
        return {
            state.router: _Concern(state, self._cause(wanted.get(state.router), state, losses))
            for state in tx.router_briefs()
        }

    def _cause(self, router: Router | None, state: RouterState, losses: Losses) -> str:
        """Why the router cannot stay where it is; empty: it can."""
        if state.active is None or router is None:
            return ""
        if state.node in losses.lost:
            return losses.lost[state.node]
        uplink = router.uplink
        return UPLINK if uplink and (state.node, uplink.bridge) in self._dead else ""

    def _write_notes(self) -> None:
        """Penalties and the alarm; what cannot be written now is written later."""
        if not self._notes:
            return
        notes = [self._notes[index] for index in range(len(self._notes))]
        with self._store.transaction() as tx:
            health = dict(tx.node_health.all())
            for at, note in notes:
                if isinstance(note, BrakeEvent):
                    tx.add_event(note.kind, note.reason, detail=note.detail)
                    continue
                turn, name = note
                if turn in _DAMPING:
                    known = health.get(name, NodeHealth(name))
                    health[name] = _DAMPING[turn](known, at, self._settings.damping)
                    tx.node_health.put(health[name])
                when = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
                tx.add_event(f"node-{turn}", "lease", node=name, detail=when)
        for _ in notes:
            self._notes.popleft()

    # --- runs -------------------------------------------------------------------------------

    def _withdraw(
        self,
        tx: Tx,
        concerns: Mapping[str, _Concern],
        claimants: Mapping[str, Claimant],
        losses: Losses,
    ) -> int:
        """End failovers from nodes that are back, and to nodes that are lost themselves."""
        count = 0
        for each in _later(claimants.values()):
            concern = concerns.get(each.instance.router)
            if each.node in losses.lost:
                detail = f"{each.node} is lost as well: {losses.lost[each.node]}"
                self._engine.withdraw(tx, each.run, "node-lost", detail)
                count += 1
            elif concern and not concern.cause and concern.state.node in losses.living:
                detail = f"{concern.state.node} is back before {each.instance} has taken over"
                self._engine.withdraw(tx, each.run, "node-returned", detail)
                count += 1
        return count

    def _begin(
        self,
        tx: Tx,
        concerns: Mapping[str, _Concern],
        claimants: Mapping[str, Claimant],
        losses: Losses,
    ) -> int:
        desired, pauses = tx.desired()[1], tx.pauses.all()
        zones = {node.name: node.zone for node in desired.nodes}
        busy = tx.busy()
        due: list[Router] = []
        lost = 0
        room = self._room(claimants.values(), losses)
        for router in sorted(desired.routers, key=by_priority):
            name = router.name
            concern = concerns.get(name)
            if concern is None or not concern.cause:
                continue
            node = concern.state.node
            if paused_by(pauses, zone=zones.get(node, ""), node=node, router=name):
                continue
            if name in busy:
                claimant = claimants.get(name)
                is_other = claimant is None or claimant.claim is Claim.BESIDE
                if is_other and concern.state.node in losses.lost:
                    self._engine.node_lost(tx, busy[name], concern.state.node)
                    lost += tx.open_run_of(name) is None
            elif (room > 0 or concern.state.standby) and self._is_due(name, node):
                due.append(router)
                room -= not concern.state.standby
            if len(due) + lost >= AT_ONCE:
                break
        return lost + self._begin_all(tx, desired, due, concerns, claimants, losses)

    @staticmethod
    def _room(claimants: Iterable[Claimant], losses: Losses) -> int:
        """How many more may begin to build; what is there already only has to be let speak."""
        building = sum(each.claim is Claim.LATER for each in claimants)
        return BUILDING * max(1, len(losses.living - losses.lost.keys())) - building

    def _begin_all(
        self,
        tx: Tx,
        desired: Desired,
        due: Sequence[Router],
        concerns: Mapping[str, _Concern],
        claimants: Mapping[str, Claimant],
        losses: Losses,
    ) -> int:
        """As many as go into one transaction; how many were looked at."""
        if not due:
            return 0
        # Each by its own question would take twice as long.
        tx.read_states(router.name for router in due)
        tx.read_open_runs([router.name for router in due])
        places = _Places(tx, desired, losses, claimants.values(), self._dead)
        weight = 0
        for count, router in enumerate(due, 1):
            run = self._plan(tx, desired, router, concerns[router.name], places)
            if run is not None:
                self._engine.start(tx, run)
                weight += 1 if isinstance(run.steps[0].step, TakeOver) else BUILDS
            if weight >= AT_ONCE:
                return count
        return len(due)

    def _is_due(self, router: str, lost: str) -> bool:
        """Whether the next failover of the router from that node may begin."""
        trial = self._trials.get(router)
        if trial is None or trial.lost != lost:
            trial = self._trials[router] = _Trial(lost)
        return time.monotonic() >= trial.not_before

    def _plan(
        self, tx: Tx, desired: Desired, router: Router, concern: _Concern, places: _Places
    ) -> Run | None:
        """The run that brings the router elsewhere; None, and an event, when no node fits."""
        trial = self._trials[router.name]
        trial.not_before = time.monotonic() + min(FIRST_PAUSE_S * 2**trial.number, LONGEST_PAUSE_S)
        trial.number += 1
        standby = places.standby_of(router)
        if standby is not None and standby.node not in trial.tried:
            trial.tried.add(standby.node)
            return _promoted(tx, concern, standby)
        placement = places.place(router, trial.tried)
        if not placement.node:
            if trial.number == 1:
                _tell_not_placed(tx, router, concern, placement)
            return None
        trial.tried.add(placement.node)
        return _built_anew(tx, desired, router, concern.cause, placement)


def _built_anew(tx: Tx, desired: Desired, router: Router, cause: str, placement: Placement) -> Run:
    state = tx.router_state(router.name)
    assert state is not None
    assert state.active is not None
    following = replace(state, epoch=state.epoch + 1, generation=state.generation + 1)
    tx.put_router_state(following)
    ref = InstanceRef(router.name, following.generation)
    spec = instance_spec(desired, router, ref, following.epoch)
    tx.add_event(
        "failover-decided",
        cause,
        router=router.name,
        node=state.node,
        detail=f"{state.active} of {state.node} is built anew on {placement.explain()}",
    )
    return plan.failover(reconcile.new_run_id(), state.active, placement.node, spec)


def _promoted(tx: Tx, concern: _Concern, standby: Live) -> Run:
    state = tx.router_state(concern.state.router)
    assert state is not None
    assert state.active is not None
    following = replace(state, epoch=state.epoch + 1)
    tx.put_router_state(following)
    tx.add_event(
        "failover-decided",
        concern.cause,
        router=state.router,
        node=state.node,
        detail=f"{standby.ref} stands by on {standby.node} for {state.active} of {state.node}",
    )
    run_id = reconcile.new_run_id()
    return plan.promote(run_id, state.active, standby, following.epoch)


def _tell_not_placed(tx: Tx, router: Router, concern: _Concern, placement: Placement) -> None:
    tx.add_event(
        "not-placed",
        reconcile.NO_NODE,
        router=router.name,
        node=concern.state.node,
        detail=f"{concern.cause}: {placement.explain()}",
    )


class _Places:
    """Where routers go, in one transaction."""

    def __init__(
        self,
        tx: Tx,
        desired: Desired,
        losses: Losses,
        claimants: Iterable[Claimant],
        dead: DeadUplinks,
    ) -> None:
        nodes = tx.node_states()
        hosted = reconcile.hosted(tx)
        draining = tx.rollouts.cordoned()
        candidates = reconcile.candidates(
            desired, nodes, hosted, draining, tx.node_health.all(), tx.pauses.all()
        )
        self._tx = tx
        self._desired, self._hosted = desired, hosted
        self._usable = losses.living - losses.lost.keys()
        self._present = {
            (node.name, found.ref)
            for node in nodes
            for found in node.instances
            if found.activity is Activity.MUTED
        }
        self._dead = dead
        self._sent = Counter(each.node for each in _later(claimants))
        # What is under way is counted with what was sent, and not with what was there.
        self._candidates = tuple(
            replace(
                c,
                instances=max(0, c.instances - self._sent[c.node.name]),
                heard=c.heard and c.node.name in losses.living,
            )
            for c in candidates
        )
        self._placer = Placer(self._candidates, sent=self._sent)

    def standby_of(self, router: Router) -> Live | None:
        """What stands by for the router, if it is there and may take over."""
        state = self._tx.router_state(router.name)
        standby = standby_of(state) if state is not None else None
        if standby is None or standby.node not in self._usable:
            return None
        bridge = router.uplink.bridge if router.uplink else ""
        is_there = (standby.node, standby.ref) in self._present
        return standby if is_there and (standby.node, bridge) not in self._dead else None

    def place(self, router: Router, tried: Set[str]) -> Placement:
        """Where to; one that failed before only when there is no other."""
        bridge = router.uplink.bridge if router.uplink else ""
        without = {node for node, dead in self._dead if dead == bridge}
        away = nodes_of_partners(self._desired, router, self._hosted)
        for avoid in (without | away | tried, without | tried, without):
            placement = self._placer_without(avoid).place(router)
            if placement.node:
                break
        if placement.node:
            self._placer.take(placement.node)
            self._sent[placement.node] += 1
            self._hosted.add((router.name, placement.node))
        return placement

    def _placer_without(self, avoid: Set[str]) -> Placer:
        if not avoid:
            return self._placer
        others = [c for c in self._candidates if c.node.name not in avoid]
        return Placer(others, sent=self._sent)


def _later(claimants: Iterable[Claimant]) -> list[Claimant]:
    """Those that wait for a takeover."""
    return [each for each in claimants if each.waits]
