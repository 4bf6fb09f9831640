"""When a sweep is started: at most one at a time, and again after a pause while something is left.

Times are in ms on a monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Hashable


class Turns:
    """What happened so far. A `case` names what is to be swept and why; one that differs is new."""

    def __init__(self, pause_ms: float, limit_ms: float) -> None:
        """`limit_ms`: a sweep that takes longer is ended."""
        self._pause_ms = pause_ms
        self._limit_ms = limit_ms
        self._case: Hashable = None
        self.began_at: float | None = None
        """None while none runs."""
        self.ended_at = -math.inf
        self.code: int | None = None
        """Exit code of the last one, 0: nothing is left; None before the first."""

    def is_due(self, case: Hashable, now: float) -> bool:
        """Whether one is to be started for `case`, None: for nothing."""
        if case is None or self.began_at is not None:
            return False
        if case != self._case:
            return True
        return self.code != 0 and now - self.ended_at >= self._pause_ms

    def is_overdue(self, now: float) -> bool:
        """Whether the one that runs is to be ended."""
        return self.began_at is not None and now - self.began_at >= self._limit_ms

    def began(self, case: Hashable, now: float) -> None:
        self._case, self.began_at = case, now

    def ended(self, code: int, now: float) -> None:
        self.began_at, self.ended_at, self.code = None, now, code
