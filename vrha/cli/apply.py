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
@click.option("--wait", is_flag=True, help="Wait until every router is served.")
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
    _await_placed(client, deadline, timeout)


def _await_placed(client: Client, deadline: float, timeout: float) -> None:
    """Routers that no node could host yet get a place as soon as one can: wait for that.

    Raises DeadlineError (`not-placed`) with the reasons, and what `follow` and `demand_done` raise.
    """
    from vrha.cli import progress

    said: set[str] = set()
    while True:
        waiting = [r for r in client.routers() if not r.instance]
        if not waiting:
            return
        for router in waiting:
            if router.run:
                left = max(0.0, deadline - time.monotonic())
                run = progress.follow(client, router.run, left, progress.progress())
                progress.demand_done([run])
        reasons = [clean(f"router {r.name} waits: {r.reason}") for r in waiting if r.reason]
        for reason in reasons:
            if reason not in said:
                click.echo(reason, err=True)
        said.update(reasons)
        if time.monotonic() >= deadline:
            raise DeadlineError(
                "not-placed",
                f"not every router is served within {timeout:g} s: {'; '.join(reasons)}",
                "`vrha node list` shows the nodes; a router is placed as soon as one fits.",
            )
        time.sleep(progress.POLL_SECONDS)


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
