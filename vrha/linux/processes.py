"""Processes found by the network namespace they live in, and ended by pidfd.

The namespace is the only witness: a pid file may be missing under a live process, and a pid may be
another's by the time it is used. It is told by the inode of /proc/PID/net/dev: each namespace has
one of its own, everybody may see it, and it is looked up anew each time (fs/proc/proc_net.c).
What /proc/PID/ns/net says is for those only who may trace the process (CAP_SYS_PTRACE).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vrha.errors import PreconditionError, StepError
from vrha.linux.netns import current, entered


@dataclass(frozen=True, slots=True)
class Mark:
    """Of a network namespace. It holds only while something keeps the namespace alive, for it may
    be another's afterwards."""

    device: int
    inode: int


Place = int | Mark
"""A network namespace: a file descriptor of it, or its mark."""


def need_sight() -> None:
    """Raises PreconditionError `processes-hidden` where those of others cannot be seen."""
    try:
        os.stat("/proc/1/net/dev")
    except OSError as error:
        raise _hidden() from error


def mark(netns: int) -> Mark:
    """Of the namespace of this file descriptor; the calling thread looks from inside."""
    home = current()
    try:
        with entered(netns, home):
            return _mark_of(os.stat("/proc/thread-self/net/dev"))
    finally:
        os.close(home)


@contextlib.contextmanager
def home_of(pid: int) -> Iterator[Mark]:
    """The namespace that a process lives in, which is kept alive during the block.

    Raises FileNotFoundError, ProcessLookupError.
    """
    # An open file of a namespace holds it, as a socket does (fs/proc/proc_net.c, seq_open_net).
    fd = os.open(f"/proc/{pid}/net/dev", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _mark_of(os.fstat(fd))
    finally:
        os.close(fd)


def inside(netns: Place) -> list[int]:
    """Pids of all other processes whose main thread is in the namespace.

    Raises PreconditionError `processes-hidden`.
    """
    wanted = _wanted(netns)
    return [pid for pid in _pids() if pid != os.getpid() and _is_in(pid, wanted)]


def is_inside(pid: int, netns: Place) -> bool:
    """Whether the process lives (zombies do not) in the namespace. Raises as `inside`."""
    return _is_in(pid, _wanted(netns))


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
    `process-stuck` for a process that is still there `deadline_s` after SIGKILL, and as `inside`.
    """
    wanted = _wanted(netns)
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
    """SIGKILL for processes, given with the inode of the network namespace of each, as whoever
    may trace them sees it (/proc/PID/ns/net).

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


def _wanted(netns: Place) -> Mark:
    # Who is not seen must not pass for one who is not there.
    need_sight()
    return mark(netns) if isinstance(netns, int) else netns


def _is_in(pid: int, wanted: Mark) -> bool:
    try:
        return _mark_of(os.stat(f"/proc/{pid}/net/dev")) == wanted
    except PermissionError as error:
        raise _hidden() from error
    except OSError:
        return False


def _mark_of(found: os.stat_result) -> Mark:
    return Mark(found.st_dev, found.st_ino)


def _hidden() -> PreconditionError:
    return PreconditionError(
        "processes-hidden",
        "/proc does not show the processes of others (hidepid=)",
        "mount -o remount,hidepid=0 /proc; or give the agent CAP_SYS_PTRACE.",
    )
