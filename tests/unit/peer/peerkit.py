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
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

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


def signed() -> tuple[str, Identity]:
    """A certificate that may sign others, and an identity that it has signed."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name, name = (
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in ("root", "leaf")
    )

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey, ca: bool) -> str:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(root_key, hashes.SHA256())
        )
        return made.public_bytes(Encoding.PEM).decode()

    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    leaf = Identity(certificate(name, key.public_key(), False), pem)
    return certificate(root_name, root_key.public_key(), True), leaf
