"""Who may work on the node: many that build at a time, or one that changes what forwards.

A flip must find the node quiet: what builds and destroys holds the kernel's network lock (RTNL)
for milliseconds at a time, and this process's interpreter as well. So as soon as one that needs
the node for itself waits, no other begins.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vrha.errors import StepError

_LOOK_S = 0.25
"""How often those who wait look whether the agent is to end."""


class Turns:
    """The order of work on a node. Work on one router is never done side by side."""

    def __init__(self, is_over: Callable[[], bool] = bool) -> None:
        """`is_over`: nothing new shall begin any more."""
        self._changed = threading.Condition()
        self._is_over = is_over
        self._lines: dict[str, deque[Turn]] = {}
        self._sharing = 0
        self._alone = False
        self._wanting_alone = 0
        self._wanting_to_look = 0

    def line_up(self, router: str) -> Turn:
        """A place behind all work on the router for which somebody has lined up before.

        Whoever lines up must take the turn or `leave`.
        """
        turn = Turn(self, router)
        with self._changed:
            self._lines.setdefault(router, deque()).append(turn)
        return turn

    @contextmanager
    def shared(self) -> Iterator[None]:
        """The block runs beside others of its kind. Raises StepError `agent-ends`."""
        with self._changed:
            self._wait(lambda: not self._alone and not self._wanting_alone)
            self._sharing += 1
        with self._left_shared():
            yield

    @contextmanager
    def looking(self) -> Iterator[None]:
        """As `shared`, before all who wait: however much there is to do, others must see us live.

        Raises StepError `agent-ends`.
        """
        with self._changed:
            self._wanting_to_look += 1
            try:
                self._wait(lambda: not self._alone)
                self._sharing += 1
            finally:
                self._wanting_to_look -= 1
        with self._left_shared():
            yield

    @contextmanager
    def _left_shared(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The block runs while nothing else does. Raises StepError `agent-ends`."""
        with self._changed:
            self._wanting_alone += 1
            try:
                self._wait(self._is_quiet)
                self._alone = True
            finally:
                self._wanting_alone -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def await_first(self, turn: Turn) -> None:
        """Wait until all that lined up before has left. Raises StepError `agent-ends`."""
        with self._changed:
            self._wait(lambda: self._lines[turn.router][0] is turn)

    def leave(self, turn: Turn) -> None:
        """Let the next one of the router begin."""
        with self._changed:
            line = self._lines[turn.router]
            line.remove(turn)
            if not line:
                del self._lines[turn.router]
            self._changed.notify_all()

    def _is_quiet(self) -> bool:
        return not (self._alone or self._sharing or self._wanting_to_look)

    def _wait(self, may_begin: Callable[[], bool]) -> None:
        while not may_begin():
            if self._is_over():
                raise StepError("agent-ends", "the agent ends; the broker delivers it again")
            self._changed.wait(_LOOK_S)


class Turn:
    """A place in the line of a router."""

    def __init__(self, turns: Turns, router: str) -> None:
        self.router = router
        self._turns = turns

    @contextmanager
    def first(self) -> Iterator[None]:
        """The block runs when all before it have left, and is left with it.

        Raises StepError `agent-ends`.
        """
        try:
            self._turns.await_first(self)
            yield
        finally:
            self._turns.leave(self)
