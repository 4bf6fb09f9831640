"""The agent's beats: it says that it lives as long as all of it gets on.

What makes it stop: a process that is stopped; a main loop that turns no more; a piece of work that
lasts longer than anything that the agent does can last, since it waits for itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from vrha.linux.beats import AGENT_BEATS, Mouth, started
from vrha.linux.notify import Init

BEAT_S = 0.5
TURN_S = 60.0
"""Longest turn of the main loop: a broker that is reached and says nothing stalls it for long."""
WORK_S = 180.0
"""Longest piece of work; orchestrators give up a step long before."""


class Pulse:
    """Beats from `start` to `stop`. Made in the network namespace of the node."""

    def __init__(self, role: str, init: Init) -> None:
        """The watcher hears the beats, and `init`."""
        self._init = init
        self._said = f"{role} {started(os.getpid())}".encode()
        self._mouth = Mouth()
        self._turned = time.monotonic()
        self._work: dict[object, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        self._turned = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """The watcher hears of the end of the process by itself."""
        self._init.stopping()
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._mouth.close()

    def turned(self) -> None:
        """The main loop has made a turn."""
        self._turned = time.monotonic()
        self._init.ready()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """A piece of work; any number of them at the same time."""
        piece = object()
        self._work[piece] = time.monotonic()
        try:
            yield
        finally:
            del self._work[piece]

    def gets_on(self, now: float) -> bool:
        """Whether nothing has been stuck for too long; `now` of the monotonic clock, in s."""
        oldest = min(list(self._work.values()), default=now)
        return now - self._turned < TURN_S and now - oldest < WORK_S

    def _beat(self) -> None:
        while True:
            if self.gets_on(time.monotonic()):
                self._mouth.say(AGENT_BEATS, self._said)
                self._init.alive()
            if self._stop.wait(BEAT_S):
                return
