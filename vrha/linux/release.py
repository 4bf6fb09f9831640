"""The process that releases a packet hold when its agent is late, stopped or dead.

It is run as a script of its own, `release.py SECONDS INDEX:REQUEST...`, and imports nothing but the
standard library so that it starts in some 10 ms. REQUEST is the body of the RTM_NEWQDISC message
that opens the queue of the link INDEX. It says READY and waits for ARMED, from which its time runs.
When that is over, or its input ends at any point, it opens the queues and ends; when DONE comes
first it ends without doing anything.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence

READY, ARMED, DONE = b"r", b"a", b"d"
RTM_NEWQDISC = 36
_NLM_F_REQUEST, _NETLINK_ROUTE = 1, 0

FRAME = b"\x02" + bytes(5) + b"\x02" + bytes(5) + b"\x88\xb5"
"""A frame of the local experimental ethertype (IEEE 802): an instance drops it unseen. Sending one
makes a queue that has just been opened run (tbf_change starts nothing)."""


def main(argv: Sequence[str]) -> None:
    """Wait, release, end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    requests = {int(index): bytes.fromhex(body) for index, body in (a.split(":") for a in argv[2:])}
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE)
    senders = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) for _ in requests]
    for sender, index in zip(senders, requests, strict=True):
        sender.bind((socket.if_indextoname(index), 0))
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    if _told() == DONE:
        return
    armed, _, _ = select.select([sys.stdin.fileno()], [], [], float(argv[1]))
    if armed and _told() == DONE:
        return
    route.send(
        b"".join(
            struct.pack("=IHHII", 16 + len(body), RTM_NEWQDISC, _NLM_F_REQUEST, 0, 0) + body
            for body in requests.values()
        )
    )
    for sender in senders:
        with contextlib.suppress(OSError):
            sender.send(FRAME)


def _told() -> bytes:
    """The next word of the agent; empty when that is dead."""
    return os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    main(sys.argv)
