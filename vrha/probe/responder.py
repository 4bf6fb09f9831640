"""The far end of UDP and TCP probes: echoes our datagrams, accepts connections.

It answers only datagrams that carry the mark of a request and marks its answers, so that two
responders can never be made to answer each other for ever (the classic fault of RFC 862 echo).
It remembers which requests came, so that their sender can ask which way a lost one died.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vrha.errors import InputError, PreconditionError
from vrha.probe.kernel import Batch, Namespace, allow_open_files, steady
from vrha.probe.record import Recorder
from vrha.probe.services import Connections, LateEcho, Reactor
from vrha.probe.wire import ANSWER, PAYLOAD, QUESTION, QUESTION_BYTES, REQUEST

PRIORITY = 9
POLL_S = 0.1
DELAY_MS = 3.0
PUSH_MS = 10.0
MAX_TIME_MS = 60_000.0
MAX_CONNECTIONS = 1024
_CMSG_DATA = 16
_IPV6_RECVPKTINFO = 49
_IP_PKTINFO = 8
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 4 << 20
_KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)


@dataclass(frozen=True, slots=True)
class Services:
    """What a responder offers, for IPv4 and IPv6.

    - `port`: UDP echo at once; TCP accepts and closes.
    - `echo_port` (else `port` + 1): UDP echo after `delay_ms`; TCP echo on long connections.
    - `push_port` (else `port` + 2): on TCP connections a message every `push_ms`.

    With `loopback` only to this machine itself.
    """

    port: int = 7
    echo_port: int | None = None
    push_port: int | None = None
    delay_ms: float = DELAY_MS
    push_ms: float = PUSH_MS
    loopback: bool = False

    @property
    def ports(self) -> tuple[int, int, int]:
        """The three ports. Raises InputError (`bad-port`)."""
        ports = (
            self.port,
            self.port + 1 if self.echo_port is None else self.echo_port,
            self.port + 2 if self.push_port is None else self.push_port,
        )
        for port in ports:
            if not 1 <= port <= 65535:
                raise InputError("bad-port", f"port {port} is not in 1..65535")
        if len(set(ports)) < len(ports):
            raise InputError("bad-port", f"ports {ports} are not three different ones")
        return ports

    def check(self) -> None:
        """Raises InputError (`bad-port`, `bad-interval`)."""
        assert self.ports
        for name, value, least in (("delay", self.delay_ms, 0.0), ("push", self.push_ms, 0.1)):
            if not least <= value <= MAX_TIME_MS:
                raise InputError(
                    "bad-interval", f"{name} {value} ms is not in {least:g} ms..{MAX_TIME_MS:g} ms"
                )


def responder(
    services: Services,
    namespaces: Sequence[str | None] = (None,),
    stop: threading.Event | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve `services` in each network namespace until `stop` is set.

    Answers leave from the address that was asked, also on machines with several. Its sockets keep
    removed namespaces alive: stop it first. Raises InputError (`bad-port`, `bad-interval`),
    NotFoundError (`netns-not-found`), PreconditionError (`port-in-use`, `port-not-permitted`,
    `no-loopback`, `netns-not-permitted`).
    """
    services.check()
    stop = stop or threading.Event()
    bound: list[socket.socket] = []
    try:
        for path in namespaces:
            bound += _open(services, path)
        with steady(PRIORITY), _serving(services, bound) as reactor:
            if on_ready is not None:
                on_ready()
            while not stop.is_set():
                reactor.turn(POLL_S)
    finally:
        _close(bound)


@contextmanager
def _serving(services: Services, bound: Sequence[socket.socket]) -> Iterator[Reactor]:
    """Everything that takes care of the bound sockets, by port and kind."""
    reactor = Reactor()
    # From here on nothing comes unseen: all ports are bound.
    recorder = Recorder(time.monotonic_ns)
    late = LateEcho(reactor, services.delay_ms, recorder)
    limit = _room_for_connections(len(bound))
    echo = Connections(reactor, None, limit)
    push = Connections(reactor, services.push_ms, limit)
    first, second, _ = services.ports
    batch = _Batch()
    try:
        for sock in bound:
            match sock.getsockname()[1], sock.type:
                case port, socket.SOCK_DGRAM if port == first:
                    reactor.add(sock.fileno(), _Echo(batch, sock, recorder))
                case port, socket.SOCK_STREAM if port == first:
                    reactor.add(sock.fileno(), _Accept(sock))
                case _, socket.SOCK_DGRAM:
                    late.serve(sock)
                case port, _:
                    (echo if port == second else push).serve(sock)
        yield reactor
    finally:
        for part in (late, echo, push, reactor):
            part.close()


def _room_for_connections(sockets: int) -> int:
    """How many connections of each kind there may be: accepting more than there are files for
    would fail again and again without an end."""
    used = 64 + sockets
    return min(MAX_CONNECTIONS, (allow_open_files(used + 2 * MAX_CONNECTIONS) - used) // 2)


def _open(services: Services, path: str | None) -> list[socket.socket]:
    namespace = Namespace(path)
    opened: list[socket.socket] = []
    first, second, third = services.ports
    wanted = [(port, kind) for port in (first, second) for kind in _KINDS]
    wanted.append((third, socket.SOCK_STREAM))
    v4, v6 = ("127.0.0.1", "::1") if services.loopback else ("0.0.0.0", "::")
    try:
        with namespace:
            for port, kind in wanted:
                for family, address in ((socket.AF_INET, v4), (socket.AF_INET6, v6)):
                    sock = _listen(family, kind, address, port)
                    if sock is not None:
                        opened.append(sock)
    except OSError as error:
        _close(opened)
        where = f" in {path}" if path else ""
        if error.errno == errno.EADDRINUSE:
            raise PreconditionError(
                "port-in-use",
                f"port {port} is taken{where}",
                "Another responder may run; choose others with --port, --echo-port, --push-port.",
            ) from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise PreconditionError(
                "no-loopback", "the loopback interface is down", "ip link set lo up"
            ) from error
        raise PreconditionError(
            "port-not-permitted",
            f"cannot serve port {port}{where}: {error.strerror}",
            "Ports below 1024 need root (CAP_NET_BIND_SERVICE).",
        ) from error
    except BaseException:
        _close(opened)
        raise
    finally:
        namespace.close()
    return opened


def _close(socks: Sequence[socket.socket]) -> None:
    for sock in socks:
        sock.close()


def _listen(family: int, kind: int, address: str, port: int) -> socket.socket | None:
    """A serving socket; None where the machine has no IPv6."""
    try:
        sock = socket.socket(family, kind)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT and family == socket.AF_INET6:
            return None
        raise
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_DGRAM:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            with suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        else:
            # For TIME_WAIT of an earlier responder; a living one still makes bind fail.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen(4096)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRNOTAVAIL and family == socket.AF_INET6:
            return None
        raise
    except BaseException:
        sock.close()
        raise
    return sock


class _Accept:
    """Takes and closes all waiting connections: the handshake was all that is measured."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def __call__(self, _: int) -> None:
        with suppress(BlockingIOError, ConnectionError):
            while True:
                self._listener.accept()[0].close()


class _Batch(Batch):
    SLOT = 512
    """Room for a question, and to see that a datagram is longer than one."""


class _Echo:
    """Answers many requests per system call."""

    def __init__(self, batch: _Batch, sock: socket.socket, recorder: Recorder) -> None:
        self._batch = batch
        self._recorder = recorder
        # struct in_pktinfo: ifindex, spec_dst, addr; struct in6_pktinfo: addr, ifindex.
        self._interface = _CMSG_DATA + (16 if sock.family == socket.AF_INET6 else 0)

    def __call__(self, fd: int) -> None:
        batch = self._batch
        # ICMP errors for earlier answers come back here; they concern a prober that has gone.
        with suppress(OSError):
            while count := batch.receive(fd):
                first = 0
                for i in range(count):
                    if not self._answer(i):
                        self._send_back(fd, first, i)
                        first = i + 1
                self._send_back(fd, first, count)

    def _answer(self, i: int) -> bool:
        """Turn datagram `i` into its answer in place; False when it is none of ours."""
        batch = self._batch
        start = i * batch.SLOT
        length = batch.lengths[i]
        mark, cookie, seq = PAYLOAD.unpack_from(batch.data, start)
        if length == PAYLOAD.size and mark == REQUEST:
            self._recorder.came(cookie, seq)
            batch.data[start : start + 4] = ANSWER
        elif length == QUESTION_BYTES and mark == QUESTION:
            report = self._recorder.report(cookie, seq).pack(cookie)
            batch.data[start : start + len(report)] = report
            batch.headers[i].len = len(report)
        else:
            return False
        # The source address is to be kept, the way back is the routing table's business.
        index = i * batch.CONTROL + self._interface
        batch.control[index : index + 4] = bytes(4)
        return True

    def _send_back(self, fd: int, first: int, end: int) -> None:
        batch = self._batch
        for i in batch.send_back(fd, first, end):
            _, cookie, _ = PAYLOAD.unpack_from(batch.data, i * batch.SLOT)
            self._recorder.refused(cookie)
