"""`vrha run`: journaled operations, their steps, and the machine that they follow."""

from __future__ import annotations

import click

from vrha.cli.options import duration
from vrha.cli.output import output_options, show, table
from vrha.cli.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def run() -> None:
    """Runs: what was done to routers, step by step."""


@run.command("list")
@click.option("--open", "open_only", is_flag=True, help="Only runs that have not ended.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@output_options
@click.pass_obj
def list_runs(settings: Settings, open_only: bool, limit: int) -> None:
    """List the newest runs."""
    client = settings.client()
    runs = client.runs(open_only, limit)
    show(
        settings,
        runs,
        lambda: table(
            ("ID", "KIND", "ROUTER", "STRATEGY", "STATUS", "STARTED", "ENDED", "REASON"),
            (
                (r.id, r.kind, r.router, r.strategy, r.status, r.started_at, r.ended_at, r.reason)
                for r in runs
            ),
        ),
    )


@run.command("show")
@click.argument("run_id", metavar="ID")
@output_options
@click.pass_obj
def show_run(settings: Settings, run_id: str) -> None:
    """Show one run with all its steps."""
    from vrha.cli import runview

    client = settings.client()
    found = client.run(run_id)
    show(settings, found, lambda: runview.full(found))


@run.command("report")
@click.argument("run_id", metavar="ID")
@click.option(
    "--html",
    metavar="FILE",
    help="Also write one HTML page with the timeline; `-`: print the page and nothing else.",
)
@output_options
@click.pass_obj
def report_run(settings: Settings, run_id: str, html: str | None) -> None:
    """Report on one run: its steps, what it carried over, and what was lost when."""
    from vrha.cli import runreport

    runreport.give(settings, settings.client().run(run_id), html)


@run.command()
@click.argument("run_id", metavar="ID")
@click.option("--timeout", type=duration, default="1h", show_default=True)
@output_options
@click.pass_obj
def watch(settings: Settings, run_id: str, timeout: float) -> None:
    """Show a run until it ends; fails if it was rolled back."""
    from vrha.cli import progress

    client = settings.client()
    # Asked once outside of the waiting: here an absent orchestrator is an error at once.
    client.run(run_id)
    ended = progress.follow(client, run_id, timeout, progress.progress())
    show(settings, ended, lambda: progress.summary(ended))
    progress.demand_done([ended])


@run.command()
def diagram() -> None:
    """Print the state machine of runs, drawn from its table."""
    from vrha.core.run import diagram as draw

    click.echo(draw())
