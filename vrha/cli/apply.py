"""`vrha apply` and `vrha diff`: the desired state from a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vrha.cli.options import duration
from vrha.cli.output import clean, output_options, show
from vrha.cli.settings import Settings
from vrha.errors import DeadlineError
from vrha.model.views import ApplyResult, Change, ChangeKind, RouterStatus

if TYPE_CHECKING:
    from vrha.cli.client import Client
    from vrha.model.views import RunView

POLL_SECONDS = 0.2
_SIGNS = {ChangeKind.ADD: "+", ChangeKind.CHANGE: "~", ChangeKind.REMOVE: "-"}

file_option = click.option(
    "-f",
    "--file",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML file with networks, routers and nodes.",
)


@click.command()
@file_option
@click.option("--wait", is_flag=True, help="Wait until the runs that this starts have ended.")
@click.option("--timeout", type=duration, default="60s", show_default=True)
@output_options
@click.pass_obj
def apply(settings: Settings, path: Path, wait: bool, timeout: float) -> None:
    """Make the file the desired state: what it does not name is removed.

    The file is checked here first, and nothing is sent unless it is right as a whole.
    """
    from vrha.config.desired import load

    desired = load(path)
    client = settings.client()
    result = client.apply(desired)
    if not wait:
        show(settings, result, lambda: _applied(result))
        for line in _waiting(client):
            click.echo(line, err=True)
        return
    from vrha.cli import progress

    deadline = time.monotonic() + timeout
    ended: list[RunView] = []
    for run_id in result.runs:
        left = max(0.0, deadline - time.monotonic())
        ended.append(progress.follow(client, run_id, left, progress.progress()))
    show(settings, result, lambda: _applied(result))
    progress.demand_done(ended)
    if not result.runs:
        _await_placed(client, deadline)


@click.command()
@file_option
@output_options
@click.pass_obj
def diff(settings: Settings, path: Path) -> None:
    """Show what an apply of the file would change; changes nothing."""
    from vrha.config.desired import load

    desired = load(path)
    client = settings.client()
    changes = client.diff(desired)
    show(settings, changes, lambda: _changes(changes))


def _waiting(client: Client) -> list[str]:
    """A line for each router that does not serve and that no run is about to change."""
    return [
        clean(f"router {router.name} waits: {router.reason or 'no instance of it exists'}")
        for router in client.routers()
        if router.status in (RouterStatus.ABSENT, RouterStatus.FAILED)
    ]


def _await_placed(client: Client, deadline: float) -> None:
    """Wait for routers that no node could take yet. Raises DeadlineError (`not-serving`)."""
    waiting = _waiting(client)
    while waiting:
        if time.monotonic() >= deadline:
            raise DeadlineError(
                "not-serving",
                "\n".join(waiting),
                "It is created as soon as a node fits: `vrha node list` shows whose agent is"
                " heard; if none is, look at the broker.",
            )
        time.sleep(POLL_SECONDS)
        waiting = _waiting(client)


def _applied(result: ApplyResult) -> str:
    runs = f"; runs: {', '.join(result.runs)}" if result.runs else ""
    return f"{_changes(result.changes)}\ndesired state is now version {result.version}{runs}"


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return "no changes"
    return "\n".join(
        clean(f"{_SIGNS[c.kind]} {c.noun} {c.name}" + (f": {', '.join(c.fields)}" * bool(c.fields)))
        for c in changes
    )
