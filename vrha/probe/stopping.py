"""When a command stops: on signals, or with the process that started it."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_on_signal(parent: int | None = None) -> threading.Event:
    """An event set by the first SIGINT, SIGTERM or SIGHUP, or when process `parent` has gone.

    A second signal raises SystemExit in the main thread, so that all is still cleaned up.
    """
    stop = threading.Event()

    def handle(number: int, _: object) -> None:
        if stop.is_set():
            sys.exit(128 + number)
        stop.set()

    for number in _SIGNALS:
        # What nohup(1) has set stays.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    if parent is not None:
        threading.Thread(target=_stop_with, args=(parent, stop), daemon=True).start()
    return stop


def _stop_with(parent: int, stop: threading.Event) -> None:
    # PR_SET_PDEATHSIG would fire when the thread that forked us ends, not its process.
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(parent)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll()
        os.close(fd)
    stop.set()
