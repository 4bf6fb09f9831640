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

from vrha.peer.expectation import Expectation, Terms
from vrha.peer.frames import (
    HELLO,
    MAGIC,
    MAX_GREETING,
    NOBODY,
    REFUSED,
    VERSION,
    WELCOME,
    Frames,
    knock,
    pack,
)
from vrha.peer.link import PeerLink

__all__ = ["GREETING_S", "Caller", "Refusal"]

GREETING_S = 3.0
"""From the connection to the welcome."""
_LINGER_S = 1.0
_LINGER_BYTES = 64 << 10
_READ_BYTES = 4096
_KNOCK_BYTES = len(knock(""))


class Refusal(StrEnum):
    """Why a caller was turned away."""

    CROWDED = "crowded"
    SILENT = "silent"
    GONE = "gone"
    FOREIGN = "foreign"
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

    `find` gives the session that a knock names; `turned` hears why the caller was turned away.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        find: Callable[[bytes], Expectation | None],
        turned: Callable[[Refusal], None],
    ) -> None:
        self.socket = sock
        self.since = time.monotonic()
        self.deadline = self.since + GREETING_S
        self.events = select.POLLIN
        self.named = False
        """Whether it has named a session that is expected."""
        self._peer = peer
        self._find = find
        self._turned = turned
        self._heard = False
        self._steps = self._admit()

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
            said = yield from self._knock()
            expectation = self._find(said)
            if expectation is None:
                with suppress(OSError):
                    self.socket.send(NOBODY)
                raise _Turned(Refusal.UNKNOWN_SESSION)
            self.named = True
            # It keeps its descriptor.
            self.socket = tls = _wrapped(self.socket, expectation.terms)
            yield from _handshake(tls)
            frames = Frames(MAX_GREETING)
            yield from _greeting(tls, frames)
            self._judge(tls, frames, self._find(said))
        except _Turned as turned:
            self._refuse(turned.reason)
            yield from self._linger()
            self.socket.close()

    def _knock(self) -> Generator[int, None, bytes]:
        said = b""
        while len(said) < _KNOCK_BYTES:
            try:
                data = self.socket.recv(_KNOCK_BYTES - len(said))
            except BlockingIOError:
                yield select.POLLIN
                continue
            except OSError:
                raise _Turned(Refusal.GONE) from None
            if not data:
                raise _Turned(Refusal.GONE)
            said += data
            if said[: len(MAGIC)] != MAGIC[: len(said)]:
                raise _Turned(Refusal.FOREIGN)
        return said

    def _judge(self, tls: ssl.SSLSocket, frames: Frames, expectation: Expectation | None) -> None:
        """Hand the connection over, or say on the wire why not."""
        refusal = _wrong(tls, frames, expectation)
        try:
            if refusal is not None or expectation is None:
                refusal = refusal or Refusal.UNKNOWN_SESSION
                tls.send(pack(REFUSED, refusal.encode()))
                raise _Turned(refusal)
            tls.send(pack(WELCOME, bytes([VERSION])))
        except OSError:
            raise _Turned(refusal or Refusal.GONE) from None
        expectation.deliver(PeerLink(tls, self._peer, frames))

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


def _wrapped(plain: socket.socket, terms: Terms) -> ssl.SSLSocket:
    try:
        return terms.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    except OSError:
        raise _Turned(Refusal.GONE) from None


def _handshake(tls: ssl.SSLSocket) -> Iterator[int]:
    while True:
        try:
            return tls.do_handshake()
        except ssl.SSLWantReadError:
            yield select.POLLIN
        except ssl.SSLWantWriteError:
            yield select.POLLOUT
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise _Turned(Refusal.GONE) from None
        except ssl.SSLError as error:
            # It has shown another one or none, or this is its alert: it did not like ours.
            blamed = error.reason or ""
            wrong = "CERTIFICATE" in blamed or "ALERT" in blamed
            raise _Turned(Refusal.WRONG_CERTIFICATE if wrong else Refusal.FOREIGN) from None
        except OSError:
            raise _Turned(Refusal.GONE) from None


def _greeting(tls: ssl.SSLSocket, frames: Frames) -> Iterator[int]:
    while not frames.ready:
        try:
            data = tls.recv(_READ_BYTES)
        except ssl.SSLWantReadError:
            yield select.POLLIN
            continue
        except OSError:
            raise _Turned(Refusal.GONE) from None
        if not data:
            raise _Turned(Refusal.GONE)
        frames.feed(data)


def _wrong(tls: ssl.SSLSocket, frames: Frames, expectation: Expectation | None) -> Refusal | None:
    if expectation is None:
        return Refusal.UNKNOWN_SESSION
    if tls.getpeercert(binary_form=True) != expectation.terms.certificate:
        return Refusal.WRONG_CERTIFICATE
    try:
        frame = frames.take()
    except ValueError:
        return Refusal.WRONG_GREETING
    if frame is None or frame[0] != HELLO or frame[1][:1] != bytes([VERSION]):
        return Refusal.WRONG_GREETING
    if not hmac.compare_digest(frame[1][1:], expectation.terms.token):
        return Refusal.WRONG_TOKEN
    return Refusal.SESSION_USED if expectation.used else None
