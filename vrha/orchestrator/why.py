"""What is the matter with a node or a router, put together from all that the orchestrator knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vrha.core.agents import Act, Decision, cause_of
from vrha.core.causes import INVENTORY_OLD_S, Known, Verdict, judge
from vrha.core.failover import dead_uplinks
from vrha.model.ownership import NodeHealth
from vrha.model.state import NodeState
from vrha.model.views import Event, RouterView, SignalView, WhyView
from vrha.orchestrator import rollouts
from vrha.store import Tx

LAST_EVENTS = 5
LATER_S = 0.5
"""A report on its way when its node fell silent says nothing."""


@dataclass(frozen=True, slots=True)
class Insight:
    """Where the news of nodes come from that the store does not know."""

    healths: Callable[[], Mapping[str, NodeHealth]] = dict
    decisions: Callable[[], Mapping[str, Decision]] = dict
    holds: Callable[[], Mapping[str, str]] = dict
    """Nodes with the reason why nothing may leave them by itself."""
    suspect_ms: float = 400.0
    """The silence of a watcher that is suspicious."""


def node(tx: Tx, name: str, insight: Insight, broker: bool) -> WhyView:
    """Raises NotFoundError (`no-such-node`)."""
    rollouts.find_node(tx.desired()[1], name)
    known = _known(tx, name, insight, broker)
    state = "heard" if _is_heard(known) else "silent"
    if name in tx.rollouts.cordoned():
        state += ", takes no new instances"
    events = tx.events_about("node", name, LAST_EVENTS)
    return _view("node", name, name, state, judge(known), events)


def router(tx: Tx, view: RouterView, insight: Insight, broker: bool) -> WhyView:
    """By the node that serves it; that of a router which nobody serves has no signals."""
    place = f", instance {view.instance} on {view.node}, epoch {view.epoch}"
    state = f"{view.status}{place if view.instance else ''}"
    state += f": {view.reason}" if view.reason else ""
    known = _known(tx, view.node, insight, broker) if view.node else Known("", inventory_s_ago=0.0)
    verdict = judge(known)
    if not view.node:
        verdict = Verdict(verdict.cause, (), verdict.action, verdict.reason)
    events = tx.events_about("router", view.name, LAST_EVENTS)
    return _view("router", view.name, view.node, state, verdict, events)


def _known(tx: Tx, name: str, insight: Insight, broker: bool) -> Known:
    seen = insight.healths().get(name)
    decision = insight.decisions().get(name)
    if seen and decision and decision.cause is not cause_of(seen.health):
        # The look that decides comes a little later than the news.
        decision = decision if decision.act is Act.EVACUATE else None
    nodes = tx.node_states()
    state = next((s for s in nodes if s.name == name), None)
    age_s = max(0.0, time.time() - state.seen_at) if state else None
    dead = name in {node for node, _ in dead_uplinks(n for n in nodes if _is_fresh(n))}
    sick = tuple(str(i.ref) for i in state.instances if i.sick) if state else ()
    return Known(
        node=name,
        health=seen.health if seen else None,
        heard_ms_ago=seen.heard_ms_ago if seen else None,
        since_ms=seen.since_ms if seen else None,
        failures=seen.failures if seen else 0,
        inventory_s_ago=age_s,
        broker=broker,
        silent_after_ms=insight.suspect_ms,
        reached_by=_reached_by(seen, age_s),
        unanswered=bool(seen and seen.unanswered),
        uplink_dead_ms=age_s * 1000 if dead and age_s is not None else None,
        sick=sick,
        doing=decision.why if decision else "",
        hold=insight.holds().get(name, ""),
    )


def _is_fresh(state: NodeState) -> bool:
    return time.time() - state.seen_at <= INVENTORY_OLD_S


def _reached_by(seen: NodeHealth | None, inventory_s_ago: float | None) -> str:
    """Who still hears a node that does not renew with success; empty: nobody, or it does."""
    if seen is None:
        return ""
    if seen.unanswered:
        return "its own renewals, which no majority of the voters answers"
    if seen.heard_by:
        return f"the voters {', '.join(seen.heard_by)}"
    later = inventory_s_ago is not None and inventory_s_ago < seen.heard_ms_ago / 1000 - LATER_S
    return "the broker" if later else ""


def _is_heard(known: Known) -> bool:
    if known.heard_ms_ago is not None:
        return known.heard_ms_ago <= known.silent_after_ms
    return known.inventory_s_ago is not None and known.inventory_s_ago <= INVENTORY_OLD_S


def _view(
    noun: str, name: str, node: str, state: str, verdict: Verdict, events: tuple[Event, ...]
) -> WhyView:
    signals = tuple(SignalView(each.what, each.age_s) for each in verdict.signals)
    return WhyView(
        noun, name, node, state, verdict.cause, signals, verdict.action, verdict.reason, events
    )
