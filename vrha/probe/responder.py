"""The far end of UDP and TCP probes: echoes our datagrams, accepts connections.

It answers only datagrams that carry the mark of a request and marks its answers, so that two
responders can never be made to answer each other for ever (the classic fault of RFC 862 echo).
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from vrha.errors import InputError, PreconditionError
from vrha.probe.kernel import Batch, Namespace, steady
from vrha.probe.wire import ANSWER, PAYLOAD, REQUEST

PRIORITY = 9
POLL_S = 0.1
_CMSG_DATA = 16
_IPV6_RECVPKTINFO = 49
_IP_PKTINFO = 8
_SO_RCVBUFFORCE = 33
_BUFFER_BYTES = 4 << 20


def responder(
    port: int,
    namespaces: Sequence[str | None] = (None,),
    stop: threading.Event | None = None,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Serve UDP and TCP `port`, IPv4 and IPv6, in each network namespace until `stop` is set.

    Answers leave from the address that was asked, also on machines with several. Its sockets keep
    removed namespaces alive: stop it first. Raises InputError (`bad-port`), NotFoundError
    (`netns-not-found`), PreconditionError (`port-in-use`, `port-not-permitted`,
    `netns-not-permitted`).
    """
    if not 1 <= port <= 65535:
        raise InputError("bad-port", f"port {port} is not in 1..65535")
    stop = stop or threading.Event()
    udp: dict[int, socket.socket] = {}
    tcp: dict[int, socket.socket] = {}
    try:
        for path in namespaces:
            for sock in _open(port, path):
                (udp if sock.type == socket.SOCK_DGRAM else tcp)[sock.fileno()] = sock
        with steady(PRIORITY), select.epoll() as poller:
            for fd in (*udp, *tcp):
                poller.register(fd, select.EPOLLIN)
            if on_ready is not None:
                on_ready()
            _serve(poller, udp, tcp, stop)
    finally:
        for sock in (*udp.values(), *tcp.values()):
            sock.close()


def _serve(
    poller: select.epoll,
    udp: dict[int, socket.socket],
    tcp: dict[int, socket.socket],
    stop: threading.Event,
) -> None:
    batch = Batch()
    while not stop.is_set():
        for fd, _ in poller.poll(POLL_S):
            if fd in tcp:
                _accept(tcp[fd])
            else:
                _echo(batch, fd, udp[fd].family == socket.AF_INET6)


def _open(port: int, path: str | None) -> list[socket.socket]:
    namespace = Namespace(path)
    opened: list[socket.socket] = []
    try:
        with namespace:
            for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
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
                "Another responder may run; choose one with --port.",
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
    except BaseException:
        sock.close()
        raise
    return sock


def _accept(listener: socket.socket) -> None:
    """Take and close all waiting connections: the handshake was all that is measured."""
    with suppress(BlockingIOError, ConnectionError):
        while True:
            listener.accept()[0].close()


def _echo(batch: Batch, fd: int, v6: bool) -> None:
    # ICMP errors for earlier answers come back here; they concern a prober that has gone.
    with suppress(OSError):
        while count := batch.receive(fd):
            first = 0
            for i in range(count):
                if not _answer(batch, i, v6):
                    batch.send_back(fd, first, i)
                    first = i + 1
            batch.send_back(fd, first, count)


def _answer(batch: Batch, i: int, v6: bool) -> bool:
    """Turn request `i` into its answer in place; False when it is none of ours."""
    start = i * batch.SLOT
    if batch.length(i) != PAYLOAD.size or batch.data[start : start + 4] != REQUEST:
        return False
    batch.data[start : start + 4] = ANSWER
    # struct in_pktinfo: ifindex, spec_dst, addr; struct in6_pktinfo: addr, ifindex. The source
    # address is to be kept, the way back is the routing table's business.
    index = i * batch.CONTROL + _CMSG_DATA + (16 if v6 else 0)
    batch.control[index : index + 4] = bytes(4)
    return True
