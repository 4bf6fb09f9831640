"""Nodes whose agent stays away give their routers to others: a drain that nobody had to ask for.

It is a rollout like any other, so a killed orchestrator goes on where it was. What only this
process knows is how long an agent has been as it is; the next one begins to count anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vrha.core.agents import (
    Act,
    AgentHistory,
    AgentLimits,
    Decision,
    Surroundings,
    decide,
    follow,
    is_well,
)
from vrha.core.causes import Cause
from vrha.core.choice import STAND_IN
from vrha.errors import RefusedError
from vrha.model.ownership import AGENT_FAILS, Health, NodeHealth
from vrha.model.rollouts import Rollout, RolloutKind, RolloutRequest, RolloutStatus, StopReason
from vrha.model.runs import Strategy
from vrha.model.state import NodeState
from vrha.orchestrator import reconcile, rollouts
from vrha.store import Store, Tx

log = logging.getLogger(__name__)

LOOK_S = 0.1
ACT_S = 0.5
"""How often the store is asked while something is the matter."""
STAND_IN_S = 5.0
"""For how long a watcher is asked for a stand-in; as long as there is need it is asked again."""
AGAIN_S = 5.0
"""Before a drain that came to a stop is taken up again."""
MAX_PARALLEL = 4
_NEWEST = 100


@dataclass(frozen=True, slots=True)
class Outside:
    """What an evacuation asks for, and of whom: watchers, the brake and pauses, the broker."""

    healths: Callable[[], Mapping[str, NodeHealth]]
    stand_in: Callable[[str, float], None]
    holds: Callable[[], Mapping[str, str]] = dict
    """Nodes with the reason why nothing may leave them by itself."""
    broker_connected: Callable[[], bool] = lambda: True


class Evacuation:
    """`look` belongs to one thread, `decisions` may be read from any."""

    def __init__(
        self,
        store: Store,
        outside: Outside,
        limits: AgentLimits,
        preferred: Strategy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._outside = outside
        self._limits = limits
        self._preferred = preferred
        self._clock = clock
        self._looked_at: float | None = None
        self._acted_at: float | None = None
        self._histories: dict[str, AgentHistory] = {}
        self._told: dict[str, Cause] = {}
        self._tried_at: dict[str, float] = {}
        self._evacuated: dict[str, Rollout] | None = None
        """Nodes that are being emptied, or kept empty, by us; None: the store was not asked yet."""
        self._decisions: Mapping[str, Decision] = {}

    def decisions(self) -> Mapping[str, Decision]:
        """What is done about each node's agent, as of the last look."""
        return self._decisions

    def forget(self) -> None:
        """Somebody else led meanwhile."""
        self._evacuated = None
        self._histories.clear()

    def look(self) -> bool:
        """Decide, and begin what was decided; whether rollouts have something to do now."""
        now = self._clock()
        if self._looked_at is not None and now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        healths = self._outside.healths()
        if not healths:
            return False
        for name, seen in healths.items():
            before = self._histories.get(name)
            self._histories[name] = follow(before, seen, now * 1000, self._limits)
        if self._evacuated is None:
            with self._store.reading() as tx:
                self._evacuated = _evacuated(tx)
        self._decisions = self._decide(healths, self._evacuated, now * 1000)
        if not self._has_to_act(self._evacuated, now):
            return False
        self._acted_at = now
        with self._store.transaction() as tx:
            changed = self._act(tx, healths, now)
            self._evacuated = _evacuated(tx)
        return changed

    def _has_to_act(self, evacuated: Mapping[str, Rollout], now: float) -> bool:
        if any(d.cause is not self._told.get(n, Cause.SERVING) for n, d in self._decisions.items()):
            return True
        if self._acted_at is not None and now - self._acted_at < ACT_S:
            return False
        return any(rollout.status.open for rollout in evacuated.values()) or any(
            d.act is not Act.WAIT for d in self._decisions.values()
        )

    def _decide(
        self, healths: Mapping[str, NodeHealth], evacuated: Mapping[str, Rollout], now_ms: float
    ) -> Mapping[str, Decision]:
        holds = self._outside.holds()
        well = {name for name, seen in healths.items() if is_well(seen, self._limits)}
        broker = "" if self._outside.broker_connected() else "there is no broker"
        decisions = {}
        for name, seen in healths.items():
            around = Surroundings(name in evacuated, holds.get(name, broker), bool(well - {name}))
            decisions[name] = decide(seen, self._histories[name], now_ms, self._limits, around)
        return decisions

    def _act(self, tx: Tx, healths: Mapping[str, NodeHealth], now: float) -> bool:
        wanted = {node.name for node in tx.desired()[1].nodes}
        evacuated = _evacuated(tx)
        changed = False
        for name in sorted(healths.keys() & wanted):
            decision = self._decisions[name]
            self._tell(tx, name, decision)
            rollout = evacuated.get(name)
            if decision.act is Act.RETURN and rollout is not None:
                changed |= _give_back(tx, name, rollout, decision)
            elif decision.act is Act.EVACUATE or (rollout is not None and rollout.status.open):
                changed |= self._empty(tx, healths[name], decision, rollout, now)
        return changed

    def _tell(self, tx: Tx, name: str, decision: Decision) -> None:
        before = self._told.get(name, Cause.SERVING)
        if decision.cause is before:
            return
        self._told[name] = decision.cause
        kind = "agent-back" if decision.cause is Cause.SERVING else "agent-failed"
        reason = before if decision.cause is Cause.SERVING else decision.cause
        tx.add_event(kind, reason, node=name, detail=decision.why)

    def _empty(
        self, tx: Tx, seen: NodeHealth, decision: Decision, rollout: Rollout | None, now: float
    ) -> bool:
        """One step towards a node without routers; whether a rollout was begun or taken up."""
        name = seen.node
        begins = decision.act is Act.EVACUATE and not (rollout and rollout.status.open)
        request = RolloutRequest(
            RolloutKind.DRAIN,
            node=name,
            max_parallel=MAX_PARALLEL,
            keep_going=True,
            cause=decision.cause,
            returns=rollout.request.returns if rollout else name not in tx.rollouts.cordoned(),
        )
        if not rollouts.routers_of(tx, tx.desired()[1], request):
            return False
        if rollout is not None and rollout.reason == StopReason.ASKED:
            return False
        if seen.health & AGENT_FAILS and not seen.health & Health.STAND_IN:
            self._outside.stand_in(name, STAND_IN_S)
        if not begins or now - self._tried_at.get(name, -AGAIN_S) < AGAIN_S:
            return False
        if not _gives(tx.node_states(), seen):
            return False
        self._tried_at[name] = now
        return self._begin(tx, request, rollout, decision)

    def _begin(
        self, tx: Tx, request: RolloutRequest, rollout: Rollout | None, decision: Decision
    ) -> bool:
        try:
            if rollout is not None and rollout.status is RolloutStatus.STOPPED:
                rollouts.resume(tx, rollout.id)
                return True
            rollouts.begin(tx, request, self._preferred)
        except RefusedError as error:
            log.warning("node %s is not emptied: %s", request.node, error.message)
            return False
        log.warning("node %s: %s", request.node, decision.why)
        tx.add_event("evacuation", decision.cause, node=request.node, detail=decision.why)
        return True


def _gives(states: tuple[NodeState, ...], seen: NodeHealth) -> bool:
    """Whether somebody on the node was heard who can give its routers away: what an earlier
    process said of itself serves nobody, its keys have gone with it."""
    state = next((state for state in states if state.name == seen.node), None)
    if state is None or time.time() - state.seen_at > reconcile.SILENT_AFTER_S:
        return False
    if seen.health & Health.STAND_IN:
        return STAND_IN in state.capabilities
    fresh = time.time() - state.seen_at < seen.since_ms / 1000
    return fresh and not seen.health & AGENT_FAILS and STAND_IN not in state.capabilities


def _evacuated(tx: Tx) -> dict[str, Rollout]:
    """Cordoned nodes whose newest drain was our own, with it."""
    cordoned = tx.rollouts.cordoned()
    newest: dict[str, Rollout] = {}
    if cordoned:
        for rollout, _ in tx.rollouts.newest(_NEWEST):
            if rollout.request.kind is RolloutKind.DRAIN:
                newest.setdefault(rollout.request.node, rollout)
    return {node: each for node, each in newest.items() if node in cordoned and each.request.cause}


def _give_back(tx: Tx, name: str, rollout: Rollout, decision: Decision) -> bool:
    """End what empties the node; once that has ended the node takes instances again."""
    if rollout.status is RolloutStatus.RUNNING:
        rollouts.stop(tx, rollout.id)
        return True
    if rollout.status.open or not rollout.request.returns:
        return False
    tx.rollouts.uncordon(name)
    log.info("node %s takes instances again: %s", name, decision.why)
    tx.add_event("uncordoned", rollout.request.cause, node=name, detail=decision.why)
    return True
