"""Keeping the connections of two instances alike: what one learns, the other is told.

Both ways, because both forward during a handover, and because a roll-back takes the traffic back
to the old one. A thread does it; `drain` does it at once, for the moment of the flip.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time

from vrha.errors import VrhaError
from vrha.linux import netns
from vrha.linux.conntrack import Source, Target
from vrha.linux.urgency import urgent
from vrha.model.evidence import Carried

log = logging.getLogger(__name__)

_HARDLY_ANYTHING = 50
"""Changes that are brought over in about a millisecond."""


class Following:
    """Follows from construction to `close`; `old` and `new` are file descriptors of namespaces."""

    def __init__(self, old: int, new: int, home: int) -> None:
        """Subscribes first, so that nothing is missed between the copy and the events.

        Raises StepError with the codes of `vrha.linux.conntrack`.
        """
        with contextlib.ExitStack() as stack:
            with netns.entered(old, home):
                from_old = stack.enter_context(contextlib.closing(Source()))
                into_old = stack.enter_context(contextlib.closing(Target()))
            with netns.entered(new, home):
                from_new = stack.enter_context(contextlib.closing(Source()))
                into_new = stack.enter_context(contextlib.closing(Target()))
            from_old.ignore(into_old.port_id)
            from_new.ignore(into_new.port_id)
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, self._wake)
            self._resources = stack.pop_all()
        self._forward, self._backward = (from_old, into_new), (from_new, into_old)
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="following", daemon=True)

    def copy(self) -> Carried:
        """Copy all that the old one has, then follow in the background."""
        self._dump(*self._forward)
        self._thread.start()
        return self.carried()

    def catch_up(self, limit_s: float) -> bool:
        """Bring over what has piled up; whether hardly anything waits any more.

        False after `limit_s`: more changes than can be carried.
        """
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            if self.drain() <= _HARDLY_ANYTHING:
                return True
        return False

    def drain(self) -> int:
        """Bring over what waits now; how many changes that were."""
        with self._lock:
            return 0 if self._stopped else self._pass()

    def carried(self) -> Carried:
        """What the new one has taken so far."""
        return self._forward[1].carried()

    def close(self) -> None:
        """Stop following; both instances keep what they have."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._resources.close()

    def _follow(self) -> None:
        poll = select.poll()
        for source, _ in (self._forward, self._backward):
            poll.register(source.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        with urgent():
            self._loop(poll)

    def _loop(self, poll: select.poll) -> None:
        while True:
            poll.poll()
            try:
                with self._lock:
                    if self._stopped:
                        return
                    self._pass()
                for source, target in (self._forward, self._backward):
                    if source.overrun:
                        self._dump(source, target)
            except (VrhaError, OSError):
                # The instance has gone, or the kernel refuses: the flip will find out.
                log.exception("connections are no longer followed")
                return

    def _pass(self) -> int:
        moved = 0
        for source, target in (self._forward, self._backward):
            changes = source.pending()
            if changes:
                target.apply(changes)
            moved += len(changes)
        return moved

    def _dump(self, source: Source, target: Target) -> None:
        """Copy everything, and what happens meanwhile: left waiting, it would be too much."""
        chunks = source.dump()
        while True:
            with self._lock:
                chunk = None if self._stopped else next(chunks, None)
                if chunk is None:
                    return
                target.apply(chunk)
                self._pass()
