"""The process that keeps a node alive, and that the measurement stops.

`python -m tools.benchmarks.deadmanrenewer STATE PORT SLICE_MS` obeys lines on its standard input:

`paced`: activate, then renew every third of a slice until the kernel refuses.
`paused` / `unconditional`: the same, but after the third renewal look at the clock, stop, and go on
with what was decided before, by compare-and-swap or by a batch that always succeeds.
`storm SECONDS`: renew as quickly as possible until they are over or a line comes.

It says `live` when it has activated, and at the end `done` with a JSON object. STATE is a file of
16 bytes: when the last renewal began and ended, in ns of the monotonic clock.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vrha.linux import nftwire
from vrha.linux.deadman import DeadMan
from vrha.linux.netlink import Netlink

ARM_MS = 1000
STORM_SLICE_MS = 1000
_LATE_TRIES = 3
_SAMPLE = 5000
_PRIORITY = 5
_ETHERNET = struct.pack("=H", 1)


class Renewer:
    """One kept switch, and what its renewals took: microseconds of the clock and of CPU."""

    def __init__(self, state: Path, port: str, slice_ms: int) -> None:
        self.dead_man = DeadMan()
        self.port, self.slice_ms = port, slice_ms
        self.kernel = Netlink(nftwire.NETLINK_NETFILTER)
        self.costs: list[tuple[float, float]] = []
        with state.open("r+b") as file:
            self.shared = mmap.mmap(file.fileno(), 16)

    def activate(self, slice_ms: int) -> None:
        self.dead_man.grant(frozenset({self.port}))
        self.dead_man.arm(ARM_MS)
        self.costs = []
        self.timed(lambda: self.dead_man.fire(slice_ms))
        print("live", flush=True)

    def timed(self, change: Callable[[], bool]) -> bool:
        """Carry it out between the two times that the measurement reads."""
        used, begin = time.thread_time_ns(), time.monotonic_ns()
        struct.pack_into("=q", self.shared, 0, begin)
        held = change()
        if held:
            end = time.monotonic_ns()
            struct.pack_into("=q", self.shared, 8, end)
            used = time.thread_time_ns() - used
            self.costs.append((round((end - begin) / 1000, 1), round(used / 1000, 1)))
        return held

    def renew(self) -> bool:
        return self.timed(lambda: self.dead_man.renew(self.slice_ms))

    def paced(self) -> dict[str, object]:
        """Renew until refused; then try again, since that must not help either."""
        self.activate(self.slice_ms)
        with _preferred():
            while self.renew():
                time.sleep(self.slice_ms / 3000)
        revived = 0
        for _ in range(_LATE_TRIES):
            time.sleep(0.005)
            revived += self.dead_man.renew(self.slice_ms)
        return {"revived": revived, "costs_us": self.costs[1:]}

    def paused(self, change: Callable[[], bool]) -> dict[str, object]:
        """Stop between looking at the clock and the change."""
        self.activate(self.slice_ms)
        for _ in range(3):
            self.renew()
            time.sleep(self.slice_ms / 3000)
        lease_end = time.monotonic() + 2 * self.slice_ms / 1000
        may = time.monotonic() + self.slice_ms / 1000 <= lease_end
        os.kill(os.getpid(), signal.SIGSTOP)
        return {"revived": int(may and change())}

    def unconditional(self) -> bool:
        """What must never be done: it lets the node speak, whatever the time."""
        ending = nftwire.element(_ETHERNET, self.slice_ms)
        changes = nftwire.flush(nftwire.LIVE), nftwire.add(nftwire.LIVE, ending)
        self.kernel.talk(nftwire.transaction(*changes))
        return True

    def storm(self, seconds: float) -> dict[str, object]:
        """Renew without a pause; the slice is long, so that no stall of the machine ends it."""
        self.activate(STORM_SLICE_MS)
        end = time.monotonic() + seconds
        refused = 0
        while time.monotonic() < end and not select.select([sys.stdin], [], [], 0)[0]:
            refused += not self.timed(lambda: self.dead_man.renew(STORM_SLICE_MS))
        return {
            "count": len(self.costs),
            "refused": refused,
            "costs_us": self.costs[1 :: 1 + len(self.costs) // _SAMPLE],
        }


@contextlib.contextmanager
def _preferred() -> Iterator[None]:
    """As the process that holds a lease should run, where that is permitted."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def main() -> None:
    renewer = Renewer(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    gc.disable()
    while line := os.read(0, 100).decode().split():
        match line:
            case ["paced"]:
                said = renewer.paced()
            case ["paused"]:
                said = renewer.paused(renewer.renew)
            case ["unconditional"]:
                said = renewer.paused(renewer.unconditional)
            case ["storm", seconds]:
                said = renewer.storm(float(seconds))
            case _:
                continue
        print("done", json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
