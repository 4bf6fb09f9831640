"""A watcher goes before what it watches."""

from __future__ import annotations

import contextlib
import gc
import os

PRIORITY = 10


def take_precedence() -> None:
    """Real time and no collector, where that is permitted: what is there now stays."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
