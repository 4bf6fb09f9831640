"""A word between two processes of a node: look again at what is granted.

An abstract Unix socket (unix(7)) belongs to the network namespace, as the table does that it is
about. Nothing rests on it: what is missed is found a moment later.
"""

from __future__ import annotations

import contextlib
import select
import socket

from vrha.errors import PreconditionError

_ADDRESS = "\0vrha-granted"


class Hint:
    """Of whoever changes what is granted."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        self._socket.close()

    def give(self) -> None:
        """Never waits."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"", _ADDRESS)


class Hinted:
    """Of whoever wants to know. One for each network namespace."""

    def __init__(self) -> None:
        """Raises PreconditionError `already-listening`."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(_ADDRESS)
        except OSError as error:
            self._socket.close()
            raise PreconditionError(
                "already-listening", "another agent listens for what is granted on this node"
            ) from error

    def close(self) -> None:
        self._socket.close()

    def wait(self, seconds: float) -> None:
        """Until a word comes, at most that long."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll(seconds * 1000)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
