"""An authenticated connection to another agent: framed messages, both ways."""

from __future__ import annotations

import select
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR

from vrha.errors import UnreachableError
from vrha.peer.frames import MAX_FRAME, Frames, pack
from vrha.peer.sockets import LOST_S, reason

__all__ = ["PeerLink"]

_CHUNK = 64 << 10
_RECORD = 16 << 10
"""Largest plaintext of a TLS record (RFC 8446 section 5.1)."""


class PeerLink:
    """`peer` is the address of the other agent.

    Any thread may send; one thread receives. What was sent last before `close` may be lost: a
    message that matters is one that the peer answers.
    """

    def __init__(self, sock: ssl.SSLSocket, peer: str, frames: Frames) -> None:
        """Take over a socket after the greeting, with what has been read from it."""
        sock.setblocking(False)
        frames.limit = MAX_FRAME
        self.peer = peer
        self._socket = sock
        self._frames = frames
        self._sending = threading.Lock()
        # One TLS session is not for two threads at once, not even for reading beside writing.
        self._tls = threading.Lock()
        self._waiting = 0
        self._closed = False

    def fileno(self) -> int:
        """For polling; ask `pending` first. -1 after `close`."""
        return self._socket.fileno()

    def pending(self) -> bool:
        """Whether `receive` has something without the socket being readable."""
        if self._frames.ready:
            return True
        with self._tls:
            return self._closed or self._socket.pending() > 0

    def send(self, kind: int, body: bytes = b"") -> None:
        """Send one frame; waits while the peer is slow in reading.

        Raises UnreachableError (`peer-lost`; also when the peer takes nothing for LOST_S),
        InputError (`peer-frame`).
        """
        rest = memoryview(pack(kind, body))
        with self._sending:
            while rest:
                sent, wanted = self._write(rest[:_CHUNK])
                if wanted and not self._wait(wanted, LOST_S):
                    # A part of the frame is out: nothing can follow it.
                    self.close()
                    raise self._lost(f"it has taken nothing for {LOST_S} s")
                rest = rest[sent:]

    def receive(self, timeout_s: float) -> tuple[int, bytes] | None:
        """The next frame as (kind, body); None when none is complete after `timeout_s`.

        Raises UnreachableError (`peer-lost`) at the end of the stream, however it ended.
        """
        deadline = time.monotonic() + timeout_s
        while (frame := self._take()) is None:
            wanted = self._fill()
            if wanted and not self._wait(wanted, deadline - time.monotonic()):
                return None
        return frame

    def close(self) -> None:
        """Drop the connection; wakes a thread that waits in `send` or `receive`."""
        with self._tls:
            if self._closed:
                return
            self._closed = True
            with suppress(OSError):
                self._socket.shutdown(SHUT_RDWR)
            # Who waits would find the number of its descriptor given to another file.
            if not self._waiting:
                self._socket.close()

    def _take(self) -> tuple[int, bytes] | None:
        try:
            return self._frames.take()
        except ValueError as error:
            self.close()
            raise self._lost(str(error)) from error

    def _fill(self) -> int:
        """Read once; 0, or the poll event to wait for."""
        try:
            with self._open() as sock:
                data = sock.recv(_RECORD)
        except ssl.SSLWantReadError:
            return select.POLLIN
        except ssl.SSLWantWriteError:
            return select.POLLOUT
        except OSError as error:
            self.close()
            raise self._lost(reason(error)) from error
        if not data:
            self.close()
            raise self._lost("it closed the connection")
        self._frames.feed(data)
        return 0

    def _write(self, data: memoryview) -> tuple[int, int]:
        """Write once; the bytes taken, and 0 or the poll event to wait for."""
        try:
            with self._open() as sock:
                return sock.send(data), 0
        except ssl.SSLWantReadError:
            return 0, select.POLLIN
        except ssl.SSLWantWriteError:
            return 0, select.POLLOUT
        except OSError as error:
            self.close()
            raise self._lost(reason(error)) from error

    def _wait(self, events: int, timeout_s: float) -> bool:
        """Whether the socket is ready; without the lock, so that the other direction goes on."""
        if timeout_s <= 0:
            return False
        poll = select.poll()
        with self._open() as sock:
            poll.register(sock.fileno(), events)
            self._waiting += 1
        try:
            return bool(poll.poll(timeout_s * 1000))
        finally:
            with self._tls:
                self._waiting -= 1
                if self._closed and not self._waiting:
                    self._socket.close()

    @contextmanager
    def _open(self) -> Iterator[ssl.SSLSocket]:
        """The socket for one call that does not block."""
        with self._tls:
            if self._closed:
                raise self._lost("it was closed here")
            yield self._socket

    def _lost(self, why: str) -> UnreachableError:
        return UnreachableError(
            "peer-lost",
            f"the connection to agent {self.peer} is lost: {why}",
            "See whether that agent runs and whether the path between the nodes is clean.",
        )
