"""`vrha status`: everything at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from vrha.cli.output import clean, output_options, record, show, table
from vrha.cli.pause import describe
from vrha.cli.settings import Settings
from vrha.model.views import BrakeView, NodeStatus, Status

SHOWN = 10
"""Of many runs or routers so many are named; `-o json` has all."""
_HEADER = ("NODE", "ZONE", "STATE", "LEASE HEARD", "AGENT HEARD", "ROUTERS", "NOTES")


@click.command()
@output_options
@click.pass_obj
def status(settings: Settings) -> None:
    """Show leader, brake, pauses, nodes, open runs, and routers that are not served."""
    found = settings.client().status()
    show(settings, found, lambda: _text(found))


def _text(found: Status) -> str:
    head = record(_facts(found))
    return f"{head}\n\n{table(_HEADER, map(_row, found.nodes))}"


def _facts(found: Status) -> Iterator[tuple[str, str]]:
    who = found.leader or "nobody"
    does = "this one leads" if found.leads else "this one stands by"
    yield "leader", f"{who} (epoch {found.leader_epoch}), {does}"
    yield "broker", "connected" if found.broker else "not connected"
    yield "brake", _brake(found.brake)
    for pause in found.pauses:
        yield "paused", describe(pause)
    yield "open runs", _some([f"{run.kind} of {run.router} ({run.id})" for run in found.open_runs])
    lost = [
        f"{router.name} ({router.reason or router.node or router.status})"
        for router in found.not_served
    ]
    yield "not served", _some(lost)


def _brake(brake: BrakeView | None) -> str:
    if brake is None:
        return "unknown: no leases are watched here"
    state = f"on since {brake.since}: {brake.reason}" if brake.on else "off"
    figures = (
        f"{brake.recovering} nodes under recovery (budget {brake.budget}), "
        f"{brake.silent} silent (limit {brake.limit})"
    )
    return f"{state if brake.enabled else 'failover is disabled'}; {figures}"


def _some(parts: Sequence[str]) -> str:
    if not parts:
        return "none"
    more = f", and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return f"{len(parts)}: {', '.join(parts[:SHOWN])}{more}"


def _row(node: NodeStatus) -> tuple[object, ...]:
    lease, agent = node.heard_ms_ago, node.agent_heard_seconds_ago
    return (
        node.name,
        node.zone,
        node.condition,
        "" if lease is None else f"{lease:.0f} ms ago",
        "never" if agent is None else f"{agent:.1f} s ago",
        node.routers,
        ", ".join(_notes(node)),
    )


def _notes(node: NodeStatus) -> Iterator[str]:
    if node.hold:
        yield f"held: {clean(node.hold)}"
    if node.suppressed_until:
        yield f"flaps, takes no routers until {node.suppressed_until}"
    if node.draining:
        yield "draining"
    if node.paused:
        yield "paused"
