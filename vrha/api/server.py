"""The API on a Unix socket: who may open the socket file may use the API."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from vrha.errors import PreconditionError

_BACKLOG = 64
_PROBE_SECONDS = 1.0
_GRACE_SECONDS = 2
_SUN_PATH_MAX = 107
"""Longest path of a Unix socket in bytes (unix(7): 108 with the final zero)."""


def serve(
    app: FastAPI,
    socket_path: Path,
    stop: threading.Event,
    listener: Listener | None = None,
) -> None:
    """Serve `app` on `socket_path` until `stop` is set; returns within about two seconds then.

    Runs in any thread and leaves the daemon's signal handlers alone. `listener` is what
    `listen` returned, for a caller that wants its errors before it starts a thread; clients
    are queued from then on. The socket file is removed at the end. Raises what `listen` raises.
    """
    listener = listener or listen(socket_path)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    try:
        _Server(config, stop).run(sockets=[listener.sock])
    finally:
        listener.close()


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, and the file by which clients find it."""

    sock: socket.socket
    path: Path
    inode: int

    def close(self) -> None:
        """Close the socket and remove its file, but never the one of a successor."""
        self.sock.close()
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


def listen(socket_path: Path) -> Listener:
    """A listening socket at `socket_path`, mode 0660; replaces the socket of a dead process.

    Raises PreconditionError: `socket-in-use` (a process answers there), `socket-path-taken`
    (something else has the name), `socket-unusable` (no folder, no right, path too long).
    """
    if len(os.fsencode(socket_path)) > _SUN_PATH_MAX:
        raise PreconditionError(
            "socket-unusable",
            f"{socket_path}: longer than the {_SUN_PATH_MAX} bytes that a socket may have",
            "Choose a shorter path for the socket.",
        )
    _clear(socket_path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(os.fspath(socket_path))
        # Nobody can connect before listen(), so there is no moment with a wider mode.
        socket_path.chmod(0o660)
        sock.listen(_BACKLOG)
        return Listener(sock, socket_path, socket_path.lstat().st_ino)
    except OSError as error:
        sock.close()
        raise PreconditionError(
            "socket-unusable",
            f"{socket_path}: {error.strerror}",
            "The folder must exist, and this user must be allowed to write to it.",
        ) from error


def _clear(socket_path: Path) -> None:
    """Remove what a dead process left; refuse everything else that has the name."""
    try:
        mode = socket_path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise PreconditionError(
            "socket-path-taken",
            f"{socket_path} exists and is not a socket",
            "Remove it, or choose another path for the socket.",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(os.fspath(socket_path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                socket_path.unlink()
            return
        except OSError:
            # Full backlog or no right to ask: somebody lives there.
            pass
    raise PreconditionError(
        "socket-in-use",
        f"another process serves {socket_path}",
        "Stop it first, or choose another path for the socket.",
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: threading.Event) -> None:
        super().__init__(config)
        self._stop = stop

    async def on_tick(self, counter: int) -> bool:
        # First the parent, which keeps the default headers fresh.
        return await super().on_tick(counter) or self._stop.is_set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the daemon."""
        yield
