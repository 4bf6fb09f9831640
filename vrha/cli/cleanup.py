"""`vrha cleanup`: what a dead agent left on this node, and its removal by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from vrha.cli.output import output_options, show
from vrha.cli.settings import Settings
from vrha.watcher.cleanup import plan_lines, report_lines
from vrha.watcher.sweeping import Wanted, look, plan_told, report_told, run, wanted

F = TypeVar("F", bound=Callable[..., Any])


def _where(command: F) -> F:
    """Give a command the options that say what it is about."""
    options = (
        click.option("--profile", default="vrha", show_default=True, help="Whose leftovers."),
        click.option(
            "--only", multiple=True, metavar="ROUTER", help="This router only; repeatable."
        ),
        click.option(
            "--state-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help="The agent's folder, if not that of the profile.",
        ),
        click.option(
            "--force",
            is_flag=True,
            help="Also what still serves and nobody governs, or whose agent was stopped by hand.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def cleanup() -> None:
    """What a dead agent left on this node. Run it on the node, as root."""


@cleanup.command("plan")
@output_options
@_where
@click.pass_obj
def plan(
    settings: Settings, profile: str, only: Sequence[str], state_dir: Path | None, force: bool
) -> int:
    """Show what is there, why it is ours, and what would be done about it. Changes nothing."""
    return _plan(settings, wanted(profile, state_dir, only, force))


@cleanup.command("run")
@output_options
@_where
@click.option("--dry-run", is_flag=True, help="As `vrha cleanup plan`.")
@click.pass_obj
def run_(
    settings: Settings,
    profile: str,
    only: Sequence[str],
    state_dir: Path | None,
    force: bool,
    dry_run: bool,
) -> int:
    """Remove it. Refused while the agent lives; nothing is swept while a lease is live."""
    what = wanted(profile, state_dir, only, force)
    if dry_run:
        return _plan(settings, what)
    done = run(what, _progress if sys.stderr.isatty() else _silence)
    told = report_told(done)
    show(settings, told, lambda: "\n".join(report_lines(told)))
    return done.exit_code


def _plan(settings: Settings, what: Wanted) -> int:
    told = plan_told(look(what))
    show(settings, told, lambda: "\n".join(plan_lines(told)))
    return 1 if told["problems"] else 0


def _progress(phase: str, count: int) -> None:
    click.echo(f"{phase} ({count})", err=True)


def _silence(phase: str, count: int) -> None:
    """Nobody watches."""
