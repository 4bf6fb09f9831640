"""Two agents on the loopback, and strangers."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from vrha.peer import Expectation, Identity, PeerLink, PeerServer, dial

SESSION, TOKEN = "r-42/1", "kfF2vN0y0c3k5S7n8m5WlO8w2P1sJxJ0dY7m1e4Qb9A"
LIMIT_S = 10.0
T = TypeVar("T")


@dataclass(frozen=True)
class Two:
    """`server` is of agent `a`, who is called; `b` calls."""

    server: PeerServer
    a: Identity
    b: Identity

    def expect(self, session: str = SESSION, limit_s: float = LIMIT_S) -> Expectation:
        return self.server.expect(session, self.b.certificate, TOKEN, limit_s)

    def dial(
        self,
        who: Identity | None = None,
        certificate: str = "",
        session: str = SESSION,
        token: str = TOKEN,
        timeout_s: float = LIMIT_S,
    ) -> PeerLink:
        return dial(
            self.server.address,
            who or self.b,
            certificate or self.a.certificate,
            session,
            token,
            timeout_s,
        )


@contextmanager
def linked(two: Two) -> Iterator[tuple[PeerLink, PeerLink]]:
    """Both ends of a stream: of `a`, of `b`."""
    expectation = two.expect()
    of_b = two.dial()
    try:
        of_a = expectation.wait(LIMIT_S)
    except BaseException:
        of_b.close()
        raise
    try:
        yield of_a, of_b
    finally:
        of_a.close()
        of_b.close()


def where(server: PeerServer) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


def stranger(server: PeerServer, says: bytes = b"") -> socket.socket:
    sock = socket.create_connection(where(server), LIMIT_S)
    if says:
        sock.sendall(says)
    return sock


def hung_up(sock: socket.socket) -> bool:
    """Read to the end; False when it does not come within the socket's timeout."""
    try:
        while sock.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "not within the limit"
        time.sleep(0.005)


def beside(call: Callable[[], T]) -> Future[T]:
    """Run `call` in a thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def carry(one: socket.socket, other: socket.socket, done: Callable[[], bool]) -> None:
    """Be the middleman of two sockets until `done`."""

    def step() -> bool:
        for sock in select.select([one, other], [], [], 0.01)[0]:
            (other if sock is one else one).sendall(sock.recv(65536))
        return done()

    until(step)
