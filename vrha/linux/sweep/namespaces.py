"""Network namespaces of ours and their names: named, hidden, nameless, and names of none.

That a name is gone proves nothing: a namespace lives, and forwards, as long as a process, a socket
or an open file holds it. So each gets a number first (`vrha.linux.nsid`), which ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from vrha.core.cleanup.items import Item, Kind, Outcome, Result
from vrha.linux import netns, nsid
from vrha.linux.sweep import scan
from vrha.linux.sweep.leaked import Leak
from vrha.linux.sweep.site import Site

NAMELESS = "nameless"
DEADLINE_S = 1.0
"""For the last holders of a namespace to let go after their processes have ended."""
_LOOK_S = 0.002
_HELPERS = 3
"""Each removal waits for RCU (fs/namespace.c, namespace_unlock), and these waits go together."""


def find(at: Site) -> list[Item]:
    found = []
    for name, inodes in at.scan.names.items():
        owner = at.profile.namespace_owner(name)
        if owner is not None:
            detail: dict[str, str | int] = {"inodes": _listed(inodes)}
            if not inodes:
                detail["state"] = "a name without a namespace"
            elif len(inodes) > 1:
                detail["state"] = f"{len(inodes) - 1} hidden below it"
            found.append(Item(Kind.NAMESPACE, name, owner, "its name", detail))
    named = {inode for inodes in at.scan.names.values() for inode in inodes}
    for inode, claim in at.claims.items():
        if inode not in named:
            nameless: dict[str, str | int] = {"inodes": _listed([inode]), "state": NAMELESS}
            found.append(Item(Kind.NAMESPACE, f"net:[{inode}]", claim.owner, claim.why, nameless))
    return found


def numbered(at: Site, items: Sequence[Item]) -> list[Item]:
    """The items with the numbers of their namespaces, while these can still be reached."""
    leaking = {leak.inode: leak.nsid for leak in at.leaking}
    found = []
    for item in items:
        numbers = {leaking.get(inode, -1) for inode in _numbers(item, "inodes")}
        for inode in _numbers(item, "inodes"):
            if inode in at.claims and inode not in leaking:
                with contextlib.suppress(OSError):
                    numbers.add(_number(at, item.name, inode))
        found.append(replace(item, detail={**item.detail, "nsids": _listed(numbers - {-1})}))
    return found


def _number(at: Site, name: str, inode: int) -> int:
    """Raises OSError; a namespace that is hidden and empty cannot be reached."""
    for pid in at.scan.pids.get(inode, ()):
        with contextlib.suppress(OSError):
            return nsid.give_to_process(at.route, pid)
    fd = netns.open_named(name)
    try:
        if os.fstat(fd).st_ino != inode:
            raise FileNotFoundError(f"namespace {inode} is hidden below another")
        return nsid.give_to_file(at.route, fd)
    finally:
        os.close(fd)


def remove(at: Site, items: Sequence[Item]) -> list[Outcome]:
    """Remove names, then see whether the namespaces end; those that do not are marked as leaked."""
    trouble = _remove_names([item.name for item in items if item.detail.get("state") != NAMELESS])
    held = _held(at, {number for item in items for number in _numbers(item, "nsids")})
    outcomes = []
    for item in items:
        if not held.isdisjoint(_numbers(item, "nsids")):
            outcomes.append(_leak(at, item, held))
        elif item.name in trouble:
            outcomes.append(Outcome(item, Result.FAILED, trouble[item.name]))
        else:
            outcomes.append(Outcome(item, Result.REMOVED))
    return outcomes


def _remove_names(names: Sequence[str]) -> dict[str, str]:
    """Why it failed, by name."""
    left, failed = list(names), dict[str, str]()

    def work() -> None:
        with contextlib.suppress(IndexError):
            while True:
                name = left.pop()
                failed[name] = _remove_name(name)

    threads = [threading.Thread(target=work) for _ in names[1 : 1 + _HELPERS]]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    return {name: why for name, why in failed.items() if why}


def _remove_name(name: str) -> str:
    try:
        try:
            netns.remove(name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            netns.remove_hidden(name)
    except OSError as error:
        return f"its name cannot be removed: {error.strerror}"
    return ""


def _held(at: Site, numbers: set[int]) -> set[int]:
    """Numbers of the namespaces that something still holds. Raises NetlinkError."""
    until = time.monotonic() + DEADLINE_S
    left = numbers
    while True:
        known = left & nsid.all_known(at.route)
        left = {number for number in known if nsid.is_held(at.route, number)}
        if not left or time.monotonic() > until:
            return left
        time.sleep(_LOOK_S)


def _leak(at: Site, item: Item, held: set[int]) -> Outcome:
    inodes, numbers = _numbers(item, "inodes"), held.intersection(_numbers(item, "nsids"))
    pids = sorted({pid for inode in inodes for pid in scan.holding(inode)})
    by = f"by process {', '.join(map(str, pids))}" if pids else "by a socket or a hidden process"
    reason = f"namespace {_listed(inodes)} has no port left, but is still held {by}"
    try:
        for inode in inodes:
            at.leaks.mark(Leak(item.owner, inode, min(numbers)))
    except OSError as error:
        reason += f"; that could not be noted: {error.strerror}"
    return Outcome(item, Result.LEAKED, reason)


def _numbers(item: Item, key: str) -> list[int]:
    return [int(word) for word in str(item.detail.get(key, "")).split()]


def _listed(numbers: Iterable[int]) -> str:
    return " ".join(map(str, sorted(numbers)))
