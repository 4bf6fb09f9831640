"""Programs that a watcher starts, and does not wait for."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Sequence


def spawn(command: Sequence[str]) -> tuple[int, int]:
    """Start a program: no precedence, a session of its own, this process's log. Its pid and pidfd.

    Raises OSError.
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    pid = os.posix_spawnp(
        command[0],
        tuple(command),
        os.environ,
        file_actions=[null],
        setsid=True,
        setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ),
        scheduler=(os.SCHED_OTHER, os.sched_param(0)),
    )
    # It cannot have been reaped, so it is the one.
    return pid, os.pidfd_open(pid)


class Child:
    """At most one program at a time. Readable (`fileno`) when it has ended."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._running: tuple[int, int] | None = None

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        """What runs goes on."""
        if self._running is not None:
            os.close(self._running[1])
        self._epoll.close()

    @property
    def pid(self) -> int | None:
        return self._running[0] if self._running else None

    def start(self, command: Sequence[str]) -> None:
        """Raises OSError."""
        self._running = spawn(command)
        self._epoll.register(self._running[1], select.EPOLLIN)

    def ended(self) -> int | None:
        """The exit code (negative: the signal) of one that has ended since; else None."""
        if self._running is None or not self._epoll.poll(0):
            return None
        pid, pidfd = self._running
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        self._running = None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def kill(self) -> None:
        """End what runs, with all that is of its session."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running[0], signal.SIGKILL)
