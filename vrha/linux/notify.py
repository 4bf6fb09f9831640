"""What a daemon tells init about itself (sd_notify(3)): it serves, it lives, it goes.

One datagram each to the Unix socket that NOTIFY_SOCKET names. Without one nobody is told, and
everything works the same: by hand, in a lab, under another init.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_SOCKET, _USEC, _PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
_PATIENCE_S = 1.0
"""How long init may take to make room for what must not be lost."""
_LOOK_S = 0.005


class Init:
    """The init that started this process, if it wants to hear of it. For any thread that is in the
    network namespace of the node: a name without a file belongs to one (unix(7))."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes what concerns init out of `environment`: no child speaks for this process."""
        address = environment.pop(_SOCKET, "")
        usec = environment.pop(_USEC, "")
        ours = environment.pop(_PID, "") in ("", str(os.getpid()))
        self.watchdog_s = int(usec) / 1e6 if ours and usec.isdecimal() else None
        """Init ends this process when it was not `alive` for so long; None: it does not look."""
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._is_ready = False

    def ready(self, status: str = "") -> None:
        """It serves from now on. Told once, whoever calls it again."""
        if not self._is_ready:
            self._is_ready = True
            self._say("READY=1" + (f"\nSTATUS={status}" if status else ""), _PATIENCE_S)

    def alive(self) -> None:
        """The loop that does the work has come round. Never waits."""
        if self.watchdog_s is not None:
            self._say("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`. Never waits."""
        self._say(f"STATUS={text}")

    def stopping(self) -> None:
        """It ends in order."""
        self._say("STOPPING=1", _PATIENCE_S)

    def _say(self, text: str, patience_s: float = 0.0) -> None:
        if not self._address:
            return
        until = time.monotonic() + patience_s
        # Nothing that is worth anything to routers depends on who hears it.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as mouth,
        ):
            while True:
                try:
                    mouth.sendto(text.encode(), self._address)
                    return
                except BlockingIOError:
                    if time.monotonic() >= until:
                        return
                    time.sleep(_LOOK_S)
