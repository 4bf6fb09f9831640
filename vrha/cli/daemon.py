"""What the daemons share: their log, and how they are told to stop."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from vrha.linux.notify import Init

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


_LOOK_S, _REMIND_S = 0.2, 60.0

log = logging.getLogger(__name__)


def log_to_stderr(verbose: bool) -> None:
    """Log lines on standard error, where init or the lab collects them."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format=FORMAT, stream=sys.stderr
    )
    for noisy in ("amqp", "kombu", "uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def handle(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def await_file(path: Path | None, stop: threading.Event, init: Init) -> bool:
    """Wait until `path` exists, if one is given; False when `stop` was set meanwhile.

    `init` hears that this is no failed start: who makes the file may be started after us.
    """
    remind = 0.0
    while path is not None and not path.exists():
        init.ready(f"waiting for {path}")
        init.alive()
        if time.monotonic() >= remind:
            remind = time.monotonic() + _REMIND_S
            log.warning("waiting for %s", path)
        if stop.wait(_LOOK_S):
            return False
    return True
