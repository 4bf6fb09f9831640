"""A watcher beside the agent of another: without keys, lease or voters.

It sees the agent's end, gives it a grace to come back, and starts the sweep when it does not;
unless the agent was stopped on purpose.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vrha.core.cleanup.decide import Agent, Choice, Situation, decide
from vrha.fencing.clock import clock_ms
from vrha.linux.urgency import settle
from vrha.watcher import situation
from vrha.watcher.mainprocess import MainProcess
from vrha.watcher.precedence import take_precedence
from vrha.watcher.status import StatusSocket
from vrha.watcher.sweeps import Sweeps

log = logging.getLogger(__name__)

_LOOK_MS = 50
"""How often an agent that is away is looked for."""


@dataclass(frozen=True, slots=True)
class AloneSettings:
    """Of `vrha-watcher --profile`. Nothing is swept before all of `agents` have been gone for
    `grace_s`; `command` and `pause_s` as in `CleanupTable`. `sweep_stopped`: as well where init was
    told to stop one of them."""

    profile: str
    agents: Sequence[MainProcess]
    command: Sequence[str]
    socket: Path
    grace_s: float = 60.0
    pause_s: float = 60.0
    sweep_stopped: bool = False


@dataclass(slots=True)
class _Watch:
    """One agent. `pidfd` is None while it is away, which it has been since `since`."""

    process: MainProcess
    since: float
    pid: int | None = None
    pidfd: int | None = None
    deaths: int = field(default=0)


class Alone:
    """`run` returns when `stop` becomes readable."""

    def __init__(self, settings: AloneSettings) -> None:
        """Raises PreconditionError `socket-in-use`, `unwritable`."""
        self._settings = settings
        self._held = contextlib.ExitStack()
        self._epoll = select.epoll()
        self._held.callback(self._epoll.close)
        self._sweeps = Sweeps(settings.command, settings.pause_s)
        self._held.callback(self._sweeps.close)
        self._status = StatusSocket(settings.socket, self.tell)
        self._held.callback(self._status.close)
        now = clock_ms()
        self._watches = [_Watch(process, now) for process in settings.agents]

    def run(self, stop: int) -> None:
        settle()
        take_precedence()
        with self._held:
            for fd in (stop, self._sweeps.fileno(), self._status.fileno()):
                self._epoll.register(fd, select.EPOLLIN)
            log.info("watches %s, pid %d", ", ".join(self._names()), os.getpid())
            while True:
                self._look()
                ready = {fd for fd, _ in self._epoll.poll(self._wait_s())}
                for watch in self._watches:
                    if watch.pidfd in ready:
                        self._ended(watch)
                if self._status.fileno() in ready:
                    self._status.answer()
                if stop in ready:
                    return

    def situation(self, now: float) -> Situation:
        """The agents are one to the sweep: it is dead when the last of them is, and stopped when
        one of them is that."""
        gone = [now - watch.since for watch in self._watches if watch.pidfd is None]
        is_gone = len(gone) == len(self._watches)
        agent = Agent.ALIVE
        if is_gone:
            is_stopped = any(watch.process.is_stopped() for watch in self._watches)
            keeps = is_stopped and not self._settings.sweep_stopped
            agent = Agent.STOPPED if keeps else Agent.DEAD
        missing_ms = min(gone) if is_gone else 0.0
        return Situation(agent, missing_ms, self._settings.grace_s * 1000)

    def tell(self) -> dict[str, Any]:
        """For `vrha watcher status`; times in ms."""
        now = clock_ms()
        return {
            "profile": self._settings.profile,
            "pid": os.getpid(),
            "agents": {
                watch.process.name: {
                    "pid": watch.pid,
                    "missing_ms": None if watch.pidfd is not None else now - watch.since,
                    "deaths": watch.deaths,
                    "stopped": watch.pidfd is None and watch.process.is_stopped(),
                }
                for watch in self._watches
            },
            **situation.status(self.situation(now), self._sweeps.tell(now)),
        }

    def _look(self) -> None:
        for watch in self._watches:
            if watch.pidfd is None:
                self._find(watch)
        now = clock_ms()
        is_due = decide("", self.situation(now)).choice is Choice.SWEEP
        # Another death is another case.
        case = tuple(watch.deaths for watch in self._watches) if is_due else None
        self._sweeps.look(case, now)

    def _wait_s(self) -> float | None:
        is_all_well = all(watch.pidfd is not None for watch in self._watches)
        return None if is_all_well else _LOOK_MS / 1000

    def _find(self, watch: _Watch) -> None:
        pid = watch.process.find()
        if pid is None:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return
        # The pid may have become another's before it was opened.
        if not watch.process.is_still(pid):
            os.close(pidfd)
            return
        watch.pid, watch.pidfd = pid, pidfd
        self._epoll.register(pidfd, select.EPOLLIN)
        log.info("%s is there, pid %d", watch.process.name, pid)

    def _ended(self, watch: _Watch) -> None:
        watch.since = clock_ms()
        if watch.pidfd is not None:
            self._epoll.unregister(watch.pidfd)
            os.close(watch.pidfd)
        watch.pidfd = None
        watch.deaths += 1
        log.warning("%s has ended, pid %s", watch.process.name, watch.pid)

    def _names(self) -> list[str]:
        return [watch.process.name for watch in self._watches]
