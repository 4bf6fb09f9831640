"""Probes that each take a connection of their own: an attempt that succeeds, fails or times out."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time

from vrha.core.gaps import NS_PER_MS, UNANSWERED
from vrha.model.probing import Stream
from vrha.probe.channels import ProbeChannel
from vrha.probe.kernel import Namespace

TOO_SLOW = "not answered in time"


class Attempt:
    """The attempt of probe `seq`."""

    def __init__(self, seq: int, sock: socket.socket) -> None:
        self.seq = seq
        self.sock = sock
        self.connected = False


class AttemptChannel(ProbeChannel):
    """A new TCP connection per probe, reset at its end.

    It is reset (SO_LINGER 0) and not closed so that neither TIME_WAIT sockets here nor long-lived
    conntrack entries on the path pile up.
    """

    def __init__(self, stream: Stream, namespace: Namespace, poller: select.epoll) -> None:
        super().__init__(stream, namespace)
        self._poller = poller
        self._limit_ns = round(stream.timeout_ms * NS_PER_MS)
        self._pending: dict[int, Attempt] = {}

    def probe(self) -> None:
        now = time.monotonic_ns()
        self.expire(now)
        seq = len(self.sent)
        self.sent.append(now)
        self.received.append(UNANSWERED)
        sock = None
        try:
            with self.namespace:
                sock = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
            code = sock.connect_ex(self.address)
        except OSError as error:
            self._count(error)
            if sock is not None:
                sock.close()
            return
        if code not in (0, errno.EINPROGRESS):
            self._count(OSError(code, os.strerror(code)))
            sock.close()
            return
        self._pending[sock.fileno()] = Attempt(seq, sock)
        self._poller.register(sock.fileno(), select.EPOLLOUT | select.EPOLLONESHOT)

    def take(self, fd: int, now: int) -> bool:
        """There is news of socket `fd`; False when it is not one of ours."""
        attempt = self._pending.get(fd)
        if attempt is None:
            return False
        if not attempt.connected:
            code = attempt.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._fail(fd, errno.errorcode.get(code, "unknown"))
                return True
            if not _is_connected(attempt.sock):
                # The news was of a socket of the same number, closed since the kernel gave it.
                return True
            attempt.connected = True
        self._go_on(fd, attempt, now)
        return True

    def _go_on(self, fd: int, attempt: Attempt, now: int) -> None:
        """What follows the connection: nothing."""
        self._succeed(fd, now)

    def _await(self, fd: int, event: int) -> None:
        self._poller.modify(fd, event | select.EPOLLONESHOT)

    def _succeed(self, fd: int, now: int) -> None:
        attempt = self._pending.pop(fd)
        if now - self.sent[attempt.seq] <= self._limit_ns:
            self.received[attempt.seq] = now
            self.answered += 1
        else:
            self.errors[TOO_SLOW] += 1
        attempt.sock.close()

    def _fail(self, fd: int, why: str) -> None:
        self.errors[why] += 1
        self._pending.pop(fd).sock.close()

    def expire(self, now: int) -> None:
        """Give up the attempts that are older than the timeout."""
        for fd, attempt in list(self._pending.items()):
            if now - self.sent[attempt.seq] < self._limit_ns:
                return
            self._fail(fd, TOO_SLOW)

    def awaits(self, now: int) -> bool:
        return bool(self._pending)

    def close(self) -> None:
        for attempt in self._pending.values():
            attempt.sock.close()
        self._pending.clear()
        super().close()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
