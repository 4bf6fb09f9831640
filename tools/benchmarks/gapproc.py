"""Programs that are measured: on a core of their own, with their CPU time, and surely ended."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import IO

_END_LIMIT_S = 20.0


def cores() -> tuple[int, int]:
    """The core of who is measured, and that of all else; the same on a machine with one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1]


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread, and what it starts meanwhile, stays on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(
    argv: Sequence[str], core: int, out: IO[bytes] | None = None, netns: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A program on a core while the context lasts, all that it says in `out`.

    It ends with us, however we end. `netns` is the path of its namespace, if not ours.
    """
    enter = ["nsenter", f"--net={netns}"] if netns else []
    sink = subprocess.DEVNULL if out is None else out
    with pinned(core):
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *enter, *argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(_END_LIMIT_S)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C does, and wait for the last words. Raises subprocess.TimeoutExpired."""
    process.send_signal(signal.SIGINT)
    process.wait(_END_LIMIT_S)


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far, by its clock (clock_getcpuclockid(3)).

    Raises OSError when it has gone.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def children_cpu_s() -> float:
    """CPU seconds, user and system, of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
