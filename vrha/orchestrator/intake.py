"""What agents say, in the order in which it came: as much in one transaction as has come meanwhile.

Each transaction waits for the disk; while it does, others bring the next messages.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from vrha.errors import NotLeaderError, UnreachableError
from vrha.orchestrator.engine import Engine, Said


@dataclass(slots=True, eq=False)
class _Waiting:
    """A message, and what has become of it."""

    said: Said
    settled: bool = False
    error: Exception | None = None


class Intake:
    """Of one engine. `take` is for one thread at a time, what it returns for as many as like."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting] = deque()

    def take(self, body: bytes, sender: str) -> Callable[[], None]:
        """A message from the agent of node `sender`, in the order of the calls; what returns when
        the store has it, and raises as `Engine.receive_all`.

        Raises InputError for what is none.
        """
        waiting = _Waiting(self._engine.admit(body, sender))
        self._waiting.append(waiting)
        return partial(self._settle, waiting)

    def _settle(self, mine: _Waiting) -> None:
        with self._turn:
            if not mine.settled:
                self._receive([self._waiting.popleft() for _ in range(len(self._waiting))])
        if mine.error is not None:
            raise mine.error

    def _receive(self, all_waiting: Sequence[_Waiting]) -> None:
        try:
            self._engine.receive_all([each.said for each in all_waiting])
        except Exception as error:
            if len(all_waiting) == 1 or _is_of_the_store(error):
                for each in all_waiting:
                    each.error = error
            else:
                # One of them is the cause; the others must not suffer for it.
                for each in all_waiting:
                    self._receive([each])
        for each in all_waiting:
            each.settled = True


def _is_of_the_store(error: Exception) -> bool:
    """Whether no message can be the cause: to try each by itself would only take its time."""
    if isinstance(error, UnreachableError):
        return error.code != "store-failed"
    return isinstance(error, NotLeaderError)
