"""The real API over a real Unix socket, for tests of the API and of the CLI."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vrha.api.app import create_app
from vrha.api.server import listen, serve
from vrha.ports import Service


@contextmanager
def serving(service: Service, path: Path) -> Iterator[Path]:
    """Serve `service` at `path` while the block runs."""
    stop = threading.Event()
    listener = listen(path)
    thread = threading.Thread(target=serve, args=(create_app(service), path, stop, listener))
    thread.start()
    try:
        yield path
    finally:
        stop.set()
        thread.join(timeout=10)
        assert not thread.is_alive()
