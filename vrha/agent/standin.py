"""A stand-in: the agent's own code for a while, so that routers can leave a node without agent.

It builds nothing, goes when nothing is left to do, and makes room as soon as the agent is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from vrha.config.lock import is_swept, sole_user
from vrha.errors import RefusedError
from vrha.linux.beats import STAND_IN_CALLS, Ear, Mouth
from vrha.model.steps import Announce, Destroy, Mute, Offer, Relay, Step, Unmute

log = logging.getLogger(__name__)

STEPS: frozenset[type[Step]] = frozenset((Offer, Relay, Mute, Unmute, Announce, Destroy))
"""What it takes to give a router away, and to take it back when that fails."""
IDLE_S = 30.0
QUIET_S, GO_S = 3.0, 20.0
"""Asked to go, it sees through what it gives away, until no command has come for QUIET_S; GO_S is
the limit for that. An agent that falls again and again must not interrupt every move."""
_WAIT_S = 30.0
_AMBUSH_S = 10.0
_LOOK_S = 0.2


@contextmanager
def sole_agent(state_dir: Path) -> Iterator[None]:
    """As `sole_user`; a stand-in that has the state folder is asked to go, and waited for, and so
    is a sweep. Whoever just looks whether the folder is held has gone at the second try."""
    mouth, asked, tries = Mouth(), False, 0

    def is_going() -> bool:
        # One that has heard it hears nothing more while it goes.
        nonlocal asked, tries
        tries += 1
        asked = mouth.say(STAND_IN_CALLS, b"go") or asked
        return asked or tries == 1 or is_swept(state_dir)

    try:
        with _waiting(state_dir, _WAIT_S, is_going):
            yield
    finally:
        mouth.close()


def sole_stand_in(state_dir: Path) -> AbstractContextManager[None]:
    """As `sole_user`; an agent may have the state folder for the moment in which it falls."""
    return _waiting(state_dir, _AMBUSH_S, lambda: True)


@contextmanager
def _waiting(state_dir: Path, wait_s: float, may_wait: Callable[[], bool]) -> Iterator[None]:
    deadline = time.monotonic() + wait_s
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(sole_user(state_dir, "agent"))
                break
            except RefusedError:
                if not may_wait() or time.monotonic() > deadline:
                    raise
            time.sleep(_LOOK_S)
        yield


class Leave:
    """Sets `stop` when the stand-in has to go. `busy` says whether a router is being given away."""

    def __init__(self, busy: Callable[[], bool], name: str = STAND_IN_CALLS) -> None:
        """Raises OSError when another one is there."""
        self._ear = Ear(name)
        self._busy = busy
        self._used = time.monotonic()
        self._asked: float | None = None

    def used(self) -> None:
        """A command has come."""
        self._used = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set, by whomever."""
        while not stop.wait(_LOOK_S):
            now = time.monotonic()
            if list(self._ear.receive()) and self._asked is None:
                self._asked = now
            if self.goes(now):
                log.info("the stand-in goes")
                stop.set()
        self._ear.close()

    def goes(self, now: float) -> bool:
        """Whether it is time; `now` of the monotonic clock, in s."""
        if self._busy():
            self._used = now
        if self._asked is None:
            return now - self._used > IDLE_S
        return now - self._used > QUIET_S or now - self._asked > GO_S
