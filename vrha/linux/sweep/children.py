"""Processes that live in namespaces of ours, ended through pidfds by the inode of the namespace.

Pid files are not read: the pid in one may be another's by now, and a living child may have none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.linux import processes
from vrha.linux.sweep import scan
from vrha.linux.sweep.site import Site

DEADLINE_S = 2.0
"""For a batch to end after SIGKILL. It takes 1 to 5 ms, more where much memory is freed."""
_ROUNDS = 5
"""How often is looked for more: one process may start another while it is being ended."""
_AT_ONCE = 400
"""Pidfds that are open at a time: 1,024 files is what a process may have by default."""


def find(at: Site) -> list[Item]:
    found = []
    for inode, claim in at.claims.items():
        for pid in at.scan.pids.get(inode, ()):
            if pid != os.getpid():
                why = f"lives where the namespace {claim.why}"
                found.append(_item(pid, inode, claim.owner, why, inode in at.scan.nameless))
    return found


def _item(pid: int, inode: int, owner: str, why: str, nameless: int) -> Item:
    program = _program(pid)
    detail: dict[str, str | int] = {"pid": pid, "inode": inode, "program": program}
    if nameless:
        detail["nameless"] = 1
    return Item(Kind.PROCESS, f"{program} ({pid})", owner, why, detail)


def remove(at: Site, items: Sequence[Item]) -> list[Outcome]:
    """SIGKILL without further ado: with its ports gone it has nobody to say goodbye to, and one
    that is stopped hears nothing else."""
    there = {item.number("pid"): item for item in items}
    homes = {item.number("inode"): item for item in items}
    outcomes: dict[str, Outcome] = {}
    with contextlib.ExitStack() as pins:
        _pin(there, pins)
        for _ in range(_ROUNDS):
            killed, stuck = _end({pid: item.number("inode") for pid, item in there.items()})
            outcomes |= {item.name: _outcome(item, killed, stuck) for item in there.values()}
            there = {} if stuck else _more(homes)
            if not there:
                break
    reason = "processes of the namespace keep starting others"
    outcomes |= {item.name: Outcome(item, Result.FAILED, reason) for item in there.values()}
    return list(outcomes.values())


def _pin(there: Mapping[int, Item], pins: contextlib.ExitStack) -> None:
    """While a namespace without a name is looked at again and again, its inode must not become
    another's: the kernel gives the lowest free one to the next (fs/proc/generic.c)."""
    pinned = set()
    for pid, item in there.items():
        inode = item.number("inode")
        if item.number("nameless") and inode not in pinned:
            with contextlib.suppress(OSError):
                fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                pins.callback(os.close, fd)
                pinned.add(inode)


def _outcome(item: Item, killed: set[int], stuck: set[int]) -> Outcome:
    pid = item.number("pid")
    if pid in stuck:
        reason = f"it does not end after SIGKILL (state {_state(pid)})"
        return Outcome(item, Result.LEAKED, reason)
    return Outcome(item, Result.REMOVED if pid in killed else Result.GONE)


def _more(homes: Mapping[int, Item]) -> dict[int, Item]:
    """Who lives in these namespaces now."""
    found = scan.processes_by_namespace()
    return {
        pid: _item(pid, inode, item.owner, item.why, item.number("nameless"))
        for inode, item in homes.items()
        for pid in found.get(inode, ())
        if pid != os.getpid()
    }


def _end(pids: Mapping[int, int]) -> tuple[set[int], set[int]]:
    """End processes, given with the inode of their namespace; who has ended, and who has not."""
    ended: set[int] = set()
    stuck: set[int] = set()
    listed = sorted(pids)
    for first in range(0, len(listed), _AT_ONCE):
        part = {pid: pids[pid] for pid in listed[first : first + _AT_ONCE]}
        killed, left = processes.kill(part, DEADLINE_S)
        ended |= killed
        stuck |= left
    return ended, stuck


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return "?"


def _state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    return "?"
