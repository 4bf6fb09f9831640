"""All processes by the inode of their network namespace, and all names of namespaces: one look."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vrha.linux import netns

_MOUNT = re.compile(r"^\d+ \d+ \S+ net:\[(\d+)\] (\S+) ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Scan:
    """`names`: inodes of the namespaces that are mounted on each name, the uppermost last; more
    than one hide each other, none is a plain file. `pids`: by inode. `home`: the node's own."""

    home: int
    names: Mapping[str, tuple[int, ...]]
    pids: Mapping[int, tuple[int, ...]]

    @property
    def nameless(self) -> frozenset[int]:
        """Namespaces that only processes hold."""
        named = {inode for inodes in self.names.values() for inode in inodes}
        return frozenset(self.pids) - named - {self.home}


def look() -> Scan:
    """As it is now, in the namespace of the calling thread. A process counts where its main thread
    is (see proc(5), ns/net); a zombie is nowhere."""
    home = os.stat("/proc/thread-self/ns/net").st_ino
    return Scan(home, named(), processes_by_namespace())


def named() -> dict[str, tuple[int, ...]]:
    """Inodes by name. Mounts that a later one hides are told by mountinfo alone (proc(5))."""
    found: dict[str, list[int]] = {name: [] for name in netns.names()}
    for match in _MOUNT.finditer(Path("/proc/thread-self/mountinfo").read_text()):
        place = Path(match[2])
        if place.parent == netns.NETNS_DIR:
            found.setdefault(place.name, []).append(int(match[1]))
    return {name: tuple(inodes) for name, inodes in found.items()}


def processes_by_namespace() -> dict[int, tuple[int, ...]]:
    """Pids by the inode of their network namespace."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                inode = os.stat(f"/proc/{name}/ns/net").st_ino
            except OSError:
                continue
            found.setdefault(inode, []).append(int(name))
    return {inode: tuple(pids) for inode, pids in found.items()}


def holding(inode: int) -> list[int]:
    """Processes that are in the namespace, or have a file of it open: what can be seen of its
    holders. It looks at all open files of the machine, by fdinfo, which waits for no file system
    (proc(5); Linux 5.14)."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _holds(pid, inode)]


def _holds(pid: str, inode: int) -> bool:
    wanted = f"\nino:\t{inode}\n"
    with contextlib.suppress(OSError):
        if os.stat(f"/proc/{pid}/ns/net").st_ino == inode:
            return True
        for fd in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{pid}/fdinfo/{fd}").read_text():
                    return True
    return False


def arguments(pid: int) -> list[str]:
    """The command line of a process; empty when it has none or is gone."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [part.decode(errors="replace") for part in line.rstrip(b"\0").split(b"\0")]
