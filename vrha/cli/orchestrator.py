"""`vrha orchestrator`: the daemon that decides, with its API."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vrha.cli.daemon import log_to_stderr, stop_on_signals
from vrha.errors import PreconditionError, RefusedError

if TYPE_CHECKING:
    from vrha.config.settings import OrchestratorSettings

log = logging.getLogger(__name__)

URL_FILE = "broker.url"
"""Where agents of this machine find a private broker (`bus.url_file`)."""
LOCK_FILE = "orchestrator.lock"


@click.group()
def orchestrator() -> None:
    """The orchestrator."""


@orchestrator.command("run")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/vrha/orchestrator.toml"),
    show_default=True,
    help="Settings file.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def run(config: Path, verbose: bool) -> None:
    """Decide and journal until SIGTERM; open runs are taken up again at the next start.

    Without a configured broker a private RabbitMQ node is started in the state folder.
    """
    from vrha.api.app import create_app
    from vrha.api.server import listen, serve
    from vrha.config.settings import load_orchestrator
    from vrha.orchestrator.app import Orchestrator

    log_to_stderr(verbose)
    stop = stop_on_signals()
    settings = load_orchestrator(config)
    with _only_one(settings.state_dir), _broker(settings) as urls:
        daemon = Orchestrator(settings, urls)
        listener = listen(settings.api.socket)
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
            stop.set()
            api.join(timeout=5)


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


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Two orchestrators on one store would both decide. The kernel frees the lock of a dead one.

    Raises RefusedError `orchestrator-running`, PreconditionError `state-dir`.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (state_dir / LOCK_FILE).open("w")
    except OSError as error:
        raise PreconditionError(
            "state-dir",
            f"{error.filename}: {error.strerror}",
            "The folder `state_dir` of the settings must exist and be writable.",
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                "orchestrator-running",
                f"another orchestrator works on {state_dir}",
                "Stop it first, or give this one a `state_dir` of its own.",
            ) from error
        yield
