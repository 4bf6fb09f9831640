"""One view of a router's DHCP leases, and who is given it: what is built, and who stands by."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from vrha.core.leases import cleaned
from vrha.model.messages import Leases
from vrha.model.spec import InstanceRef
from vrha.model.state import RouterState
from vrha.model.steps import Build, Step
from vrha.orchestrator.dhcp import with_partners
from vrha.orchestrator.pushes import Pushed, push
from vrha.store import Store, Tx

APART_S = 5.0
"""Between two pushes to one standby: its dnsmasq starts again for each."""

StandbyOf = Callable[[Tx, str], tuple[str, InstanceRef] | None]
"""Node and instance that stand by for a router."""


def take(tx: Tx, message: Leases) -> bool:
    """Keep what the agent of `message.node` says; False when it has no say in it, or is late.

    The instance must serve, stand by, or be what an open run builds on that node.
    """
    state = tx.router_state(message.instance.router)
    if state is None or not _is_named(tx, state, message.node, message.instance):
        return False
    if not tx.leases.put(replace(message, body=cleaned(message.body))):
        return False
    if message.instance == state.active:
        tx.leases.forget(state.router, before=message.instance.generation)
    return True


def _is_named(tx: Tx, state: RouterState, node: str, instance: InstanceRef) -> bool:
    serving, standing_by = (state.active, state.node), (state.standby, state.standby_node)
    if (instance, node) in (serving, standing_by):
        return True
    run = tx.open_run_of(state.router)
    records = (*run.steps, *run.undo) if run else ()
    builds = [r.step for r in records if isinstance(r.step, Build)]
    return any(b.node == node and b.spec.ref == instance for b in builds)


def with_leases(tx: Tx, step: Step) -> Step:
    """The step as it is sent: a build whose node has nothing to copy gets the leases kept here."""
    if not isinstance(step, Build) or step.leases_from is not None:
        return step
    router = step.spec.ref.router
    state = tx.router_state(router)
    kept = tx.leases.of(router, state.active if state else None)
    return replace(step, leases=with_partners(tx, step.spec, kept))


class Copies:
    """What standbys were given last, in memory: a new orchestrator gives it once more.

    Call `changed` for a router whose leases, or whose standby, are others now; from any thread.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._pushed: dict[str, Pushed] = {}

    def changed(self, router: str) -> None:
        with self._lock:
            self._waiting.add(router)

    def turn(self, store: Store, standby_of: StandbyOf) -> bool:
        """Send what has changed, each router `APART_S` apart; whether anything was sent.

        One thread at a time. Raises as `Store.transaction`; all is tried again then.
        """
        now = self._clock()
        with self._lock:
            due = {router for router in self._waiting if self._may(router, now)}
            self._waiting -= due
        if not due:
            return False
        sent: dict[str, Pushed] = {}
        try:
            with store.transaction() as tx:
                for router in sorted(due):
                    place = standby_of(tx, router)
                    pushed = None if place is None else self._push(tx, router, *place, now)
                    if pushed is not None:
                        sent[router] = pushed
        except BaseException:
            with self._lock:
                self._waiting |= due
            raise
        self._pushed |= sent
        return bool(sent)

    def _may(self, router: str, now: float) -> bool:
        last = self._pushed.get(router)
        return last is None or now >= last.at + APART_S

    def _push(
        self, tx: Tx, router: str, node: str, instance: InstanceRef, now: float
    ) -> Pushed | None:
        state = tx.router_state(router)
        body = tx.leases.of(router, state.active if state else None)
        last = self._pushed.get(router)
        return push(tx, (node, instance), body, now, last, beside=False) if body else None
