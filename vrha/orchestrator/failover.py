"""Journaled failovers: for every router of a lost node a run that brings it elsewhere.

Who is lost is decided beside this (`vrha.orchestrator.ownership`), by clocks and votes; here the
only hurry is to journal and to build. Level-triggered: what is lost, what runs, what is missing
is looked at again and again, so another leader goes on where this one was.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from vrha.core import plan
from vrha.core.failover import DeadUplinks, dead_uplinks
from vrha.core.instance import instance_spec
from vrha.core.ownership.wanted import Claim, Claimant
from vrha.errors import NotLeaderError, VrhaError
from vrha.model.runs import Run
from vrha.model.spec import Desired, InstanceRef, Router
from vrha.model.state import RouterState
from vrha.orchestrator import reconcile
from vrha.orchestrator.engine import Engine
from vrha.store import Store, Tx

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Runs that begin in one transaction: others must not wait for it for long."""
LOOK_S = 0.2
"""How often it looks while nodes are lost."""
UPLINK = "uplink-dead"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Before a router whose failover was rolled back gets the next one."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Nodes that are lost, and why; and those that are seen to live."""

    lost: Mapping[str, str] = field(default_factory=dict)
    living: Set[str] = frozenset()


Causes = Mapping[str, tuple[RouterState, str]]
"""Routers, and why each of them cannot stay where it is; empty: it can."""


@dataclass(slots=True)
class _Trial:
    """Failovers of one router from one node."""

    lost: str
    number: int = 0
    not_before: float = 0.0
    tried: set[str] = field(default_factory=set)


class Failovers:
    """Of one orchestrator, while it leads. `tell` is safe from any thread."""

    def __init__(self, store: Store, engine: Engine, changed: Callable[[], None]) -> None:
        self._store = store
        self._engine = engine
        self._changed = changed
        self._losses = Losses()
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
        with self._store.reading() as tx:
            if self._uplinks.is_set():
                self._uplinks.clear()
                self._dead = dead_uplinks(n for n in tx.node_states() if n.name in losses.living)
            if not losses.lost and not self._dead and not _later(tx.claimants()):
                self._trials.clear()
                return False
        with self._store.transaction() as tx:
            desired = tx.desired()[1]
            causes = {
                state.router: (state, self._cause(desired, state, losses))
                for state in tx.router_briefs()
            }
            claimants = {each.instance.router: each for each in tx.claimants()}
            ended = self._withdraw(tx, causes, claimants, losses)
            begun = self._begin(tx, desired, causes, claimants, losses)
        return ended + begun > 0

    def _cause(self, desired: Desired, state: RouterState, losses: Losses) -> str:
        """Why the router cannot stay where it is; empty: it can."""
        router = desired.router(state.router)
        if state.active is None or router is None:
            return ""
        if state.node in losses.lost:
            return losses.lost[state.node]
        uplink = router.uplink
        return UPLINK if uplink and (state.node, uplink.bridge) in self._dead else ""

    def _withdraw(
        self,
        tx: Tx,
        causes: Causes,
        claimants: Mapping[str, Claimant],
        losses: Losses,
    ) -> int:
        """End failovers from nodes that are back, and to nodes that are lost themselves."""
        count = 0
        for each in _later(claimants.values()):
            state, cause = causes.get(each.instance.router, (None, ""))
            if state is not None and not cause and state.node in losses.living:
                detail = f"{state.node} is back before {each.instance} has taken over"
                self._engine.withdraw(tx, each.run, "node-returned", detail)
                count += 1
            elif each.node in losses.lost:
                detail = f"{each.node} is silent: {losses.lost[each.node]}"
                self._engine.withdraw(tx, each.run, "node-lost", detail)
                count += 1
        return count

    def _begin(
        self,
        tx: Tx,
        desired: Desired,
        causes: Causes,
        claimants: Mapping[str, Claimant],
        losses: Losses,
    ) -> int:
        busy = tx.open_run_ids()
        planned: list[Run] = []
        now = time.monotonic()
        touched = 0
        for name, (state, cause) in sorted(causes.items()):
            router = desired.router(name)
            if not cause or router is None:
                continue
            if name in busy:
                claimant = claimants.get(name)
                is_other = claimant is None or claimant.claim is Claim.BESIDE
                if is_other and state.node in losses.lost:
                    self._engine.node_lost(tx, busy[name], state.node)
                    touched += tx.open_run_of(name) is None
                continue
            trial = self._trial(name, state.node)
            if now < trial.not_before:
                continue
            run = self._plan(tx, desired, router, cause, trial, losses, planned)
            if run is not None:
                planned.append(self._engine.start(tx, run))
                touched += 1
            if touched >= AT_ONCE:
                break
        return touched

    def _trial(self, router: str, lost: str) -> _Trial:
        trial = self._trials.get(router)
        if trial is None or trial.lost != lost:
            trial = self._trials[router] = _Trial(lost)
        return trial

    def _plan(
        self,
        tx: Tx,
        desired: Desired,
        router: Router,
        cause: str,
        trial: _Trial,
        losses: Losses,
        planned: Sequence[Run],
    ) -> Run | None:
        """The run that brings the router elsewhere; None, and an event, when no node fits."""
        now = time.monotonic()
        pause = min(FIRST_PAUSE_S * 2**trial.number, LONGEST_PAUSE_S)
        trial.number += 1
        trial.not_before = now + pause
        node = self._target(tx, desired, router, trial, losses, planned)
        if not node:
            return None
        trial.tried.add(node)
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
            detail=f"{state.active} of {state.node} is built anew on {node}",
        )
        return plan.failover(reconcile.new_run_id(), state.active, node, spec)

    def _target(
        self,
        tx: Tx,
        desired: Desired,
        router: Router,
        trial: _Trial,
        losses: Losses,
        planned: Sequence[Run],
    ) -> str:
        """Where to; one that failed before only when there is no other. Empty: nowhere."""
        out = {node.name for node in desired.nodes} - losses.living | losses.lost.keys()
        if router.uplink is not None:
            out |= {node for node, bridge in self._dead if bridge == router.uplink.bridge}
        for avoid in (out | trial.tried, out):
            placement = reconcile.placement_of(tx, desired, router, planned=planned, avoid=avoid)
            if placement.node:
                return placement.node
        if trial.number == 1:
            tx.add_event(
                "not-placed",
                reconcile.NO_NODE,
                router=router.name,
                node=trial.lost,
                detail=placement.explain(),
            )
        return ""


def _later(claimants: Iterable[Claimant]) -> list[Claimant]:
    """Those that wait for a takeover."""
    return [each for each in claimants if each.claim in (Claim.LATER, Claim.NOW)]
