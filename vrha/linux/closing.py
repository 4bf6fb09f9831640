"""Closing AF_PACKET sockets without waiting: each close is an RCU wait of 10 to 16 ms."""

from __future__ import annotations

import queue
import socket
import threading


class SlowCloser:
    """One background thread that closes sockets; `drain` waits until all are closed."""

    def __init__(self) -> None:
        self._sockets: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def close(self, sock: socket.socket) -> None:
        """Close the socket soon; it must not be used any more."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="closer", daemon=True)
                self._thread.start()
        self._sockets.put(sock)

    def drain(self) -> None:
        """Close all that was handed in, and end the thread."""
        if self._thread is not None:
            self._sockets.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (sock := self._sockets.get()) is not None:
            sock.close()
