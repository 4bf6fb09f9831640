"""A watcher goes before what it watches."""

from __future__ import annotations

import contextlib
import os

PRIORITY = 10


def take_precedence() -> None:
    """Real time for the calling thread, where that is permitted."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
