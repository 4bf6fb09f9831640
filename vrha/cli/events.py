"""`vrha events`: what happened and why."""

from __future__ import annotations

import time
from functools import partial

import click

from vrha.cli.output import clean, output_options, show, table
from vrha.cli.settings import Settings
from vrha.model.views import Event

FOLLOW_SECONDS = 0.5
_HEADER = ("ID", "AT", "KIND", "ROUTER", "NODE", "RUN", "REASON", "DETAIL")


@click.command()
@click.option("--after", type=click.IntRange(0), default=0, help="Only events after this id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until Ctrl-C.")
@output_options
@click.pass_obj
def events(settings: Settings, after: int, limit: int, follow: bool) -> None:
    """Show what happened and why, oldest first."""
    client = settings.client()
    page = client.events(after, limit)
    if not follow:
        show(settings, page, lambda: table(_HEADER, map(_row, page)))
        return
    while True:
        for event in page:
            show(settings, event, partial(_line, event))
            after = max(after, event.id)
        time.sleep(FOLLOW_SECONDS)
        page = client.events(after, limit)


def _line(event: Event) -> str:
    return "  ".join(clean(cell) or "-" for cell in _row(event))


def _row(event: Event) -> tuple[object, ...]:
    return (
        event.id,
        event.at,
        event.kind,
        event.router,
        event.node,
        event.run,
        event.reason,
        event.detail,
    )
