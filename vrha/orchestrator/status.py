"""Everything at a glance: nodes by their leases and agents, the brake, what is not served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from vrha.core.brake import Decisions, ZoneSight
from vrha.core.damping import is_suppressed
from vrha.core.judging import Judgement
from vrha.core.pauses import paused_by
from vrha.model.health import NodeHealth
from vrha.model.spec import Desired
from vrha.model.views import (
    BrakeView,
    NodeCondition,
    NodeSight,
    NodeStatus,
    OpenRun,
    RouterStatus,
    RouterView,
)
from vrha.orchestrator.reconcile import SILENT_AFTER_S
from vrha.store import Tx


def brake_of(judgement: Judgement, unix: float) -> BrakeView:
    """The brake as the leader left it a moment ago; `unix` is now."""
    return brake_view(judgement.zone, judgement.decided, judgement.at, unix)


def sights_of(judgement: Judgement, unix: float) -> Mapping[str, NodeSight]:
    """The nodes as the leader saw them a moment ago; `unix` is now."""
    heard, health = judgement.heard_ms_ago, judgement.health
    return node_sights(judgement.zone, judgement.decided, heard, health, unix)


def brake_view(zone: ZoneSight, decided: Decisions, now: float, unix: float) -> BrakeView:
    """The brake as people see it; `now` on the clock of `decided`, `unix` the same moment."""
    brake = decided.brake
    return BrakeView(
        on=brake.reason is not None,
        reason=brake.reason or "",
        since=_moment(unix - (now - brake.since)) if brake.reason else "",
        recovering=decided.recovering,
        budget=decided.budget,
        silent=decided.silent,
        limit=decided.limit,
        enabled=zone.rules.enabled,
    )


def node_sights(
    zone: ZoneSight,
    decided: Decisions,
    heard_ms_ago: Mapping[str, float],
    health: Mapping[str, NodeHealth],
    unix: float,
) -> Mapping[str, NodeSight]:
    """The nodes as leases show them; who was never heard is missing in `heard_ms_ago`."""
    return {
        node.name: NodeSight(
            name=node.name,
            heard_ms_ago=heard_ms_ago.get(node.name),
            silent=node.silent_since is not None,
            recovering=node.recovering or node.name in decided.go,
            suppressed_until=_suppressed_until(health.get(node.name), unix),
            hold=decided.hold.get(node.name, ""),
        )
        for node in zone.nodes
    }


def nodes(
    tx: Tx,
    desired: Desired,
    routers: Sequence[RouterView],
    sights: Mapping[str, NodeSight],
    unix: float,
) -> tuple[NodeStatus, ...]:
    """Every desired node at `unix` (Unix time)."""
    seen = {state.name: state.seen_at for state in tx.node_states()}
    health, pauses, draining = tx.node_health.all(), tx.pauses.all(), tx.rollouts.cordoned()
    hosted = Counter(router.node for router in routers if router.instance)
    found = []
    for node in desired.nodes:
        # An agent that is away is no reason to think that its node is.
        agent = unix - seen[node.name] if seen.get(node.name) else None
        sight = sights.get(node.name) or NodeSight(
            node.name, silent=agent is None or agent > SILENT_AFTER_S
        )
        suppressed_until = sight.suppressed_until or _suppressed_until(health.get(node.name), unix)
        found.append(
            NodeStatus(
                name=node.name,
                zone=node.zone,
                condition=_condition(sight, suppressed_until),
                heard_ms_ago=sight.heard_ms_ago,
                agent_heard_seconds_ago=None if agent is None else max(0.0, agent),
                routers=hosted[node.name],
                draining=node.name in draining,
                paused=paused_by(pauses, zone=node.zone, node=node.name) is not None,
                suppressed_until=suppressed_until,
                hold=sight.hold,
            )
        )
    return tuple(found)


def open_runs(tx: Tx) -> tuple[OpenRun, ...]:
    """Runs that have not ended, oldest first."""
    return tuple(
        OpenRun(run.id, run.kind, run.router, times.started_at)
        for run, times in tx.open_run_briefs()
    )


def not_served(
    routers: Sequence[RouterView], sights: Mapping[str, NodeSight]
) -> tuple[RouterView, ...]:
    """Routers for whose addresses nobody answers, as far as is known."""
    lost = {sight.name for sight in sights.values() if sight.silent or sight.recovering}
    return tuple(
        router
        for router in routers
        if not router.instance or router.status is RouterStatus.FAILED or router.node in lost
    )


def _condition(sight: NodeSight, suppressed_until: str) -> NodeCondition:
    if sight.recovering:
        return NodeCondition.RECOVERING
    if sight.silent:
        return NodeCondition.SILENT
    return NodeCondition.SUPPRESSED if suppressed_until else NodeCondition.HEARD


def _suppressed_until(health: NodeHealth | None, unix: float) -> str:
    suppressed = health is not None and is_suppressed(health, unix)
    return _moment(health.suppressed_until) if health and suppressed else ""


def _moment(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")
