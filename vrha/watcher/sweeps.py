"""The watcher's hand in a sweep: it starts the program that sweeps, and remembers how it ended."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from vrha.core.cleanup.turns import Turns
from vrha.watcher.children import Child

log = logging.getLogger(__name__)

LIMIT_MS = 600_000.0
_NOT_STARTED = 127
"""As of a shell."""


class Sweeps:
    """Readable (`fileno`) when there is something to `look` at. Nothing here waits."""

    def __init__(self, command: Sequence[str], pause_s: float) -> None:
        """`command`: empty for never. It is to return when the sweep has ended, 0 when nothing is
        left."""
        self._command = command
        self._turns = Turns(pause_s * 1000, LIMIT_MS)
        self._child = Child()

    def fileno(self) -> int:
        return self._child.fileno()

    def close(self) -> None:
        self._child.close()

    def look(self, case: Hashable, now: float) -> None:
        """Take what has ended, and begin what is due for `case` (None: nothing is to be swept)."""
        code = self._child.ended()
        if code is not None:
            self._turns.ended(code, now)
            log.log(
                logging.ERROR if code else logging.INFO,
                "the sweep has ended, %s",
                f"code {code}: something is left" if code else "nothing is left",
            )
        if self._turns.is_overdue(now):
            log.error("the sweep does not end: it is killed")
            self._child.kill()
        if self._command and self._turns.is_due(case, now):
            self._start(case, now)

    def tell(self, now: float) -> Mapping[str, Any]:
        """For `vrha watcher status`."""
        turns = self._turns
        last = None if turns.code is None else {"ms_ago": now - turns.ended_at, "code": turns.code}
        return {"on": bool(self._command), "pid": self._child.pid, "last": last}

    def _start(self, case: Hashable, now: float) -> None:
        self._turns.began(case, now)
        try:
            self._child.start(self._command)
        except OSError as error:
            log.error("no sweep: %s: %s", self._command[0], error.strerror)
            self._turns.ended(_NOT_STARTED, now)
            return
        log.warning("what the agent left is swept, pid %d", self._child.pid)
