"""`vrha router`: what tenants own, where it is served, and why it is as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vrha.cli.measuring import MEASURE_WAITS, measure_options, measuring
from vrha.cli.options import duration
from vrha.cli.output import clean, output_options, record, show, table
from vrha.cli.restarting import (
    handover_options,
    options_of,
    see_through,
    show_plan,
    waiting_options,
)
from vrha.cli.settings import Settings
from vrha.cli.why import show_why
from vrha.errors import DeadlineError, NotFoundError
from vrha.model.spec import PRIORITIES, Policy

if TYPE_CHECKING:
    from vrha.cli.client import Client
    from vrha.model.views import RouterView, RunView, StandbyView

_LAST_RUNS = 3
_LOOK_S = 0.1


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def router() -> None:
    """Routers: what tenants own, and the instances that serve it."""


@router.command("list")
@output_options
@click.pass_obj
def list_routers(settings: Settings) -> None:
    """List all routers and where they are served."""
    client = settings.client()
    routers = client.routers()
    show(
        settings,
        routers,
        lambda: table(
            ("NAME", "STATUS", "INSTANCE", "NODE", "EPOCH", "NETWORKS", "STANDBY", "RUN", "REASON"),
            map(_row, routers),
        ),
    )


@router.command("show")
@click.argument("name")
@output_options
@click.pass_obj
def show_router(settings: Settings, name: str) -> None:
    """Show one router."""
    client = settings.client()
    found = _find(client, name)
    show(settings, found, lambda: record(_fields(found)))


@router.command("set")
@click.argument("name")
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    help="What makes it serve again when its node is lost: resurrect builds a new instance"
    " elsewhere, standby keeps one there that knows all connections.",
)
@click.option(
    "--priority",
    type=click.IntRange(*PRIORITIES),
    help="Of many routers that are lost at once the higher ones are brought back first.",
)
@click.option("--wait", is_flag=True, help="Wait until the standby is in sync, or gone.")
@click.option("--timeout", type=duration, default="60s", show_default=True)
@output_options
@click.pass_obj
def set_router(
    settings: Settings,
    name: str,
    policy: str | None,
    priority: int | None,
    wait: bool,
    timeout: float,
) -> None:
    """Change a router in the desired state.

    The file that was applied last is not changed: `vrha apply` of it takes this back.
    """
    given = {"policy": policy, "priority": priority}
    words = [f"{field} {value}" for field, value in given.items() if value is not None]
    if not words:
        raise click.UsageError("nothing to set: give --policy or --priority")
    client = settings.client()
    deadline = time.monotonic() + timeout
    result = client.set_router(name, Policy(policy) if policy else None, priority)
    if wait and policy:
        _await_standby(client, name, Policy(policy), deadline, timeout)
    runs = f", runs {' '.join(result.runs)}" if result.runs else ""
    what = f"desired state {result.version}: {name} has {', '.join(words)}{runs}"
    show(settings, result, lambda: what)


def _await_standby(
    client: Client, name: str, policy: Policy, deadline: float, timeout: float
) -> None:
    """Raises DeadlineError (`standby-not-ready`)."""
    while True:
        standby = _find(client, name).standby
        if policy is Policy.STANDBY and standby is not None and standby.in_sync:
            return
        if policy is Policy.RESURRECT and standby is None:
            return
        if time.monotonic() > deadline:
            why = f": {standby.why}" if standby is not None and standby.why else ""
            raise DeadlineError(
                "standby-not-ready",
                f"after {timeout:g} s the standby of {name} is not as it should be{why}",
                f"`vrha router show {name}` and `vrha run list` tell more.",
            )
        time.sleep(_LOOK_S)


@router.command()
@click.argument("name")
@output_options
@click.pass_obj
def why(settings: Settings, name: str) -> None:
    """Say why a router is in the state it is in, and what was last done to it."""
    client = settings.client()

    def last_runs() -> list[str]:
        last = [run for run in client.runs(limit=1000) if run.router == name][:_LAST_RUNS]
        return [clean(_sentence(run)) for run in last]

    show_why(settings, "router", name, client.why_router, last_runs)


@router.command()
@click.argument("name")
@click.option("--to", "node", required=True, metavar="NODE", help="The node that is to serve it.")
@handover_options
@waiting_options
@measure_options
@output_options
@click.pass_obj
def move(
    settings: Settings,
    name: str,
    node: str,
    strategy: str | None,
    hold: bool,
    max_lost: int | None,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    measure: Path | None,
    settle: float,
) -> None:
    """Let another node serve a router; the old instance is destroyed."""
    options = options_of(strategy, hold, max_lost, node)
    client = settings.client()
    if measure is not None and (dry_run or not wait):
        raise click.UsageError(MEASURE_WAITS)
    if dry_run:
        show_plan(settings, client.plan_move(name, options))
        return
    with measuring(client, measure, settle) as probes:
        see_through(settings, client, client.move_router(name, options), wait, timeout, probes)


def _row(found: RouterView) -> tuple[object, ...]:
    networks = ",".join(found.networks)
    place = (found.instance, found.node, found.epoch)
    return (found.name, found.status, *place, networks, _brief(found), found.run, found.reason)


def _brief(found: RouterView) -> str:
    standby = found.standby
    if standby is None:
        return ""
    if not standby.instance:
        return "none yet"
    return f"{standby.node}" + ("" if standby.in_sync else " (not in sync)")


def _fields(found: RouterView) -> Iterator[tuple[str, object]]:
    for field in ("name", "status", "reason", "instance", "node", "epoch", "networks", "run"):
        yield field, getattr(found, field)
    yield "priority", found.priority
    yield "policy", found.policy
    standby = found.standby
    if standby is None:
        yield "cost", "nothing until a node is lost; then a new instance is built"
    elif not standby.instance:
        yield "standby", f"none: {standby.why}" if standby.why else "none yet"
    else:
        known = "knows all connections" if standby.in_sync else "not in sync"
        yield "standby", f"{standby.instance} on {standby.node}, {known}"
        yield "cost", _cost(standby)


def _cost(standby: StandbyView) -> str:
    """What the standby takes, in words."""
    words = f"one more instance on {standby.node}: a namespace and a dnsmasq"
    if standby.memory_kib:
        words += f" ({standby.memory_kib} KiB)"
    words += f"; {standby.connections} connections held twice"
    return f"{words}, {standby.changes_per_second:.1f} changes per second carried over"


def _sentence(run: RunView) -> str:
    from vrha.cli.progress import headline

    reason = " ".join(word for word in (run.reason, run.detail) if word)
    state = run.status.replace("_", " ")
    return f"{run.started_at or 'not started'}  {headline(run)}: {state}" + (
        f" ({reason})" if reason else ""
    )


def _find(client: Client, name: str) -> RouterView:
    found = next((r for r in client.routers() if r.name == name), None)
    if found is None:
        raise NotFoundError("no-such-router", f"no router {name}", "See `vrha router list`.")
    return found
