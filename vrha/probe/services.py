"""What a responder does besides echoing at once: late echoes, and long TCP connections."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from vrha.core.gaps import NS_PER_MS
from vrha.probe.kernel import Timer
from vrha.probe.record import Recorder
from vrha.probe.wire import ANSWER, MESSAGE, PAYLOAD, QUESTION, QUESTION_BYTES, REQUEST

Handler = Callable[[int], None]
"""Called with the file descriptor that has something to read."""

SILENT_S = 60
"""A connection whose far end has said nothing for that long is given up by the kernel."""

READ_BYTES = 64 * 1024
IP_PKTINFO = 8
IPV6_PKTINFO = 50
_PKTINFO = {(socket.IPPROTO_IP, IP_PKTINFO): 0, (socket.IPPROTO_IPV6, IPV6_PKTINFO): 16}
"""Where the interface index stands in struct in_pktinfo and struct in6_pktinfo."""


class Reactor:
    """File descriptors and who takes care of them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, fd: int, handler: Handler) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def drop(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def turn(self, timeout_s: float) -> None:
        """Call the handlers of all that is ready; wait for that up to `timeout_s`."""
        for fd, _ in self._epoll.poll(timeout_s):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(fd)

    def close(self) -> None:
        self._epoll.close()


class LateEcho:
    """UDP echo of our requests that leaves `delay_ms` after they came.

    Meanwhile the flow is half-way: the router has seen its request and not yet its answer.
    """

    def __init__(self, reactor: Reactor, delay_ms: float, recorder: Recorder) -> None:
        self._recorder = recorder
        self._delay_ns = round(delay_ms * NS_PER_MS)
        self._timer = Timer()
        self._waiting: deque[tuple[int, Callable[[], object], bytes]] = deque()
        self._sockets: dict[int, socket.socket] = {}
        self._reactor = reactor
        reactor.add(self._timer.fd, self._answer_due)

    def serve(self, sock: socket.socket) -> None:
        """Echo what comes to a bound socket that reports PKTINFO; it is not closed here."""
        self._sockets[sock.fileno()] = sock
        self._reactor.add(sock.fileno(), self._take)

    def _take(self, fd: int) -> None:
        sock = self._sockets[fd]
        # ICMP errors for earlier answers come back here; they concern a prober that has gone.
        with suppress(OSError):
            while True:
                body, control, _, peer = sock.recvmsg(QUESTION_BYTES + 1, 64)
                if len(body) == PAYLOAD.size and body.startswith(REQUEST):
                    _, cookie, seq = PAYLOAD.unpack(body)
                    self._recorder.came(cookie, seq)
                    self._later(sock, ANSWER + body[len(REQUEST) :], control, peer)
                elif len(body) == QUESTION_BYTES and body.startswith(QUESTION):
                    _, cookie, seq = PAYLOAD.unpack_from(body)
                    report = self._recorder.report(cookie, seq).pack(cookie)
                    self._later(sock, report, control, peer)

    def _later(
        self, sock: socket.socket, body: bytes, control: list[tuple[int, int, bytes]], peer: Any
    ) -> None:
        due = time.monotonic_ns() + self._delay_ns
        same_source = [
            (level, kind, _any_interface(level, kind, info)) for level, kind, info in control
        ]
        cookie = PAYLOAD.unpack_from(body)[1]
        self._waiting.append((due, lambda: sock.sendmsg([body], same_source, 0, peer), cookie))
        if len(self._waiting) == 1:
            self._timer.start(due, 0)

    def _answer_due(self, _: int) -> None:
        self._timer.expirations()
        while self._waiting and self._waiting[0][0] <= time.monotonic_ns():
            _, send, cookie = self._waiting.popleft()
            try:
                send()
            except OSError:
                self._recorder.refused(cookie)
        if self._waiting:
            self._timer.start(self._waiting[0][0], 0)

    def close(self) -> None:
        self._timer.close()


def _any_interface(level: int, kind: int, info: bytes) -> bytes:
    """PKTINFO without the interface: the source address is to be kept, the way back is the
    routing table's business."""
    at = _PKTINFO.get((level, kind))
    return info if at is None else info[:at] + bytes(4) + info[at + 4 :]


class Connections:
    """Accepts up to `limit` long TCP connections and closes those that are too many.

    `push_ms` None echoes on them, else it sends at that interval.
    """

    def __init__(self, reactor: Reactor, push_ms: float | None, limit: int) -> None:
        self._reactor = reactor
        self._limit = limit
        self._open: dict[int, socket.socket] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._echo = push_ms is None
        self._timer = Timer()
        self._interval_ns = round((push_ms or 0.0) * NS_PER_MS)
        reactor.add(self._timer.fd, self._push)

    def serve(self, listener: socket.socket) -> None:
        """Accept at a listening socket; it is not closed here."""
        self._listeners[listener.fileno()] = listener
        self._reactor.add(listener.fileno(), self._accept)

    def _accept(self, fd: int) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listeners[fd].accept()
                if len(self._open) >= self._limit:
                    sock.close()
                    continue
                _prepare(sock)
                if not self._open and not self._echo:
                    self._timer.start(time.monotonic_ns() + self._interval_ns, self._interval_ns)
                self._open[sock.fileno()] = sock
                self._reactor.add(sock.fileno(), self._take)

    def _take(self, fd: int) -> None:
        sock = self._open[fd]
        try:
            data = sock.recv(READ_BYTES)
            if data and self._echo:
                # What the peer does not read is dropped: it measures itself, not this end.
                sock.send(data)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(fd)

    def _push(self, _: int) -> None:
        self._timer.expirations()
        for fd, sock in list(self._open.items()):
            try:
                sock.send(MESSAGE)
            except BlockingIOError:
                continue
            except OSError:
                self._end(fd)

    def _end(self, fd: int) -> None:
        self._reactor.drop(fd)
        self._open.pop(fd).close()
        if not self._open:
            self._timer.stop()

    def close(self) -> None:
        for sock in self._open.values():
            sock.close()
        self._open = {}
        self._timer.close()


def _prepare(sock: socket.socket) -> None:
    """No delay by Nagle's algorithm, a reset at the end, and given up when the peer is gone."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
