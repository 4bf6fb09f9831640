"""Calling another agent."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress

from vrha.errors import RefusedError, UnreachableError
from vrha.peer.frames import HELLO, MAX_GREETING, VERSION, WELCOME, Frames, knock, pack
from vrha.peer.identity import Identity, der
from vrha.peer.link import PeerLink
from vrha.peer.sockets import reason, split, tune

__all__ = ["dial"]

_PAUSE_S = 0.05
_READ_BYTES = 4096
_SAID = {
    "CERTIFICATE_VERIFY_FAILED": "it has another certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it expects another certificate",
    "TLSV1_UNRECOGNIZED_NAME": "it does not expect this session",
}
"""Reasons of OpenSSL in our words."""


def dial(
    address: str, identity: Identity, certificate: str, session: str, token: str, timeout_s: float
) -> PeerLink:
    """Connect to the agent that expects `session`, within `timeout_s` in all.

    `certificate` (PEM) is that agent's. An agent that is not there, or whose door is crowded, is
    called again until the time is over; a refusal is final. Raises UnreachableError
    (`peer-unreachable`), RefusedError (`peer-refused`), InputError (`peer-certificate`).
    """
    deadline = time.monotonic() + timeout_s
    expected = der(certificate)
    try:
        target = split(address)
    except ValueError as error:
        raise _unreachable(address, str(error)) from error
    call = _Call(address, target, identity.client_context(expected), expected, deadline)
    while True:
        try:
            return call.attempt(session, token)
        except OSError as error:
            if _final(error):
                raise _refused(address, _SAID.get(_openssl(error), reason(error))) from error
            failure = error
        if time.monotonic() + _PAUSE_S >= deadline:
            raise _unreachable(address, reason(failure)) from failure
        time.sleep(_PAUSE_S)


def _final(error: OSError) -> bool:
    """Whether TLS said no, in contrast to a connection that broke."""
    broken = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    return isinstance(error, ssl.SSLError) and not isinstance(error, broken)


def _openssl(error: OSError) -> str:
    return (isinstance(error, ssl.SSLError) and error.reason) or ""


class _Call:
    def __init__(
        self,
        address: str,
        target: tuple[str, int],
        context: ssl.SSLContext,
        expected: bytes,
        deadline: float,
    ) -> None:
        self._address = address
        self._target = target
        self._context = context
        self._expected = expected
        self._deadline = deadline

    def attempt(self, session: str, token: str) -> PeerLink:
        """Raises RefusedError, OSError."""
        plain = socket.create_connection(self._target, self._left())
        try:
            tune(plain)
            plain.settimeout(self._left())
            plain.sendall(knock(session))
            sock = self._context.wrap_socket(plain, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        try:
            return self._greet(sock, token)
        except BaseException:
            sock.close()
            raise

    def _greet(self, sock: ssl.SSLSocket, token: str) -> PeerLink:
        sock.do_handshake()
        if sock.getpeercert(binary_form=True) != self._expected:
            raise _refused(self._address, "it has another certificate")
        # When it has hung up already, the reason is among what it has sent.
        with suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(pack(HELLO, bytes([VERSION]) + token.encode()))
        frames = Frames(MAX_GREETING)
        kind, body = self._answer(sock, frames)
        if kind != WELCOME:
            raise _refused(self._address, body.decode("ascii", "replace"))
        return PeerLink(sock, self._address, frames)

    def _answer(self, sock: ssl.SSLSocket, frames: Frames) -> tuple[int, bytes]:
        while (frame := frames.take()) is None:
            sock.settimeout(self._left())
            data = sock.recv(_READ_BYTES)
            if not data:
                raise ConnectionError("it hung up")
            frames.feed(data)
        return frame

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left


def _unreachable(address: str, why: str) -> UnreachableError:
    return UnreachableError(
        "peer-unreachable",
        f"agent {address} cannot be reached: {why}",
        "See whether that agent runs and whether nodes may connect to each other on this port.",
    )


def _refused(address: str, why: str) -> RefusedError:
    return RefusedError(
        "peer-refused",
        f"no connection to agent {address}: {why}",
        "One of the agents has started again since it told who it is, or the time is over: "
        "start a new run.",
    )
