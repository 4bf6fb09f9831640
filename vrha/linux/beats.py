"""Short datagrams between processes of one node, by a name that no file has.

Abstract names (unix(7)) belong to a network namespace: nodes that share a machine stay apart. The
kernel says who sent each datagram; what others than root, or the own user, send is dropped.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

AGENT_BEATS = "vrha-agent-beats"
"""Where the watcher hears agents."""
STAND_IN_CALLS = "vrha-stand-in"
"""Where a stand-in hears that the agent wants its place."""

_AT_ONCE = 64
_MOST = 256
_CREDENTIALS = struct.Struct("3i")
_START_TIME = 19
"""Position in /proc/PID/stat after the command name (proc(5))."""


def started(pid: int) -> int | None:
    """When the process began, in clock ticks since boot; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[_START_TIME])


class Ear:
    """Hears what is said to `name` in the network namespace in which it was made."""

    def __init__(self, name: str) -> None:
        """Raises OSError, EADDRINUSE among others: somebody else has the name."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind(f"\0{name}")
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """What has come, some dozen at most: (pid of the sender, what it said). Never waits."""
        for _ in range(_AT_ONCE):
            try:
                data, extra, _, _ = self._socket.recvmsg(
                    _MOST, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except OSError:
                return
            for level, kind, body in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    pid, uid, _ = _CREDENTIALS.unpack(body[: _CREDENTIALS.size])
                    if uid in (0, os.geteuid()):
                        yield pid, data


class Mouth:
    """Says things to whoever hears a name in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        self._socket.close()

    def say(self, name: str, data: bytes) -> bool:
        """Whether somebody was there to hear it, and had room for it."""
        with contextlib.suppress(OSError):
            return self._socket.sendto(data, f"\0{name}") == len(data)
        return False
