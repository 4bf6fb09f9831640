"""`vrha orchestrator`: the daemon that decides, with its API."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vrha.cli.daemon import log_to_stderr, stop_on_signals
from vrha.cli.output import output_options, show, table

if TYPE_CHECKING:
    from vrha.cli.settings import Settings
    from vrha.config.settings import OrchestratorSettings

log = logging.getLogger(__name__)

URL_FILE = "broker.url"
"""Where agents of this machine find a private broker (`bus.url_file`)."""


@click.group()
def orchestrator() -> None:
    """The orchestrator."""


@orchestrator.command("run")
@click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/etc/vrha/orchestrator.toml"),
    show_default=True,
    help="Settings file.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def run(config: Path, verbose: bool) -> None:
    """Decide and journal until SIGTERM; open runs are taken up again at the next start.

    Of several on one PostgreSQL one decides; the others stand by and take over when it dies.
    Without a configured broker a private RabbitMQ node is started in the state folder.
    """
    from vrha.api.app import create_app
    from vrha.api.server import listen, serve
    from vrha.config.lock import sole_user
    from vrha.config.settings import load_orchestrator
    from vrha.linux.notify import Init
    from vrha.orchestrator.app import Orchestrator

    log_to_stderr(verbose)
    stop = stop_on_signals()
    init = Init()
    settings = load_orchestrator(config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(sole_user(settings.state_dir, "orchestrator"))
        # Before the broker, which takes seconds to start: a socket in use is told at once.
        listener = listen(settings.api.socket)
        stack.callback(listener.close)
        daemon = Orchestrator(settings, stack.enter_context(_broker(settings)), init)
        api = threading.Thread(
            target=serve,
            args=(create_app(daemon.service), settings.api.socket, stop, listener),
            name="api",
            daemon=True,
        )
        api.start()
        try:
            daemon.run(stop)
        finally:
            init.stopping()
            stop.set()
            api.join(timeout=5)


@orchestrator.command("status")
@output_options
@click.pass_obj
def status(settings: Settings) -> None:
    """Show who leads, and whether store and broker can be reached."""
    health = settings.client().health()
    does = "leads" if health.leads else "stands by"
    row = (health.leader, health.leader_epoch, does, health.broker, health.nodes_heard)
    head = ("LEADER", "EPOCH", "THIS ONE", "BROKER", "NODES HEARD", "OPEN RUNS", "VERSION")
    show(settings, health, lambda: table(head, ((*row, health.open_runs, health.version),)))


@contextlib.contextmanager
def _broker(settings: OrchestratorSettings) -> Iterator[tuple[str, ...]]:
    """The URLs of the configured broker, or those of a private one for this machine."""
    if not settings.bus.private:
        yield settings.bus.broker_urls()
        return
    from vrha.bus.broker import PrivateBroker

    broker = PrivateBroker(settings.state_dir / "broker", progress=log.info)
    try:
        broker.resume()
        url_file = settings.state_dir / URL_FILE
        _write_secret(url_file, broker.url + "\n")
        try:
            yield (broker.url,)
        finally:
            url_file.unlink(missing_ok=True)
    finally:
        broker.stop()


def _write_secret(path: Path, text: str) -> None:
    """Readers see all of it or nothing."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)
