"""The door of an agent: only connections that it was told to expect come through."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Mapping

from vrha.errors import PreconditionError
from vrha.peer.caller import Caller, Refusal
from vrha.peer.expectation import Expectation, Terms
from vrha.peer.frames import knock
from vrha.peer.identity import Identity, der
from vrha.peer.sockets import listening, reason, text, tune

__all__ = ["MAX_CALLERS", "Expectation", "PeerServer", "Refusal"]

log = logging.getLogger(__name__)

MAX_CALLERS = 16
"""Connections at once that have not shown who they are; one more drops the oldest stranger."""
_BREATH_S = 0.1
"""Pause of accepting when the process has no descriptors left."""
_LOG_EVERY_S = 60.0


class PeerServer:
    """Listens for the streams that this agent was told to expect. Thread safe.

    A caller knocks with the name of its session and meets TLS that takes the certificate of that
    session only. Callers who name none that is expected do not even reach TLS. One thread serves
    all callers, none of them is waited for.
    """

    def __init__(self, listen: str, identity: Identity) -> None:
        """`listen` is `172.31.255.11:7443` or `[::]:7443`.

        Raises PreconditionError (`sync-listen`).
        """
        try:
            self._listener = listening(listen)
        except (OSError, ValueError) as error:
            why = reason(error) if isinstance(error, OSError) else str(error)
            raise PreconditionError(
                "sync-listen",
                f"cannot listen for other agents on {listen}: {why}",
                "Give an address of this node and a free port, as ADDRESS:PORT or [IPV6]:PORT.",
            ) from error
        self.address = text(self._listener)
        self._identity = identity
        self._lock = threading.Lock()
        self._expected: dict[bytes, Expectation] = {}
        self._refusals: Counter[Refusal] = Counter()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._callers: dict[int, Caller] = {}
        self._accept_after = 0.0
        self._log_after = 0.0
        self._thread = threading.Thread(target=self._serve, name="peer-server", daemon=True)
        self._thread.start()

    @property
    def refusals(self) -> Mapping[Refusal, int]:
        """How many callers were turned away, and why."""
        with self._lock:
            return dict(self._refusals)

    def expect(self, session: str, certificate: str, token: str, limit_s: float) -> Expectation:
        """Let the owner of `certificate` (PEM) in, once, with `token`, for `limit_s` from now.

        Expecting a session again replaces what was expected before. Raises InputError
        (`peer-certificate`).
        """
        peer = der(certificate)
        context = self._identity.server_context(peer)
        until = time.monotonic() + limit_s
        made = Expectation(Terms(session, peer, token.encode(), context, until), self._forget)
        with self._lock:
            over = self._expected.get(knock(session))
            if self._closing:
                over = made
            else:
                self._expected[knock(session)] = made
                os.eventfd_write(self._wake, 1)
        if over is not None:
            over.end()
        return made

    def close(self) -> None:
        """Stop listening and expect nobody any more; links that were taken stay open."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _forget(self, expectation: Expectation) -> None:
        name = knock(expectation.terms.session)
        with self._lock:
            if self._expected.get(name) is expectation:
                del self._expected[name]

    def _find(self, said: bytes) -> Expectation | None:
        with self._lock:
            return self._expected.get(said)

    def _serve(self) -> None:
        try:
            while not self._closing:
                self._turn()
        finally:
            self._listener.close()
            for caller in self._callers.values():
                caller.drop(Refusal.GONE)
            with self._lock:
                left = list(self._expected.values())
                self._expected.clear()
            for expectation in left:
                expectation.end()

    def _turn(self) -> None:
        """Wait for something to happen, and deal with it: callers first, then new ones."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for fd, caller in self._callers.items():
            poll.register(fd, caller.events)
        if time.monotonic() >= self._accept_after:
            poll.register(self._listener, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(self._next_ms())}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        self._expire(time.monotonic())
        for fd in ready & self._callers.keys():
            if not self._callers[fd].step():
                del self._callers[fd]
        if self._listener.fileno() in ready:
            self._accept()

    def _next_ms(self) -> float | None:
        """Until the next deadline; None when there is none."""
        with self._lock:
            times = [expectation.terms.until for expectation in self._expected.values()]
        times += [caller.deadline for caller in self._callers.values()]
        if self._accept_after > time.monotonic():
            times.append(self._accept_after)
        return max((min(times) - time.monotonic()) * 1000 + 1, 0) if times else None

    def _expire(self, now: float) -> None:
        for fd in [fd for fd, caller in self._callers.items() if caller.deadline <= now]:
            self._callers.pop(fd).drop(Refusal.SILENT)
        with self._lock:
            over = [one for one in self._expected.values() if one.terms.until <= now]
        for expectation in over:
            expectation.cancel()

    def _accept(self) -> None:
        try:
            plain, address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            self._say(f"cannot accept connections of other agents: {reason(error)}")
            self._accept_after = time.monotonic() + _BREATH_S
            return
        try:
            tune(plain)
            plain.setblocking(False)
        except OSError:
            plain.close()
            self._count(Refusal.GONE)
            return
        if len(self._callers) >= MAX_CALLERS:
            # Who has named a session may well be the one who is expected.
            fd = min(self._callers, key=lambda f: (self._callers[f].named, self._callers[f].since))
            self._callers.pop(fd).drop(Refusal.CROWDED)
        peer = f"{address[0]} port {address[1]}"
        self._callers[plain.fileno()] = Caller(plain, peer, self._find, self._count)

    def _count(self, why: Refusal) -> None:
        with self._lock:
            self._refusals[why] += 1
        self._say(f"callers turned away so far: {_summary(self.refusals)}")

    def _say(self, what: str) -> None:
        """A line now and then: strangers do not fill the log."""
        now = time.monotonic()
        if now >= self._log_after:
            self._log_after = now + _LOG_EVERY_S
            log.warning("%s", what)


def _summary(refusals: Mapping[Refusal, int]) -> str:
    return ", ".join(f"{why.value} {count}" for why, count in sorted(refusals.items()))
