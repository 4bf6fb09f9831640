"""`vrha network`: tenant segments, and the restart with cleanup."""

from __future__ import annotations

from pathlib import Path

import click

from vrha.cli.measuring import MEASURE_WAITS, measure_options, measuring
from vrha.cli.output import output_options, record, show, table
from vrha.cli.restarting import (
    handover_options,
    options_of,
    rollout_options,
    see_through,
    show_plan,
    start_rollout,
    waiting_options,
)
from vrha.cli.settings import Settings
from vrha.errors import NotFoundError
from vrha.model.rollouts import RolloutKind, RolloutRequest

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
    fields = ("name", "status", "router", "node", "bridge", "subnets", "second_dhcp", "run")
    show(settings, found, lambda: record((field, getattr(found, field)) for field in fields))


@network.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Restart all routers, one rollout.")
@click.option("--zone", help="With --all: only routers on nodes of that zone.")
@click.option("--cleanup", is_flag=True, help="Needed: says that the old instance is destroyed.")
@rollout_options
@handover_options
@waiting_options
@measure_options
@output_options
@click.pass_obj
def restart(
    settings: Settings,
    name: str | None,
    everything: bool,
    zone: str | None,
    cleanup: bool,
    max_parallel: int | None,
    stop_on_lost: int | None,
    keep_going: bool,
    strategy: str | None,
    hold: bool,
    max_lost: int | None,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    measure: Path | None,
    settle: float,
) -> None:
    """Replace the router instance that serves a network, and clean up the old one.

    With --all: those of all networks, the first one alone, then several at a time.
    """
    if not cleanup:
        raise click.UsageError(CLEANUP_MISSING)
    if zone == "":
        # An unset variable of a script must not mean everything.
        raise click.UsageError("--zone needs a name")
    options = options_of(strategy, hold, max_lost)
    if everything and name is None:
        if measure is not None:
            raise click.UsageError("--measure is for the restart of one network")
        request = RolloutRequest(
            RolloutKind.RESTART,
            zone or "",
            "",
            max_parallel or 4,
            stop_on_lost,
            keep_going,
            options,
        )
        start_rollout(settings, request, dry_run, wait, timeout)
        return
    if name is None or everything:
        raise click.UsageError("either the NAME of one network, or --all")
    for_many = (zone, max_parallel, stop_on_lost, keep_going or None)
    if any(given is not None for given in for_many):
        raise click.UsageError("--zone, --max-parallel, --stop-on-lost and --keep-going need --all")
    client = settings.client()
    if measure is not None and (dry_run or not wait):
        raise click.UsageError(MEASURE_WAITS)
    if dry_run:
        show_plan(settings, client.plan_restart(name, options))
        return
    with measuring(client, measure, settle) as probes:
        see_through(settings, client, client.restart_network(name, options), wait, timeout, probes)
