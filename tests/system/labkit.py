"""What a lab may leave on the machine, and what it may not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vrha.bus.processes import ProcessId
from vrha.lab.daemons import environment
from vrha.lab.state import ROOT, lab_names
from vrha.lab.zone import Lab

PATIENCE = 3
"""Deadlines of waiting are those of an idle machine; so many times as long is waited."""


def until(condition: Callable[[], object], what: str, timeout: float = 15.0) -> None:
    """Wait for `condition()`; AssertionError after `PATIENCE` times `timeout` seconds."""
    deadline = time.monotonic() + PATIENCE * timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} times {timeout} s: {what}"
        time.sleep(0.005)


def namespace_of(pid: int | str, kind: str) -> int:
    """Inode of a process's namespace."""
    return Path(f"/proc/{pid}/ns/{kind}").stat().st_ino


class Spaces:
    """Namespaces of a lab, pinned by open files, so that their inodes are not used again."""

    KINDS = ("pid", "mnt", "net")

    def __init__(self, lab: Lab) -> None:
        pids = [lab.pid, *(lab.place(node).pid for node in lab.nodes)]
        paths = [f"/proc/{pid}/ns/{kind}" for pid in pids for kind in self.KINDS]
        paths += [lab.netns_path(machine) for machine in lab.machines]
        self._fds = [os.open(path, os.O_RDONLY) for path in paths]
        self.inodes = {os.fstat(fd).st_ino for fd in self._fds}

    def members(self) -> list[int]:
        """Living processes in any of them."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    process = ProcessId.of(int(entry.name))
                    inside = {namespace_of(entry.name, kind) for kind in self.KINDS} & self.inodes
                    if inside and process is not None and process.alive:
                        found.append(process.pid)
        return found

    def assert_empty(self) -> None:
        """No process is left; ends the pinning."""
        assert self.members() == []
        for fd in self._fds:
            os.close(fd)


@dataclass(frozen=True)
class Machine:
    """The machine as a lab must leave it."""

    mounts: str
    named: tuple[str, ...]
    links: tuple[str, ...]
    labs: tuple[str, ...]

    @classmethod
    def now(cls, prefix: str) -> Machine:
        """Labs of others come and go: only those whose name begins with `prefix` count."""
        named = Path("/run/netns")
        return cls(
            mounts=Path("/proc/self/mounts").read_text(),
            named=tuple(sorted(os.listdir(named))) if named.exists() else (),
            links=tuple(sorted(os.listdir("/sys/class/net"))),
            labs=tuple(n for n in lab_names() if n.startswith(prefix))
            + tuple(p.name for p in ROOT.glob(f".{prefix}*")),
        )


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with this vrha."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def vrha(*arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """The command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "vrha.cli.main", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
