"""`vrha network`: tenant segments, and the restart with cleanup."""

from __future__ import annotations

import click

from vrha.cli.options import duration
from vrha.cli.output import output_options, record, show, table
from vrha.cli.settings import Settings
from vrha.errors import NotFoundError
from vrha.model.runs import RestartOptions, Strategy

CLEANUP_MISSING = """\
a restart needs --cleanup, so that nobody does it by mistake.
With --cleanup a replacement of the network's router is built, checked and put in charge, and
the old instance is destroyed with everything that belongs to it. The network keeps its
addresses, leases and rules. Add --dry-run to see the exact steps first.\
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def network() -> None:
    """Networks: the tenant segments that routers serve."""


@network.command("list")
@output_options
@click.pass_obj
def list_networks(settings: Settings) -> None:
    """List all networks and what serves them."""
    client = settings.client()
    networks = client.networks()
    show(
        settings,
        networks,
        lambda: table(
            ("NAME", "STATUS", "ROUTER", "NODE", "BRIDGE", "SUBNETS", "RUN"),
            (
                (n.name, n.status, n.router, n.node, n.bridge, ",".join(n.subnets), n.run)
                for n in networks
            ),
        ),
    )


@network.command("show")
@click.argument("name")
@output_options
@click.pass_obj
def show_network(settings: Settings, name: str) -> None:
    """Show one network."""
    client = settings.client()
    found = next((n for n in client.networks() if n.name == name), None)
    if found is None:
        raise NotFoundError("no-such-network", f"no network {name}", "See `vrha network list`.")
    fields = ("name", "status", "router", "node", "bridge", "subnets", "run")
    show(settings, found, lambda: record((field, getattr(found, field)) for field in fields))


@network.command()
@click.argument("name")
@click.option("--cleanup", is_flag=True, help="Needed: says that the old instance is destroyed.")
@click.option(
    "--strategy",
    type=click.Choice([strategy.value for strategy in Strategy]),
    help="How to hand over; default: the best that the nodes are capable of.",
)
@click.option("--hold", is_flag=True, help="Hold packets for a millisecond during a handover.")
@click.option(
    "--max-lost",
    type=click.IntRange(0),
    help="Turn the traffic back when the node lost more probes than that; default: only when"
    " none comes through.",
)
@click.option("--dry-run", is_flag=True, help="Show the steps and their undo; start nothing.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the end.")
@click.option(
    "--timeout",
    type=duration,
    default="90s",
    show_default=True,
    help="How long to wait; the run goes on afterwards.",
)
@output_options
@click.pass_obj
def restart(
    settings: Settings,
    name: str,
    cleanup: bool,
    strategy: str | None,
    hold: bool,
    max_lost: int | None,
    dry_run: bool,
    wait: bool,
    timeout: float,
) -> None:
    """Replace the router instance that serves a network, and clean up the old one."""
    if not cleanup:
        raise click.UsageError(CLEANUP_MISSING)
    from vrha.cli import progress, runview

    options = RestartOptions(Strategy(strategy) if strategy else None, "", hold, max_lost)
    client = settings.client()
    if dry_run:
        plan = client.plan_restart(name, options)
        show(settings, plan, lambda: runview.plan(plan))
        return
    run = client.restart_network(name, options)
    if not wait:
        show(settings, run, lambda: progress.headline(run))
        return
    try:
        ended = progress.follow(client, run.id, timeout, progress.progress())
    except KeyboardInterrupt:
        click.echo(f"run {run.id} goes on; `vrha run watch {run.id}` shows it", err=True)
        raise
    show(settings, ended, lambda: progress.summary(ended))
    progress.demand_done([ended])
