"""`vrha rollout`: operations over many routers that were started by other commands."""

from __future__ import annotations

import click

from vrha.cli.options import duration
from vrha.cli.output import output_options, show, table
from vrha.cli.settings import Settings
from vrha.model.rollouts import RolloutBrief


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def rollout() -> None:
    """Rollouts: restarts of many routers, and drains of nodes.

    `vrha network restart --all` and `vrha node drain` start them.
    """


@rollout.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@output_options
@click.pass_obj
def list_rollouts(settings: Settings, limit: int) -> None:
    """List the newest rollouts."""
    client = settings.client()
    found = client.rollouts(limit)
    header = ("ID", "KIND", "OF", "STATUS", "ROUTERS", "COUNTS", "LOST", "STARTED", "ENDED")
    show(settings, found, lambda: table((*header, "REASON"), map(_row, found)))


def _row(brief: RolloutBrief) -> tuple[object, ...]:
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in brief.counts)
    return (
        brief.id,
        brief.kind,
        brief.node or brief.zone or "all",
        brief.status,
        brief.routers,
        counts,
        brief.lost,
        brief.started_at,
        brief.ended_at,
        brief.reason,
    )


@rollout.command("show")
@click.argument("rollout_id", metavar="ID")
@output_options
@click.pass_obj
def show_rollout(settings: Settings, rollout_id: str) -> None:
    """Show what was asked for, and every router of it."""
    from vrha.cli import rolling

    found = settings.client().rollout(rollout_id)
    show(settings, found, lambda: rolling.full(found))


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@output_options
@click.pass_obj
def report(settings: Settings, rollout_id: str) -> None:
    """Print every router: its run, from where to where, how it ended, what it lost, how long."""
    from vrha.cli import rolling

    found = settings.client().rollout(rollout_id)
    show(settings, found, lambda: rolling.report(found))


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--timeout", type=duration, default="24h", show_default=True)
@output_options
@click.pass_obj
def watch(settings: Settings, rollout_id: str, timeout: float) -> None:
    """Show a rollout until it ends; fails unless everything is done."""
    from vrha.cli import rolling

    client = settings.client()
    # Asked once outside of the waiting: here an absent orchestrator is an error at once.
    found = client.rollout(rollout_id)
    rolling.see_through(settings, client, found, True, timeout)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@output_options
@click.pass_obj
def stop(settings: Settings, rollout_id: str) -> None:
    """Take up no further router; runs that have begun go on to their end."""
    from vrha.cli import rolling

    stopped = settings.client().stop_rollout(rollout_id)
    show(settings, stopped, lambda: rolling.summary(stopped))


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the end.")
@click.option("--timeout", type=duration, default="24h", show_default=True)
@output_options
@click.pass_obj
def resume(settings: Settings, rollout_id: str, wait: bool, timeout: float) -> None:
    """Take a stopped rollout up again with what is not done, what had failed included."""
    from vrha.cli import rolling

    client = settings.client()
    found = client.resume_rollout(rollout_id)
    rolling.see_through(settings, client, found, wait, timeout)
