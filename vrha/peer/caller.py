"""One connection that has not yet shown who it is."""

from __future__ import annotations

import hmac
import select
import socket
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from enum import StrEnum

from vrha.peer.expectation import Expectation
from vrha.peer.frames import (
    HELLO,
    MAX_GREETING,
    REFUSED,
    VERSION,
    WELCOME,
    Frames,
    pack,
)
from vrha.peer.link import PeerLink

__all__ = ["GREETING_S", "Caller", "Refusal"]

GREETING_S = 3.0
"""From the connection to the welcome."""
_LINGER_S = 1.0
_LINGER_BYTES = 64 << 10
_READ_BYTES = 4096


class Refusal(StrEnum):
    """Why a caller was turned away."""

    CROWDED = "crowded"
    SILENT = "silent"
    GONE = "gone"
    NOT_TLS = "not-tls"
    UNKNOWN_SESSION = "unknown-session"
    WRONG_CERTIFICATE = "wrong-certificate"
    WRONG_GREETING = "wrong-greeting"
    WRONG_TOKEN = "wrong-token"
    SESSION_USED = "session-used"


class _Turned(Exception):
    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


class Caller:
    """Led through handshake and greeting by `step` whenever its socket has one of `events`.

    `find` gives the session that belongs to a TLS context; `turned` hears why it was turned away.
    """

    def __init__(
        self,
        sock: ssl.SSLSocket,
        peer: str,
        find: Callable[[ssl.SSLContext], Expectation | None],
        turned: Callable[[Refusal], None],
    ) -> None:
        self.socket = sock
        self.since = time.monotonic()
        self.deadline = self.since + GREETING_S
        self.events = select.POLLIN
        self._peer = peer
        self._find = find
        self._turned = turned
        self._stranger = sock.context
        self._heard = False
        self._steps = self._admit()

    @property
    def named(self) -> bool:
        """Whether it has named a session that is expected."""
        return self.socket.context is not self._stranger

    def step(self) -> bool:
        """Go on as far as possible; False at the end, whichever it was."""
        try:
            self.events = next(self._steps)
        except StopIteration:
            return False
        return True

    def drop(self, reason: Refusal) -> None:
        """Close it now."""
        self._refuse(reason)
        self._steps.close()
        self.socket.close()

    def _refuse(self, reason: Refusal) -> None:
        if not self._heard:
            self._heard = True
            self._turned(reason)

    def _admit(self) -> Generator[int, None, None]:
        try:
            yield from self._handshake()
            frames = Frames(MAX_GREETING)
            yield from self._greeting(frames)
        except _Turned as turned:
            self._refuse(turned.reason)
            yield from self._linger()
            self.socket.close()

    def _handshake(self) -> Iterator[int]:
        while True:
            try:
                return self.socket.do_handshake()
            except ssl.SSLWantReadError:
                yield select.POLLIN
            except ssl.SSLWantWriteError:
                yield select.POLLOUT
            except ssl.SSLCertVerificationError:
                raise _Turned(Refusal.WRONG_CERTIFICATE) from None
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                raise _Turned(Refusal.GONE) from None
            except ssl.SSLError as error:
                raise _Turned(_handshake_refusal(error)) from None
            except OSError:
                raise _Turned(Refusal.GONE) from None

    def _greeting(self, frames: Frames) -> Iterator[int]:
        try:
            while not frames.ready:
                try:
                    data = self.socket.recv(_READ_BYTES)
                except ssl.SSLWantReadError:
                    yield select.POLLIN
                    continue
                if not data:
                    raise _Turned(Refusal.GONE)
                frames.feed(data)
            self._judge(frames)
        except OSError:
            raise _Turned(Refusal.GONE) from None

    def _judge(self, frames: Frames) -> None:
        """Hand the connection over, or say on the wire why not. Raises OSError."""
        expectation = self._find(self.socket.context)
        refusal = self._wrong(expectation, frames)
        if refusal is not None or expectation is None:
            refusal = refusal or Refusal.UNKNOWN_SESSION
            self.socket.send(pack(REFUSED, refusal.encode()))
            raise _Turned(refusal)
        self.socket.send(pack(WELCOME, bytes([VERSION])))
        expectation.deliver(PeerLink(self.socket, self._peer, frames))

    def _wrong(self, expectation: Expectation | None, frames: Frames) -> Refusal | None:
        if expectation is None:
            return Refusal.UNKNOWN_SESSION
        terms = expectation.terms
        found = self.socket.getpeercert(binary_form=True)
        if found != terms.certificate:
            return Refusal.WRONG_CERTIFICATE
        try:
            frame = frames.take()
        except ValueError:
            return Refusal.WRONG_GREETING
        if frame is None or frame[0] != HELLO or frame[1][:1] != bytes([VERSION]):
            return Refusal.WRONG_GREETING
        if not hmac.compare_digest(frame[1][1:], terms.token):
            return Refusal.WRONG_TOKEN
        return Refusal.SESSION_USED if expectation.used else None

    def _linger(self) -> Iterator[int]:
        """Let it read why: closing with unread bytes would reset the connection."""
        self.deadline = time.monotonic() + _LINGER_S
        left = _LINGER_BYTES
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_WR)
            while left > 0:
                try:
                    data = socket.socket.recv(self.socket, _READ_BYTES)
                except BlockingIOError:
                    yield select.POLLIN
                    continue
                if not data:
                    return
                left -= len(data)


def _handshake_refusal(error: ssl.SSLError) -> Refusal:
    # This is what OpenSSL says when the call for the name of the session has refused it.
    if error.reason == "CALLBACK_FAILED":
        return Refusal.UNKNOWN_SESSION
    # It has shown none, or this is its alert: it did not like ours.
    if error.reason and ("CERTIFICATE" in error.reason or "ALERT" in error.reason):
        return Refusal.WRONG_CERTIFICATE
    return Refusal.NOT_TLS
