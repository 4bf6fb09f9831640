"""Precedence on the processor for the milliseconds that matter, and for threads that follow."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from collections.abc import Iterator

NICE = -15
SWITCH_S = 0.001
"""How long a thread may compute while others wait. One that asks the kernel again and again, or
hears nodes, has little to do after each answer, and would wait five times as long for it."""


def settle() -> None:
    """What is in memory now stays: the collector looks at it no more (gc.freeze)."""
    gc.collect()
    gc.freeze()


def take_turns() -> None:
    """Threads of this process let each other in sooner."""
    sys.setswitchinterval(SWITCH_S)


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """The calling thread alone goes before others; nothing changes where that is not permitted.

    Linux keeps the nice value by thread (setpriority(2), C library/kernel differences). Programs
    that are started in the block inherit it.
    """
    thread = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, thread)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, NICE)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, before)
