"""`vrha watcher`: the watcher of a node, what it says, and the keys it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vrha.cli.output import output_options, show
from vrha.cli.settings import Settings
from vrha.fencing import keys as fencing_keys
from vrha.watcher.status import SOCKET, ask


@click.group()
def watcher() -> None:
    """Who holds the lease of this node, and may have routers active."""


@watcher.command("run")
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/vrha/watcher.toml"),
    show_default=True,
    help="Settings file.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def run(config: Path, verbose: bool) -> None:
    """Hold the lease until SIGTERM, then mute. `vrha-watcher` is the same with a faster start."""
    from vrha.watcher.main import run as watch

    watch(config, verbose)


@watcher.command("status")
@output_options
@click.option(
    "--at",
    type=click.Path(path_type=Path),
    default=SOCKET,
    show_default=True,
    help="Socket of the watcher.",
)
@click.pass_obj
def status(settings: Settings, at: Path) -> None:
    """Show lease, slice, routers with their epochs, and how the voters answer."""
    found = ask(at)
    show(settings, found, lambda: "\n".join(_lines(found)))


@watcher.command("keys")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Gets a folder for each participant.",
)
@click.option("--nodes", required=True, help="All nodes, separated by commas.")
@click.option("--voters", required=True, help="Those who vote, nodes or leaders.")
@click.option("--leaders", required=True, help="The orchestrators.")
def keys(folder: Path, nodes: str, voters: str, leaders: str) -> None:
    """Make the keys by which nodes, voters and orchestrators know each other.

    Keys that are there already stay. Copy DIR/NAME to the folder `keys` of the machine NAME.
    """
    names = [[name for name in text.split(",") if name] for text in (nodes, voters, leaders)]
    made = list(fencing_keys.make(folder, fencing_keys.pairs(*names)))
    click.echo(f"{len(made)} keys for {len({*names[0], *names[1], *names[2]})} in {folder}")


def _lines(found: Mapping[str, Any]) -> list[str]:
    if "lease_ms" not in found:
        return [*_alone_lines(found), *_cleanup_lines(found["cleanup"])]
    lease = "none: muted" if found["lease_ms"] is None else f"{found['lease_ms']:.0f} ms left"
    voters = ", ".join(
        f"{name} {found['seq'] - seq} behind" if seq else f"{name} silent"
        for name, seq in found["acknowledged"].items()
    )
    lines = [
        f"node {found['node']}, incarnation {found['incarnation']}, profile {found['profile']}",
        f"lease {lease}; slice {found['live_ms']} ms left",
        f"voters (version {found['electorate']}): {voters}",
        f"leader epoch {found['leader_epoch']}",
    ]
    lines += [f"router {name} since epoch {epoch}" for name, epoch in found["routers"].items()]
    lines += [f"port {name} may speak" for name in found["ports"]]
    return [*lines, *_agent_lines(found), *_cleanup_lines(found["cleanup"])]


def _alone_lines(found: Mapping[str, Any]) -> list[str]:
    """Of a watcher beside the agent of another."""
    lines = [f"profile {found['profile']}: no lease, no voters"]
    for name, agent in found["agents"].items():
        missing = agent["missing_ms"]
        how = "stopped" if agent["stopped"] else "gone"
        state = f"pid {agent['pid']}" if missing is None else f"{how} for {missing / 1000:.1f} s"
        lines.append(f"agent {name}: {state}; it ended {agent['deaths']} times")
    return lines


_WAITS_FOR = {
    "stopped-by-hand": "the agent was stopped on purpose, so what it left stays; to remove it:"
    " vrha cleanup run --force",
    "agent-hung": "the agent is stuck: it must go on, or end",
    "stand-in": "the stand-in gives its routers away",
    "grace": "the agent, or the lease, may come back",
    "lease-live": "the lease lasts: what it left serves on",
    "orphaned": "what it left is swept",
}


def _agent_lines(found: Mapping[str, Any]) -> list[str]:
    """Of an agent that is not there."""
    missing = found["situation"]["missing_ms"]
    return [f"agent: none for {missing / 1000:.1f} s"] if missing else []


def _cleanup_lines(cleanup: Mapping[str, Any]) -> list[str]:
    """What is done about what an agent left, and how the last sweep went."""
    lines = []
    waits_for = _WAITS_FOR.get(cleanup["reason"])
    if waits_for:
        off = "" if cleanup["on"] else " (switched off: nothing is ever swept)"
        again = f", {cleanup['again_ms'] / 1000:.1f} s more" if cleanup["again_ms"] else ""
        lines.append(f"cleanup: {waits_for}{again}{off}")
    if cleanup["pid"] is not None:
        lines.append(f"sweep: runs, pid {cleanup['pid']}")
    last = cleanup["last"]
    if last is not None:
        left = f"something is left (code {last['code']})" if last["code"] else "nothing is left"
        lines.append(f"last sweep: {last['ms_ago'] / 1000:.0f} s ago, {left}")
    return lines
