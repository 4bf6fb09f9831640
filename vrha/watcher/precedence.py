"""A watcher goes before what it watches."""

from __future__ import annotations

import contextlib
import gc
import os

PRIORITY = 10


def settle() -> None:
    """What is there now stays: the collector looks at it no more."""
    gc.collect()
    gc.freeze()


def take_precedence() -> None:
    """Real time for the calling thread, where that is permitted."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
