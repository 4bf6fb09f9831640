"""A Unix socket on which the watcher says how things are: one JSON object to whoever comes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vrha.errors import NotFoundError, PreconditionError, VrhaError

SOCKET = Path("/run/vrha/watcher.sock")
"""Where it is unless settings say otherwise."""
_TIMEOUT_S = 2.0
_MOST = 1 << 22


class StatusSocket:
    """Mode 0600: who may ask is who may read the keys."""

    def __init__(self, path: Path, tell: Callable[[], Mapping[str, Any]]) -> None:
        """Raises PreconditionError `socket-in-use`, `unwritable`."""
        self._tell = tell
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and _answers(path):
                raise PreconditionError("socket-in-use", f"another watcher listens on {path}")
            path.unlink(missing_ok=True)
            old = os.umask(0o177)
            try:
                self._socket.bind(str(path))
            finally:
                os.umask(old)
            self._socket.listen(8)
        except OSError as error:
            self._socket.close()
            raise PreconditionError("unwritable", f"{path}: {error.strerror}") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def answer(self) -> None:
        """Serve who is waiting; nobody is waited for."""
        with contextlib.suppress(OSError):
            connection, _ = self._socket.accept()
            with connection:
                connection.setblocking(False)
                try:
                    said = json.dumps(self._tell())
                except VrhaError as error:
                    said = json.dumps({"error": str(error)})
                connection.send(said.encode())


def ask(path: Path) -> dict[str, Any]:
    """What the watcher behind `path` says.

    Raises NotFoundError `no-watcher`, PreconditionError `watcher-troubled` when it cannot tell.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_TIMEOUT_S)
            sock.connect(str(path))
            data = b""
            while len(data) < _MOST and (part := sock.recv(1 << 16)):
                data += part
        said = json.loads(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise NotFoundError(
            "no-watcher", f"no watcher answers on {path}: {reason}", "Does it run? Run it by sudo."
        ) from error
    if "error" in said:
        raise PreconditionError(
            "watcher-troubled",
            f"the watcher behind {path} cannot tell: {said['error']}",
            "It tries again by itself; its log says more.",
        )
    return dict(said)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        try:
            sock.connect(str(path))
        except OSError:
            return False
    return True
