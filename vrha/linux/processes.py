"""Processes found by the network namespace they live in, and ended by pidfd.

The inode of the namespace is the only witness: a pid file may be missing under a live process,
and a pid may be another's by the time it is used.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from vrha.errors import StepError

Place = int | os.stat_result
"""A network namespace: a file descriptor of it, or what fstat(2) said of one. The latter holds only
while something keeps the namespace alive, for its inode may be another's afterwards."""


def inside(netns: Place) -> list[int]:
    """Pids of all processes whose main thread is in the namespace."""
    wanted = _identity(netns)
    return [pid for pid in _pids() if _is_in(pid, wanted)]


def is_inside(pid: int, netns: int) -> bool:
    """Whether the process lives (zombies do not) in the namespace of this file descriptor."""
    return _is_in(pid, os.fstat(netns))


def resident_kib(pid: int) -> int:
    """Memory that the process has for itself, in KiB (proc(5), RssAnon). Raises OSError."""
    with open(f"/proc/{pid}/status", "rb") as status:
        found = next((line for line in status if line.startswith(b"RssAnon:")), b"RssAnon: 0 kB")
    return int(found.split()[1])


def with_argument(argument: str) -> list[int]:
    """Pids of all processes, wherever they live, that were started with exactly this argument."""
    return [pid for pid in _pids() if argument.encode() in _arguments(pid)]


def end(pids: Iterable[int], netns: Place, grace_s: float, deadline_s: float = 2.0) -> None:
    """End processes of a namespace: SIGTERM, after `grace_s` seconds SIGKILL, and wait.

    A pid that meanwhile belongs to a process elsewhere is left alone. Raises StepError
    `process-stuck` for a process that is still there `deadline_s` after SIGKILL.
    """
    wanted = _identity(netns)
    fds: dict[int, int] = {}
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                fds[fd] = pid
                if not _is_in(pid, wanted):
                    del fds[fd]
                    os.close(fd)
        _signal(fds, signal.SIGTERM)
        _await_end(fds, grace_s)
        _signal(fds, signal.SIGKILL)
        _await_end(fds, deadline_s)
        if fds:
            raise StepError(
                "process-stuck",
                f"processes {sorted(fds.values())} do not end after SIGKILL",
                "They wait in the kernel (state D); look at /proc/PID/stack.",
            )
    finally:
        for fd in fds:
            os.close(fd)


def kill(pids: Mapping[int, int], deadline_s: float) -> tuple[set[int], set[int]]:
    """SIGKILL for processes, given with the inode of the network namespace of each.

    Returns who was killed, and who is still there `deadline_s` after that. A pid that meanwhile
    belongs to a process elsewhere is in neither. As many files are open meanwhile.
    """
    fds: dict[int, int] = {}
    try:
        for pid, inode in pids.items():
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                fds[fd] = pid
                if _inode(pid) != inode:
                    del fds[fd]
                    os.close(fd)
        met = set(fds.values())
        for fd in fds:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        _await_end(fds, deadline_s)
        left = set(fds.values())
        return met - left, left
    finally:
        for fd in fds:
            os.close(fd)


def _inode(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _signal(fds: dict[int, int], number: signal.Signals) -> None:
    for fd in fds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _await_end(fds: dict[int, int], seconds: float) -> None:
    """Wait until the processes have ended; those that did are closed and taken out of `fds`."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    end_at = time.monotonic() + seconds
    while fds:
        ended = poll.poll(max(0.0, end_at - time.monotonic()) * 1000)
        if not ended:
            return
        for fd, _ in ended:
            poll.unregister(fd)
            del fds[fd]
            os.close(fd)


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _identity(netns: Place) -> os.stat_result:
    return os.fstat(netns) if isinstance(netns, int) else netns


def _is_in(pid: int, wanted: os.stat_result) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
