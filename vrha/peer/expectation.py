"""One connection that an agent was told to wait for."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vrha.errors import DeadlineError
from vrha.peer.link import PeerLink

__all__ = ["Expectation", "Terms"]


@dataclass(frozen=True, slots=True)
class Terms:
    """Who may come: the certificate (DER), the token, and the TLS that takes only them."""

    session: str
    certificate: bytes
    token: bytes = field(repr=False)
    context: ssl.SSLContext
    until: float
    """On the monotonic clock, s."""


class Expectation:
    """Waits for its connection; `wait` gives it away once."""

    def __init__(self, terms: Terms, forget: Callable[[Expectation], None]) -> None:
        self.terms = terms
        self._forget = forget
        self._changed = threading.Condition()
        self._link: PeerLink | None = None
        self._used = False
        self._over = False

    @property
    def used(self) -> bool:
        """Whether its one connection has been made."""
        return self._used

    def wait(self, timeout_s: float) -> PeerLink:
        """The connection, which from then on is the caller's.

        Raises DeadlineError (`peer-late`) when none has come within `timeout_s`, within the limit
        of the session, or since somebody else took it.
        """
        until = min(time.monotonic() + timeout_s, self.terms.until)
        with self._changed:
            self._changed.wait_for(
                lambda: self._link is not None or self._over, max(until - time.monotonic(), 0)
            )
            link, self._link = self._link, None
        if link is None:
            raise DeadlineError(
                "peer-late",
                f"the other agent has not come for session {self.terms.session}",
                "See whether that agent runs and can reach the sync address of this node.",
            )
        return link

    def cancel(self) -> None:
        """Expect nobody any more; a connection that nobody has taken is closed."""
        self.end()
        self._forget(self)

    def end(self) -> None:
        """As `cancel`, for the one who keeps the list."""
        with self._changed:
            self._over = True
            link, self._link = self._link, None
            self._changed.notify_all()
        if link is not None:
            link.close()

    def deliver(self, link: PeerLink) -> None:
        """The connection is made."""
        with self._changed:
            self._used = True
            if not self._over:
                self._link = link
                self._changed.notify_all()
                return
        link.close()
