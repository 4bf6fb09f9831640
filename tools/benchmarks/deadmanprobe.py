"""Numbered frames at a steady rate, and who received which of them, and when.

`python -m tools.benchmarks.deadmanprobe PORT INTERVAL_US COUNT` sends COUNT frames (0: without end)
by a port of the namespace it is in, then says `done` and stays.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import time

ETHERTYPE = 0x88B5
"""For local experiments (IEEE 802)."""
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_NUMBER = struct.Struct("!Q")
_PRIORITY = 10


def main() -> None:
    port, interval_us, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((port, 0))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    head = b"\xff" * 6 + sock.getsockname()[4] + struct.pack("!H", ETHERTYPE)
    number = 0
    due = time.monotonic()
    while count == 0 or number < count:
        sock.send(head + _NUMBER.pack(number) + bytes(38))
        number += 1
        due = max(due + interval_us / 1e6, time.monotonic() - 0.001)
        time.sleep(max(0.0, due - time.monotonic()))
    print("done", flush=True)
    sys.stdin.read()


class Ear:
    """A port of the calling thread's namespace; times are the kernel's, taken on arrival."""

    def __init__(self, port: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind((port, ETHERTYPE))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def heard(self) -> dict[int, int]:
        """Number of each frame since the last call, and when it came (monotonic clock, ns)."""
        offset = _offset_ns()
        found = {}
        while True:
            try:
                frame, extra, _, _ = self._socket.recvmsg(128, 64)
            except BlockingIOError:
                return found
            seconds, ns = struct.unpack("=qq", extra[0][2])
            found[_NUMBER.unpack_from(frame, 14)[0]] = seconds * 1_000_000_000 + ns - offset


def _offset_ns() -> int:
    """Wall clock minus monotonic clock, from the quickest of some looks."""
    looks = []
    for _ in range(5):
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        looks.append((after - before, wall - (before + after) // 2))
    return min(looks)[1]


if __name__ == "__main__":
    main()
