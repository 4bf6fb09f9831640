"""Two DHCP servers of one network: kept apart, and each told of the leases of the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from vrha.core.dhcp import merged, partners, shared_cidrs
from vrha.core.leases import fitting
from vrha.core.pauses import paused_by
from vrha.core.placement import Reason
from vrha.errors import RefusedError
from vrha.model.runs import RestartOptions, Run, RunKind, Strategy
from vrha.model.spec import Desired, InstanceSpec, Router
from vrha.orchestrator import reconcile
from vrha.orchestrator.pushes import Pushed, push
from vrha.orchestrator.reconcile import Wanted
from vrha.store import Store, Tx

log = logging.getLogger(__name__)

APART_S = 0.2
"""Between two pushes to one instance: its dnsmasq reads one file again."""
AGAIN_S = 60.0
"""All are told again: what was sent may have been lost. And between two moves of one server."""
LOOK_S = 5.0
"""Between two looks at whether servers are apart."""


def with_partners(tx: Tx, spec: InstanceSpec, leases: str) -> str:
    """`leases` and what the other DHCP servers of its networks have granted."""
    shared = shared_cidrs(spec.networks)
    return merged(leases, _of_partners(tx, spec.router), shared) if shared else leases


def _of_partners(tx: Tx, router: Router) -> str:
    found = []
    for name in partners(tx.desired()[1], router):
        state = tx.router_state(name)
        found.append(tx.leases.of(name, state.active if state else None))
    return fitting("".join(found))


class Exchange:
    """What instances were told of others' leases, in memory. `changed` is safe from any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._told: dict[str, Pushed] = {}
        self._all_at: float | None = None

    def changed(self, router: str) -> None:
        """Its leases, or its instance, are others now."""
        with self._lock:
            self._waiting.add(router)

    def turn(self, store: Store) -> bool:
        """Send what has changed; whether anything was sent.

        One thread at a time. Raises as `Store.transaction`; all is tried again then.
        """
        now = self._clock()
        everybody = self._all_at is None or now >= self._all_at + AGAIN_S
        with self._lock:
            changed, self._waiting = self._waiting, set()
        if not changed and not everybody:
            return False
        try:
            sent = self._send(store, changed, everybody, now)
        except BaseException:
            with self._lock:
                self._waiting |= changed
            raise
        if everybody:
            self._all_at = now
        return sent

    def _send(self, store: Store, changed: set[str], everybody: bool, now: float) -> bool:
        with store.reading() as tx:
            desired = tx.desired()[1]
        due = _concerned(desired, changed, everybody)
        early = {r for r in due if r in self._told and now < self._told[r].at + APART_S}
        with self._lock:
            self._waiting |= early
        if not due - early:
            return False
        told: dict[str, Pushed] = {}
        with store.transaction() as tx:
            for name in sorted(due - early):
                router = desired.router(name)
                one = self._tell(tx, router, everybody, now) if router else None
                if one is not None:
                    told[name] = one
        self._told |= told
        return bool(told)

    def _tell(self, tx: Tx, router: Router, again: bool, now: float) -> Pushed | None:
        state = tx.router_state(router.name)
        if state is None or state.active is None:
            return None
        body = _of_partners(tx, router)
        last = None if again else self._told.get(router.name)
        return push(tx, (state.node, state.active), body, now, last, beside=True)


class Spread:
    """Moves a second server off the node of its router, once there is another one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._next = 0.0
        self._not_before: dict[str, float] = {}

    def look(self, store: Store, start: Callable[[Tx, Run], Run]) -> bool:
        """Start what is needed; whether anything was. Raises as `Store.transaction`."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + LOOK_S
        with store.reading() as tx:
            due = [r for r in self._beside(tx) if now >= self._not_before.get(r.name, 0.0)]
        if not due:
            return False
        started = 0
        with store.transaction() as tx:
            for second in self._beside(tx):
                run = _moved_away(tx, second) if second in due else None
                if run is not None:
                    self._not_before[second.name] = now + AGAIN_S
                    start(tx, run)
                    started += 1
        return started > 0

    def _beside(self, tx: Tx) -> list[Router]:
        """Second servers that are where their router is, and nothing goes on with either."""
        desired = tx.desired()[1]
        seconds = [router for router in desired.routers if router.dhcp_of]
        if not seconds:
            return []
        places = {s.router: s.node for s in tx.router_briefs() if s.active and not s.failed}
        busy = tx.busy()
        found = []
        for second in seconds:
            pair = {second.name, *partners(desired, second)}
            together = len(pair) == 2 and len({places.get(name) for name in pair}) == 1
            if together and pair <= places.keys() and not pair & busy.keys():
                found.append(second)
        return found


def _moved_away(tx: Tx, second: Router) -> Run | None:
    """The move of the second server; None where no trusted node is left for it."""
    desired = tx.desired()[1]
    state = tx.router_state(second.name)
    assert state is not None
    zone = next((node.zone for node in desired.nodes if node.name == state.node), "")
    if paused_by(tx.pauses.all(), zone=zone, node=state.node, router=second.name):
        return None
    placement = reconcile.placement_of(tx, desired, second)
    if placement.node in ("", state.node) or Reason.LAST_RESORT in placement.chosen:
        return None
    options = RestartOptions(node=placement.node)
    wanted = Wanted(Strategy.HANDOVER, options, RunKind.MOVE)
    try:
        return reconcile.restart(tx, desired, second, wanted)
    except RefusedError as error:
        log.info("%s stays beside its router: %s", second.name, error)
        return None


def _concerned(desired: Desired, changed: set[str], everybody: bool) -> set[str]:
    """Who has to hear of it: those that share a network with one that has changed, both sides."""
    found: set[str] = set()
    for second in (router for router in desired.routers if router.dhcp_of):
        pair = {second.name, *partners(desired, second)}
        if everybody or pair & changed:
            found |= pair
    return found
