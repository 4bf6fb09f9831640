"""Files written by a thread of their own: a disk that hangs must not cost the node its lease."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable

from vrha.errors import VrhaError

log = logging.getLogger(__name__)

Job = Callable[[], None]
_LEAVE_S = 1.0


class Pen:
    """Does jobs one after the other. Readable (`fileno`) when one has ended since `look`.

    Of several for one file only the newest is done. `write`, `has_written` and `look` are for one
    thread.
    """

    def __init__(self, begin: Job = lambda: None) -> None:
        """`begin` is what the thread does first."""
        self._begin = begin
        self._changed = threading.Condition()
        self._jobs: dict[str, tuple[int, Job]] = {}
        self._count = 0
        self._written: dict[str, int] = {}
        self._failed: dict[str, tuple[int, VrhaError]] = {}
        self._is_closing = False
        self._news = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="pen", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._news

    def close(self) -> None:
        """Wait for what is still to be written, a second at most."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(_LEAVE_S)
        if not self._thread.is_alive():
            os.close(self._news)

    def write(self, file: str, job: Job) -> int:
        """Have `job` done, in place of one for the same file that has not begun; its number."""
        with self._changed:
            self._count += 1
            self._jobs.pop(file, None)
            self._jobs[file] = self._count, job
            self._changed.notify()
            return self._count

    def has_written(self, file: str, number: int) -> bool:
        """Whether that job, or a later one for the file, has been done. Raises what it raised."""
        with self._changed:
            if self._written.get(file, 0) >= number:
                return True
            failed, error = self._failed.get(file, (0, None))
            if error is not None and failed >= number:
                raise error
            return False

    def look(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._news)

    def _run(self) -> None:
        self._begin()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closing)
                if not self._jobs:
                    return
                file = next(iter(self._jobs))
                number, job = self._jobs.pop(file)
            error = _done(job)
            with self._changed:
                if error is None:
                    self._written[file] = number
                else:
                    self._failed[file] = number, error
            os.eventfd_write(self._news, 1)


def _done(job: Job) -> VrhaError | None:
    try:
        job()
    except VrhaError as error:
        return error
    return None
