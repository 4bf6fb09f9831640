"""Open streams: a socket in its namespace, the send times, and the time of each first reply."""

from __future__ import annotations

import errno
import secrets
import select
import socket
import struct
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from vrha.core.gaps import NS_PER_MS, UNANSWERED
from vrha.errors import NotFoundError, PreconditionError, UnreachableError
from vrha.model.probing import Stream
from vrha.probe.kernel import NS_PER_S, Batch, Namespace
from vrha.probe.wire import (
    ANSWER,
    PAYLOAD,
    REQUEST,
    IcmpProbe,
    UdpProbe,
    attach_icmp_filter,
)

SO_TIMESTAMPNS = 35
SO_MEMINFO = 55
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
_RECVERR = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}
"""IP_RECVERR and IPV6_RECVERR (ip(7), ipv6(7)). Without them a connected socket learns of few ICMP
errors: not of an unreachable host or network (net/ipv4/icmp.c icmp_err_convert)."""
_MSG_ERRQUEUE = 0x2000
_ERROR_BYTES, _ERROR_CONTROL = 256, 256
BUFFER_BYTES = 4 << 20
"""Room for more than a second of replies that arrive at once."""

_TIMESPEC = struct.Struct("@qq")
_ECHOED = (ANSWER, REQUEST)
NOT_SENT = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.EPERM})


def resolve(stream: Stream) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and socket address of the target, as seen from the current namespace.

    Raises NotFoundError (`unknown-host`; `no-address` when it has none of the wanted family).
    """
    wanted = {4: socket.AF_INET, 6: socket.AF_INET6}.get(stream.family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(stream.target, stream.port, wanted, socket.SOCK_DGRAM)
    except (socket.gaierror, UnicodeError) as error:
        if stream.family and _is_known(stream.target):
            raise NotFoundError(
                "no-address",
                f"{stream.target} has no IPv{stream.family} address",
                "Leave the family open, or name an address of it.",
            ) from error
        raise NotFoundError(
            "unknown-host", f"unknown host {stream.target!r}: {error}", "Check name and resolver."
        ) from error
    family, _, _, _, address = found[0]
    return family, address  # type: ignore[return-value]


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (socket.gaierror, UnicodeError):
        return False
    return True


def no_route(stream: Stream, address: str, error: OSError) -> UnreachableError:
    """What to raise when the kernel has no way to the target of a stream."""
    return UnreachableError(
        "no-route",
        f"stream {stream.name!r}: cannot reach {address}: {error.strerror}",
        f"Check `ip route get {address}` in the namespace of the stream.",
    )


def overran(sock: socket.socket) -> int:
    """Datagrams that overran the buffer (SK_MEMINFO_DROPS, include/linux/sock_diag.h)."""
    return int(struct.unpack_from("@9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[8])


class Arrivals(NamedTuple):
    """Buffers for replies, and how their kernel timestamps become times of CLOCK_MONOTONIC.

    `offset_ns` is realtime minus monotonic; `instead` replaces the timestamps when they cannot be
    converted because the clock was just set. All of them arrived about between `earliest` and
    `latest`, the last looks at the sockets.
    """

    batch: Batch
    offset_ns: int
    instead: int | None
    earliest: int
    latest: int

    def of_datagram(self, i: int) -> int:
        """When datagram `i` of the batch arrived."""
        if self.instead is not None:
            return self.instead
        return self._plausible(self.stamp(i) - self.offset_ns)

    def stamp(self, i: int) -> int:
        """What the kernel said of datagram `i`, on CLOCK_REALTIME."""
        return self.batch.seconds[i] * NS_PER_S + self.batch.nanos[i]

    def of_message(self, control: Sequence[tuple[int, int, bytes]], now: int) -> int:
        """When what `socket.recvmsg` gave with `control` arrived; `now` if that is not said."""
        if self.instead is not None:
            return self.instead
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                seconds, nanos = _TIMESPEC.unpack(data)
                return self._plausible(int(seconds * NS_PER_S + nanos - self.offset_ns))
        return now

    def _plausible(self, at: int) -> int:
        # The clock may be set after it was looked at, and before the packet came.
        if self.earliest - NS_PER_S <= at <= self.latest + NS_PER_S:
            return at
        return time.monotonic_ns()


class Inbox:
    """Sockets of which only those are read that have something, when `drain` is called."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._owners: dict[int, Callable[[int, Arrivals], None]] = {}

    def add(self, fd: int, owner: Callable[[int, Arrivals], None]) -> None:
        """Call `owner` with `fd` whenever there is something to read."""
        self._epoll.register(fd, select.EPOLLIN)
        self._owners[fd] = owner

    def drop(self, fd: int) -> None:
        """Forget a socket that is about to be closed, which takes it out of the epoll as well."""
        del self._owners[fd]

    def fileno(self) -> int:
        """Readable, for another epoll, while one of the sockets is."""
        return self._epoll.fileno()

    def drain(self, arrivals: Arrivals) -> None:
        for fd, _ in self._epoll.poll(0):
            self._owners[fd](fd, arrivals)

    def close(self) -> None:
        self._epoll.close()


class Channel:
    """One open stream."""

    def __init__(self, stream: Stream, namespace: Namespace) -> None:
        self.stream = stream
        self.namespace = namespace
        self.errors: Counter[str] = Counter()
        with namespace:
            self.family, self.address = resolve(stream)

    @property
    def has_answered(self) -> bool:
        """Whether there was a reply, with several connections on each of them."""
        raise NotImplementedError

    def close(self) -> None:
        self.namespace.close()

    def _count(self, error: OSError) -> None:
        self.errors[errno.errorcode.get(error.errno or 0, "unknown")] += 1


class ProbeChannel(Channel):
    """A stream of probes. `sent[i]` and `received[i]` belong to probe i (ns, CLOCK_MONOTONIC)."""

    def __init__(self, stream: Stream, namespace: Namespace) -> None:
        super().__init__(stream, namespace)
        self.sent = array("q")
        self.received = array("q")
        self.answered = 0
        self.duplicates = 0

    @property
    def has_answered(self) -> bool:
        return self.answered > 0

    @property
    def receive_drops(self) -> int:
        return 0

    @property
    def cookie(self) -> bytes | None:
        """What its probes carry so that our responder knows them; None without one."""
        return None

    def awaits(self, now: int) -> bool:
        """Whether a probe may still be answered in time."""
        since = now - round(self.stream.timeout_ms * NS_PER_MS)
        for at, reply in zip(reversed(self.sent), reversed(self.received), strict=True):
            if at < since:
                return False
            if reply == UNANSWERED:
                return True
        return False

    def probe(self) -> None:
        """Send the next probe."""
        raise NotImplementedError


class EchoChannel(ProbeChannel):
    """ICMP or UDP echo over one connected socket. Replies are fetched by `drain`."""

    def __init__(self, stream: Stream, namespace: Namespace) -> None:
        super().__init__(stream, namespace)
        self._cookie = secrets.token_bytes(8)
        v6 = self.family == socket.AF_INET6
        ident = secrets.randbelow(0xFFFF) + 1
        self._ident = ident.to_bytes(2, "big")
        self._raw = self._raw_v4 = False
        with namespace:
            if stream.kind == "udp":
                self._socket = socket.socket(self.family, socket.SOCK_DGRAM)
                self._pack = UdpProbe(self._cookie).pack
                self._offset = 0
            else:
                self._socket = self._icmp_socket(v6, ident)
                self._pack = IcmpProbe(self._cookie, ident, v6).pack
                self._offset = 8
        try:
            self._prepare()
        except OSError as error:
            self._socket.close()
            raise no_route(stream, self.address[0], error) from error
        self._fd = self._socket.fileno()
        self._send = self._socket.send

    def _icmp_socket(self, v6: bool, ident: int) -> socket.socket:
        protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
        try:
            sock = socket.socket(self.family, socket.SOCK_RAW, protocol)
        except PermissionError:
            try:
                return socket.socket(self.family, socket.SOCK_DGRAM, protocol)
            except PermissionError as error:
                raise PreconditionError(
                    "icmp-not-permitted",
                    "this user may open neither raw nor unprivileged ICMP sockets",
                    "Run as root, give CAP_NET_RAW, or set net.ipv4.ping_group_range; "
                    "UDP and TCP probes need no privilege.",
                ) from error
        attach_icmp_filter(sock, ident, v6)
        self._raw, self._raw_v4 = True, not v6
        return sock

    def _prepare(self) -> None:
        sock = self._socket
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(*_RECVERR[self.family], 1)
        for forced, plain in (
            (SO_RCVBUFFORCE, socket.SO_RCVBUF),
            (SO_SNDBUFFORCE, socket.SO_SNDBUF),
        ):
            try:
                sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
        if self.stream.kind == "icmp":
            # The port of a raw socket would be taken for a protocol number.
            self.address = (self.address[0], 0, *self.address[2:])
        sock.connect(self.address)

    @property
    def cookie(self) -> bytes | None:
        return self._cookie if self.stream.kind == "udp" else None

    @property
    def receive_drops(self) -> int:
        return overran(self._socket)

    def probe(self) -> None:
        packet = self._pack(len(self.sent))
        self.sent.append(time.monotonic_ns())
        self.received.append(UNANSWERED)
        try:
            self._send(packet)
        except OSError as error:
            if error.errno in NOT_SENT:
                self._count(error)
                return
            # It may belong to an earlier probe (ICMP error) and have kept this one from going.
            self._failed(error)
            with suppress(OSError):
                self._send(packet)

    def _failed(self, error: OSError) -> None:
        """A system call said `error`: ICMP errors that wait, or else one of its own."""
        if not self._take_errors():
            self._count(error)

    def _take_errors(self) -> bool:
        """Count the ICMP errors that wait in the error queue; False when there was none.

        What is left there takes room from replies, and makes the next call fail.
        """
        found = False
        while True:
            try:
                quoted, control, _, _ = self._socket.recvmsg(
                    _ERROR_BYTES, _ERROR_CONTROL, _MSG_ERRQUEUE
                )
            except OSError:
                return found
            found = True
            if self._is_ours(quoted):
                for level, kind, data in control:
                    if (level, kind) == _RECVERR[self.family]:
                        # struct sock_extended_err, include/uapi/linux/errqueue.h
                        self._count(OSError(int.from_bytes(data[:4], sys.byteorder), ""))

    def _is_ours(self, quoted: bytes) -> bool:
        """Raw sockets are told of all ICMP that failed on its way to the target, anybody's.

        Of IPv4 the quotation has no more than 8 bytes for sure, and begins with the ICMP header.
        """
        if self._raw_v4:
            return quoted[4:6] == self._ident
        return not self._raw or self._cookie in quoted

    def drain(self, arrivals: Arrivals) -> None:
        """Take all replies that have arrived."""
        batch = arrivals.batch
        while True:
            try:
                count = batch.receive(self._fd)
            except OSError as error:
                self._failed(error)
                continue
            self._take(arrivals, count)
            if count < batch.size:
                return

    def _take(self, arrivals: Arrivals, count: int) -> None:
        # This runs for every reply: names that are local cost less.
        batch, received, known = arrivals.batch, self.received, len(self.sent)
        data, lengths, unpack = batch.data, batch.lengths, PAYLOAD.unpack_from
        for i in range(count):
            skip = self._offset
            if self._raw_v4:
                skip += (data[i * batch.SLOT] & 15) * 4
            if lengths[i] < skip + PAYLOAD.size:
                continue
            mark, cookie, seq = unpack(data, i * batch.SLOT + skip)
            if cookie != self._cookie or mark not in _ECHOED or seq >= known:
                continue
            if received[seq] == UNANSWERED:
                received[seq] = arrivals.of_datagram(i)
                self.answered += 1
            else:
                self.duplicates += 1

    def close(self) -> None:
        self._socket.close()
        super().close()
