"""Precedence on the processor for the milliseconds that matter, and for threads that follow."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

NICE = -15


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
