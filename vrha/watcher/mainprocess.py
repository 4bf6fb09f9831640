"""Which process is the agent: the main one of a unit, that of a pid file, or of a command.

A look costs little, so that it can be repeated while the agent is away. It is not a proof: whoever
opens a pidfd looks once more afterwards.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from vrha.watcher import unitstate

_AGAIN_S = 1.0
"""A dear look is repeated after this time at the earliest, unless there is news."""
_SOON_S = 0.2
"""The same, of an answer that came too early."""
_CGROUPS = ("", "unified", "systemd")
"""Below /sys/fs/cgroup: version 2, and the two places of a hybrid or a version 1 machine
(systemd's file `docs/CGROUP_DELEGATION.md`)."""


class MainProcess(Protocol):
    """One way to find an agent."""

    name: str
    """As a person says it."""

    def find(self) -> int | None:
        """Its pid; None when it is not there, or nothing has changed since the last look."""

    def is_still(self, pid: int) -> bool:
        """Whether a process that was just found is it."""

    def is_stopped(self) -> bool:
        """Whether it was stopped on purpose, by what the last look saw. Also as long as it may
        have been, because init has not said yet."""


class Unit:
    """A service of systemd; without systemd the first process of its control group."""

    def __init__(self, unit: str, root: Path = Path("/sys/fs/cgroup")) -> None:
        self.name = unit
        self._root = root
        self._group = f"/system.slice/{unit}"
        self._seen: list[int] | None = None
        self._asked = -_AGAIN_S
        self._is_known = True
        self._is_stopped = False

    def find(self) -> int | None:
        members = self._members()
        now = time.monotonic()
        again_s = _AGAIN_S if self._is_known else _SOON_S
        if members == self._seen and now < self._asked + again_s:
            return None
        self._seen, self._asked = members, now
        return self._main()

    def is_still(self, pid: int) -> bool:
        return self._main() == pid

    def is_stopped(self) -> bool:
        return self._is_stopped or not self._is_known

    def _main(self) -> int | None:
        self._is_known = True
        said: Mapping[str, str] | None = None
        try:
            said = unitstate.asked(self.name)
        except unitstate.NoAnswerError:
            self._is_known = False
        if said is None:
            # Its other processes are its children, or were before it ended.
            return _eldest(self._members())
        self._group = said["ControlGroup"] or self._group
        members, main = self._members(), int(said["MainPID"])
        # A main process that is no more: systemd has not heard of its end.
        self._is_known = not main or main in members
        self._is_stopped = unitstate.is_stopped(said)
        return main if main in members else None

    def _members(self) -> list[int]:
        for below in _CGROUPS:
            path = self._root / below / self._group.lstrip("/") / "cgroup.procs"
            try:
                members = [int(line) for line in path.read_text().split()]
            except (OSError, ValueError):
                continue
            if members:
                return members
        return []


class PidFile:
    """Of an agent that writes one. What the file names is believed."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def find(self) -> int | None:
        try:
            pid = int(self._path.read_text())
        except (OSError, ValueError):
            return None
        return pid if _born(pid) is not None else None

    def is_still(self, pid: int) -> bool:
        return self.find() == pid

    def is_stopped(self) -> bool:
        return False


class Command:
    """The eldest process in whose command line a pattern occurs."""

    def __init__(self, pattern: str) -> None:
        """Raises re.error."""
        self.name = pattern
        self._pattern = re.compile(pattern)
        self._asked = -_AGAIN_S

    def find(self) -> int | None:
        now = time.monotonic()
        if now < self._asked + _AGAIN_S:
            return None
        self._asked = now
        pids = (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())
        return _eldest(pid for pid in pids if self.is_still(pid))

    def is_still(self, pid: int) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            return False
        # This process names the pattern itself.
        return pid != os.getpid() and bool(
            self._pattern.search(b" ".join(words).decode(errors="replace"))
        )

    def is_stopped(self) -> bool:
        return False


def _eldest(pids: Iterable[int]) -> int | None:
    born = ((_born(pid), pid) for pid in pids)
    return min(((at, pid) for at, pid in born if at is not None), default=(0, None))[1]


def _born(pid: int) -> int | None:
    """When it began (ticks since boot); None when it is not there, or only its exit code is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
