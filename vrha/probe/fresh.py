"""UDP probes that each come from a source port of their own."""

from __future__ import annotations

import errno
import secrets
import socket
import time
from collections import deque

from vrha.core.gaps import NS_PER_MS, UNANSWERED
from vrha.model.probing import Stream
from vrha.probe.channels import SO_TIMESTAMPNS, Arrivals, Inbox, ProbeChannel, no_route
from vrha.probe.kernel import Namespace
from vrha.probe.wire import ANSWER, PAYLOAD, REQUEST, UdpProbe

FIRST_PORT, PORTS = 10_240, 55_296
"""At 1 ms they last longer than the 30 s for which connection tracking remembers a flow of one
request and one answer (net/netfilter/nf_conntrack_proto_udp.c)."""

AHEAD = 8
"""Sockets opened at once: changing the namespace costs more than opening one."""


class FreshChannel(ProbeChannel):
    """UDP echo, a new flow per probe: its socket is closed by the reply, or at its timeout."""

    def __init__(self, stream: Stream, namespace: Namespace, inbox: Inbox) -> None:
        super().__init__(stream, namespace)
        self._inbox = inbox
        self._cookie = secrets.token_bytes(8)
        self._limit_ns = round(stream.timeout_ms * NS_PER_MS)
        self._pack = UdpProbe(self._cookie).pack
        # By the clock, so that runs that follow each other do not meet the flows of the last one.
        self._next_port = time.monotonic_ns() // NS_PER_MS
        self._ahead: deque[socket.socket] = deque()
        self._pending: dict[int, tuple[int, socket.socket]] = {}
        try:
            self._open_ahead()
        except OSError as error:
            raise no_route(stream, self.address[0], error) from error

    @property
    def cookie(self) -> bytes:
        return self._cookie

    def _open_ahead(self) -> None:
        with self.namespace:
            while len(self._ahead) < AHEAD:
                self._ahead.append(self._open())

    def _open(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._bind(sock)
            sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    def _bind(self, sock: socket.socket) -> None:
        """Bind to the next port that is free. Raises OSError when there is none."""
        for tries_left in reversed(range(PORTS)):
            self._next_port += 1
            try:
                return sock.bind(("", FIRST_PORT + self._next_port % PORTS))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not tries_left:
                    raise

    def probe(self) -> None:
        seq = len(self.sent)
        now = time.monotonic_ns()
        self._expire(now)
        self.sent.append(now)
        self.received.append(UNANSWERED)
        try:
            if not self._ahead:
                self._open_ahead()
            sock = self._ahead.popleft()
        except OSError as error:
            self._count(error)
            return
        try:
            sock.send(self._pack(seq))
        except OSError as error:
            self._count(error)
            sock.close()
            return
        fd = sock.fileno()
        self._pending[fd] = (seq, sock)
        self._inbox.add(fd, self._take)

    def _take(self, fd: int, arrivals: Arrivals) -> None:
        """Read the socket of one probe; it is done with by an answer or an error."""
        seq, _ = self._pending[fd]
        batch = arrivals.batch
        answered = False
        try:
            for i in range(batch.receive(fd)):
                start = i * batch.SLOT
                if batch.lengths[i] != PAYLOAD.size:
                    continue
                mark, cookie, number = PAYLOAD.unpack_from(batch.data, start)
                if mark not in (ANSWER, REQUEST) or (cookie, number) != (self._cookie, seq):
                    continue
                if answered:
                    self.duplicates += 1
                    continue
                answered = True
                self.received[seq] = arrivals.of_datagram(i)
                self.answered += 1
        except OSError as error:
            self._count(error)
            answered = True
        if answered:
            self._end(fd)

    def _expire(self, now: int) -> None:
        """Close what nobody answered; the oldest is the first."""
        while self._pending:
            fd, (seq, _) = next(iter(self._pending.items()))
            if now - self.sent[seq] < self._limit_ns:
                return
            self._end(fd)

    def _end(self, fd: int) -> None:
        _, sock = self._pending.pop(fd)
        self._inbox.drop(fd)
        sock.close()

    def close(self) -> None:
        for fd in list(self._pending):
            self._end(fd)
        while self._ahead:
            self._ahead.pop().close()
        super().close()
