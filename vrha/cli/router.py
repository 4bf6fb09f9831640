"""`vrha router`: what tenants own, where it is served, and why it is as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vrha.cli.measuring import MEASURE_WAITS, measure_options, measuring
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
from vrha.errors import NotFoundError

if TYPE_CHECKING:
    from vrha.cli.client import Client
    from vrha.model.views import RouterView, RunView

_LAST_RUNS = 3


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
            ("NAME", "STATUS", "INSTANCE", "NODE", "EPOCH", "NETWORKS", "RUN", "REASON"),
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
    fields = ("name", "status", "reason", "instance", "node", "epoch", "networks", "run")
    show(settings, found, lambda: record((field, getattr(found, field)) for field in fields))


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
    return (found.name, found.status, *place, networks, found.run, found.reason)


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
