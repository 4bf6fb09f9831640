"""For how long this machine runs nobody: a process with the precedence of a watcher that sleeps and
looks at the clock. What all nodes of a machine feel at once is no fault of any of them."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from vrha.watcher.precedence import PRIORITY

_EVERY_S = 0.005


@dataclass
class Stall:
    """`longest_ms` is known once the block has ended."""

    longest_ms: float = 0.0


@contextlib.contextmanager
def measured() -> Iterator[Stall]:
    """The longest stall during the block."""
    found = Stall()
    child = subprocess.Popen(
        [sys.executable, "-m", "tools.soaking.stall"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield found
    finally:
        said, _ = child.communicate("")
        found.longest_ms = float(said or 0)


def main() -> None:
    """Until standard input ends; then print the longest stall in ms."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    longest, before = 0.0, time.monotonic()
    while not select.select([sys.stdin], [], [], _EVERY_S)[0]:
        now = time.monotonic()
        longest, before = max(longest, now - before - _EVERY_S), now
    print(f"{longest * 1000:.1f}")


if __name__ == "__main__":
    main()
