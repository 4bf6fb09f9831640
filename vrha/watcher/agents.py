"""The agent of the node as the watcher sees it: alive, dead, or stuck; and who stands in for it.

An agent shows by beats that it gets on; that its process has ended is seen at once (pidfd). Nothing
here waits: not for a process, not for a socket.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vrha.linux.beats import AGENT_BEATS, Ear, started
from vrha.model.ownership import Health
from vrha.watcher.children import Child
from vrha.watcher.settings import AgentTable

log = logging.getLogger(__name__)

AGENT, STAND_IN = "agent", "stand-in"

_EAR_AGAIN_MS = 1000.0
_AWAY_MS = 1000.0
"""The time in which this process did not look is nobody's silence."""
_AGAIN_MS = 5000.0
"""Between two stand-ins."""


@dataclass(slots=True)
class _Life:
    """One process; `pidfd` is closed and None once it has ended."""

    pid: int
    start: int
    pidfd: int | None
    beaten_at: float
    ended_at: float
    """Where `pidfd` is None: when that was noticed."""


class Agents:
    """Agent and stand-in of this node. Readable (`fileno`) when there is something to `look` at."""

    def __init__(
        self, settings: AgentTable, memory: Path, now: float, name: str = AGENT_BEATS
    ) -> None:
        """`memory`: a file for this boot; by it the next watcher knows whose end it missed."""
        self._name = name
        self._settings = settings
        self._memory = memory
        self._epoll = select.epoll()
        self._ear: Ear | None = None
        self._ear_at = now
        self._looked = now
        self._lives: dict[str, _Life] = {}
        self._child = Child()
        self._epoll.register(self._child.fileno(), select.EPOLLIN)
        self._began = self._asked_until = now
        self._spawned_at = now - _AGAIN_MS
        self._listen(now)
        self._remember(now)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        if self._ear is not None:
            self._ear.close()
        self._child.close()
        self._epoll.close()

    def look(self, now: float) -> None:
        """Take what has come, and do what is due."""
        away = now - self._looked
        self._looked = now
        if away > _AWAY_MS:
            for life in self._lives.values():
                life.beaten_at += away
        self._listen(now)
        if self._ear is not None:
            for pid, said in self._ear.receive():
                self._beat(pid, said, now)
        for fd, _ in self._epoll.poll(0):
            self._ended(fd, now)
        self._child.ended()
        if now < self._asked_until:
            self._relieve(now)

    def health(self, now: float) -> Health:
        """As of the last look."""
        agent = self._lives.get(AGENT)
        if agent is None:
            found = Health.AGENT_UNKNOWN
        elif agent.pidfd is None:
            found = Health.AGENT_DEAD
        else:
            found = Health.AGENT_HUNG if self._is_stuck(agent, now) else Health(0)
        other = self._lives.get(STAND_IN)
        there = other is not None and other.pidfd is not None and not self._is_stuck(other, now)
        return found | Health.STAND_IN if there else found

    def missing_ms(self, now: float) -> float:
        """For how long this watcher has known of no agent; 0.0 while there is one."""
        agent = self._lives.get(AGENT)
        if agent is None:
            return now - self._began
        return now - agent.ended_at if agent.pidfd is None else 0.0

    @property
    def agent(self) -> tuple[int, int] | None:
        """The last one that was seen: pid, and when it began (ticks since boot)."""
        agent = self._lives.get(AGENT)
        return None if agent is None else (agent.pid, agent.start)

    def end_stuck(self, after_ms: float, now: float) -> None:
        """Kill an agent that has been stuck for so long: init brings the next one."""
        agent = self._lives.get(AGENT)
        if agent is not None and self._is_stuck(agent, now - after_ms):
            self._kill(agent)

    def relieve(self, seconds: float, now: float) -> None:
        """For so long a stand-in may take the place of an agent that is dead or stuck."""
        self._asked_until = now + seconds * 1000

    def tell(self, now: float) -> Mapping[str, Any]:
        """For `vrha watcher status`."""
        return {
            role: {
                "pid": life.pid,
                "alive": life.pidfd is not None,
                "beat_ms_ago": round(now - life.beaten_at),
            }
            for role, life in self._lives.items()
        } | {"health": int(self.health(now))}

    def _is_stuck(self, life: _Life, now: float) -> bool:
        return now - life.beaten_at > self._settings.hung_after_s * 1000

    # ---- who is there

    def _listen(self, now: float) -> None:
        if self._ear is not None or now < self._ear_at:
            return
        try:
            self._ear = Ear(self._name)
        except OSError as error:
            # A lease is worth more than the news of the agent.
            self._ear_at = now + _EAR_AGAIN_MS
            log.error("agents are not heard: %s", error.strerror)
            return
        self._epoll.register(self._ear.fileno(), select.EPOLLIN)

    def _beat(self, pid: int, said: bytes, now: float) -> None:
        with contextlib.suppress(ValueError):
            role, start = said.decode().split()
            if role not in (AGENT, STAND_IN):
                return
            life = self._lives.get(role)
            if life is not None and (life.pid, life.start) == (pid, int(start)):
                life.beaten_at = now
            else:
                self._meet(role, pid, int(start), now)

    def _meet(self, role: str, pid: int, start: int, now: float) -> None:
        pidfd = _open(pid, start)
        before = self._lives.get(role)
        if pidfd is None:
            return
        if before is not None:
            self._forget(before, now)
        self._epoll.register(pidfd, select.EPOLLIN)
        self._lives[role] = _Life(pid, start, pidfd, now, now)
        log.info("%s is there, pid %d", role, pid)
        if role == AGENT:
            with contextlib.suppress(OSError):
                self._memory.write_text(json.dumps([pid, start]))

    def _remember(self, now: float) -> None:
        try:
            pid, start = map(int, json.loads(self._memory.read_text()))
        except (OSError, ValueError, TypeError):
            return
        pidfd = _open(pid, start)
        if pidfd is not None:
            self._epoll.register(pidfd, select.EPOLLIN)
        self._lives[AGENT] = _Life(pid, start, pidfd, now, now)

    def _ended(self, fd: int, now: float) -> None:
        for role, life in self._lives.items():
            if life.pidfd == fd:
                log.warning("%s has ended, pid %d", role, life.pid)
                self._forget(life, now)

    def _forget(self, life: _Life, now: float) -> None:
        if life.pidfd is not None:
            self._epoll.unregister(life.pidfd)
            os.close(life.pidfd)
            life.pidfd, life.ended_at = None, now

    # ---- standing in

    def _relieve(self, now: float) -> None:
        health, agent = self.health(now), self._lives.get(AGENT)
        if health & Health.AGENT_HUNG and agent is not None:
            self._kill(agent)
        elif health == Health.AGENT_DEAD and self._may_spawn(now):
            self._spawned_at = now
            self._spawn(self._settings.stand_in)

    @staticmethod
    def _kill(agent: _Life) -> None:
        if agent.pidfd is not None:
            log.warning("the agent, pid %d, is stuck: it is killed", agent.pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(agent.pidfd, signal.SIGKILL)

    def _may_spawn(self, now: float) -> bool:
        rested = now - self._spawned_at >= _AGAIN_MS
        return bool(self._settings.stand_in) and self._child.pid is None and rested

    def _spawn(self, command: tuple[str, ...]) -> None:
        try:
            self._child.start(command)
        except OSError as error:
            log.error("no stand-in: %s: %s", command[0], error.strerror)
            return
        log.warning("a stand-in takes the place of the agent, pid %d", self._child.pid)


def _open(pid: int, start: int) -> int | None:
    """A pidfd of the process that began then; None when it is not there any more."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if started(pid) != start:
        os.close(pidfd)
        return None
    return pidfd
