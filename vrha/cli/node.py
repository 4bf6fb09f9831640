"""`vrha node`: machines that host instances."""

from __future__ import annotations

import click

from vrha.cli.output import clean, output_options, show, table
from vrha.cli.restarting import rollout_options, start_rollout, waiting_options
from vrha.cli.settings import Settings
from vrha.cli.why import show_why
from vrha.model.rollouts import RolloutKind, RolloutRequest
from vrha.model.views import NodeView


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
            ("NAME", "ZONE", "INSTANCES", "CAPACITY", "HEARD", "VERSION", "STATE"),
            map(_row, nodes),
        ),
    )


@node.command()
@click.argument("name", metavar="NODE")
@rollout_options
@waiting_options
@output_options
@click.pass_obj
def drain(
    settings: Settings,
    name: str,
    max_parallel: int | None,
    stop_on_lost: int | None,
    keep_going: bool,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
) -> None:
    """Move all routers away from a node, and place none there until it is undrained.

    The first router goes alone, then several at a time.
    """
    request = RolloutRequest(
        RolloutKind.DRAIN, "", name, max_parallel or 4, stop_on_lost, keep_going
    )
    start_rollout(settings, request, dry_run, wait, timeout)


@node.command()
@click.argument("name", metavar="NODE")
@output_options
@click.pass_obj
def undrain(settings: Settings, name: str) -> None:
    """Let a node take instances again; nothing moves back by itself."""
    client = settings.client()
    found = client.undrain(name)
    show(settings, found, lambda: clean(f"node {found.name} takes instances again"))


@node.command()
@click.argument("name", metavar="NODE")
@output_options
@click.pass_obj
def why(settings: Settings, name: str) -> None:
    """Say what is the matter with a node, by which signals, and what is done about it."""
    show_why(settings, "node", name, settings.client().why_node)


def _row(found: NodeView) -> tuple[object, ...]:
    load = (len(found.instances), found.capacity)
    heard = _ago(found.heard_seconds_ago)
    state = "draining" if found.draining else ""
    return (found.name, found.zone, *load, heard, found.version, state)


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.1f} s ago"
