"""Which process is meant: a pid together with its start time, so that a reused pid is no match."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_STATE = 0
_START_TIME = 19
"""Positions in /proc/PID/stat after the command name (proc(5))."""


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One life of one process, as seen from this pid namespace; `start` in clock ticks."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now; None when there is none."""
        fields = _stat(pid)
        return cls(pid, int(fields[_START_TIME])) if fields else None

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        fields = _stat(self.pid)
        return (
            fields is not None
            and int(fields[_START_TIME]) == self.start
            and fields[_STATE] not in ("Z", "X")
        )

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send a signal to exactly this process; False when it is gone."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            if not self.alive:
                return False
            signal.pidfd_send_signal(pidfd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)
        return True

    def wait_gone(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for its end; reaps it when it is our child.

        A process whose first thread has ended may still hold files and ports by its others, so
        only the pidfd tells, not the state in /proc.
        """
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError:
            return True
        try:
            fields = _stat(self.pid)
            if fields is None or int(fields[_START_TIME]) != self.start:
                return True
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if not poller.poll(max(0, timeout) * 1000):
                return False
        finally:
            os.close(pidfd)
        self.reap()
        return True

    def reap(self) -> None:
        """Take the exit status if the process is our child and has ended."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)


def wait_until_gone(processes: list[ProcessId], timeout: float) -> list[ProcessId]:
    """Those of `processes` that still run after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    return [p for p in processes if not p.wait_gone(deadline - time.monotonic())]
