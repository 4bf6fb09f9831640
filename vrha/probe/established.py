"""Long TCP connections: whether they live, and the longest time in which nothing came."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from vrha.core.gaps import NS_PER_MS
from vrha.errors import UnreachableError
from vrha.model.probing import ConnectionsResult, Stream
from vrha.probe.channels import SO_TIMESTAMPNS, Arrivals, Channel, Inbox, no_route
from vrha.probe.kernel import NS_PER_S, Namespace
from vrha.probe.wire import MESSAGE

OPEN_LIMIT_S = 3.0
"""For all connections of a stream; a lost SYN is sent again after 1 s (RFC 6298 section 2)."""

SILENCE_LIMIT_NS = NS_PER_S
"""A connection from which nothing came for that long before the end is not alive."""

READ_BYTES = 64 * 1024
ENDED = "closed by the far end"


class Connection:
    """One established connection; times in ns of CLOCK_MONOTONIC."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.error = ""
        self.bytes_in = 0
        self.last = 0
        self.longest = 0

    def heard(self, size: int, at: int) -> None:
        # What came before the first tick is no part of the run.
        self.bytes_in += size
        if at > self.last:
            self.longest = max(self.longest, at - self.last)
            self.last = at

    def send(self) -> None:
        """Send a message; what does not fit into the buffer of a stalled connection is left out."""
        if self.error:
            return
        try:
            self.sock.send(MESSAGE)
        except BlockingIOError:
            return
        except OSError as error:
            self.end(_name(error))

    def end(self, why: str) -> None:
        self.error = self.error or why

    def is_alive(self, end: int) -> bool:
        return not self.error and self.bytes_in > 0 and end - self.last <= SILENCE_LIMIT_NS

    def stall_until(self, end: int) -> int:
        return max(self.longest, end - self.last)


class EstablishedChannel(Channel):
    """`stream.count` connections of one stream, all of which stand when this returns.

    Raises UnreachableError (`not-connected`, `no-route`).
    """

    def __init__(self, stream: Stream, namespace: Namespace, inbox: Inbox) -> None:
        super().__init__(stream, namespace)
        self._inbox = inbox
        self.connections: list[Connection] = []
        self._by_fd: dict[int, Connection] = {}
        try:
            with namespace:
                for _ in range(stream.count):
                    self.connections.append(Connection(self._dial()))
            self._await_established()
        except BaseException:
            self._close_all()
            raise
        for connection in self.connections:
            self._by_fd[connection.sock.fileno()] = connection
            inbox.add(connection.sock.fileno(), self._read)

    def _dial(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            # Closed by a reset: no TIME_WAIT here, no long-lived entry of the flow on the path.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
            code = sock.connect_ex(self.address)
            if code not in (0, errno.EINPROGRESS):
                raise self._not_connected(OSError(code, os.strerror(code)))
        except BaseException:
            sock.close()
            raise
        return sock

    def _await_established(self) -> None:
        deadline = time.monotonic() + OPEN_LIMIT_S
        waiting = {one.sock.fileno(): one.sock for one in self.connections}
        poller = select.poll()
        for fd in waiting:
            poller.register(fd, select.POLLOUT)
        while waiting:
            left_ms = (deadline - time.monotonic()) * 1000
            ready = poller.poll(left_ms) if left_ms > 0 else []
            if not ready:
                raise self._not_connected(TimeoutError(0, f"no answer in {OPEN_LIMIT_S:g} s"))
            for fd, _ in ready:
                poller.unregister(fd)
                code = waiting.pop(fd).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise self._not_connected(OSError(code, os.strerror(code)))

    def _not_connected(self, error: OSError) -> UnreachableError:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return no_route(self.stream, self.address[0], error)
        return UnreachableError(
            "not-connected",
            f"stream {self.stream.name!r}: no connection to {self.address[0]} port "
            f"{self.stream.port}: {error.strerror}",
            "Start `ping-gap serve` there (it echoes on PORT + 1, pushes on PORT + 2) and check "
            "firewalls.",
        )

    @property
    def has_answered(self) -> bool:
        return all(one.bytes_in for one in self.connections)

    def begin(self, t0: int) -> None:
        """The run begins: stalls count from here."""
        for one in self.connections:
            one.last = t0

    def _read(self, fd: int, arrivals: Arrivals) -> None:
        connection = self._by_fd[fd]
        try:
            data, control, _, _ = connection.sock.recvmsg(READ_BYTES, 64)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(fd, _name(error))
            return
        if data:
            connection.heard(len(data), arrivals.of_message(control, time.monotonic_ns()))
        else:
            self._ended(fd, ENDED)

    def _ended(self, fd: int, why: str) -> None:
        connection = self._by_fd.pop(fd)
        connection.end(why)
        self._inbox.drop(fd)
        connection.sock.close()

    def result(self, end: int) -> ConnectionsResult:
        """What came out by `end`, the time at which sending stopped."""
        for one in self.connections:
            if one.error:
                self.errors[one.error] += 1
        stalls = [one.stall_until(end) for one in self.connections if one.is_alive(end)]
        return ConnectionsResult(
            stream=self.stream,
            address=self.address[0],
            total=len(self.connections),
            alive=len(stalls),
            longest_stall_ms=max(stalls) / NS_PER_MS if stalls else None,
            messages=sum(one.bytes_in for one in self.connections) // len(MESSAGE),
            errors=tuple(sorted(self.errors.items())),
        )

    def _close_all(self) -> None:
        for one in self.connections:
            one.sock.close()

    def close(self) -> None:
        for fd in self._by_fd:
            self._inbox.drop(fd)
        self._by_fd = {}
        self._close_all()
        super().close()


class Pacer:
    """Sends on many connections in turn, each once per interval, spread evenly over it.

    All at once they would keep the prober from its other streams. A turn that comes late is taken
    late and not left out: what is measured is when something comes back. Turns are rounded to
    multiples of `tick_ms`, at which `probe` is to be called, so that a connection has its turn
    always at the same place of the interval.
    """

    def __init__(
        self, interval_ms: float, tick_ms: float, channels: Sequence[EstablishedChannel]
    ) -> None:
        self._connections = [one for channel in channels for one in channel.connections]
        self._interval_ns = round(interval_ms * NS_PER_MS)
        self._tick_ns = round(tick_ms * NS_PER_MS)
        self._t0 = 0
        self._turns = 0

    def begin(self, t0: int) -> None:
        self._t0 = t0

    def probe(self) -> None:
        """Send on every connection whose turn has come; on none more than once."""
        elapsed = time.monotonic_ns() - self._t0
        count = len(self._connections)
        due = (elapsed - elapsed % self._tick_ns) * count // self._interval_ns + 1
        for turn in range(max(self._turns, due - count), due):
            self._connections[turn % count].send()
        self._turns = max(self._turns, due)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown")
