"""`vrha agent`: the daemon of a node."""

from __future__ import annotations

from pathlib import Path

import click

from vrha.cli.daemon import await_file, log_to_stderr, stop_on_signals


@click.group()
def agent() -> None:
    """The agent of this node."""


@agent.command("run")
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/vrha/agent.toml"),
    show_default=True,
    help="Settings file.",
)
@click.option(
    "--stand-in",
    is_flag=True,
    help="Only give routers away, until the agent itself is back or nothing is left to do.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def run(config: Path, stand_in: bool, verbose: bool) -> None:
    """Carry out commands on this node until SIGTERM.

    The routers of this node forward on when the agent stops; the next agent adopts them. It
    waits for a `bus.url_file` that is not there yet: a private broker writes it when it is ready.
    """
    from vrha.agent.app import Agent
    from vrha.config.settings import load_agent
    from vrha.linux.notify import Init

    log_to_stderr(verbose)
    stop = stop_on_signals()
    init = Init()
    settings = load_agent(config)
    if await_file(settings.bus.url_file, stop, init):
        Agent(settings, stand_in, init).run(stop)
