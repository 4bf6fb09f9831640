"""`vrha node`: machines that host instances."""

from __future__ import annotations

import click

from vrha.cli.output import output_options, show, table
from vrha.cli.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def node() -> None:
    """Nodes: the machines that host router instances."""


@node.command("list")
@output_options
@click.pass_obj
def list_nodes(settings: Settings) -> None:
    """List all nodes, what they host, and when their agents were last heard."""
    client = settings.client()
    nodes = client.nodes()
    show(
        settings,
        nodes,
        lambda: table(
            ("NAME", "ZONE", "INSTANCES", "CAPACITY", "HEARD", "VERSION"),
            (
                (n.name, n.zone, len(n.instances), n.capacity, _ago(n.heard_seconds_ago), n.version)
                for n in nodes
            ),
        ),
    )


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s ago"
