"""Silence from the inside, for agents whose ports lie in their namespaces alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from vrha.core.cleanup.items import Item
from vrha.linux import netns, rtnetlink
from vrha.linux.sweep.site import Site


def silence(at: Site, items: Sequence[Item]) -> None:
    """Set the profile's `inner_links` down in all these namespaces. Raises OSError for the first
    that could not be, after all were tried."""
    if not at.profile.inner_links or not items:
        return
    names = {inode: item.name for item in items for inode in inodes_of(item)}
    home = netns.current()
    failed: OSError | None = None
    try:
        for inode in names.keys() & at.claims.keys():
            try:
                _silence_one(at, inode, names[inode], home)
            except OSError as error:
                failed = failed or error
    finally:
        os.close(home)
    if failed is not None:
        raise failed


def inodes_of(item: Item) -> list[int]:
    """Namespaces of an item of that kind."""
    return [int(word) for word in str(item.detail.get("inodes", "")).split()]


def _silence_one(at: Site, inode: int, name: str, home: int) -> None:
    fd = _open(at, inode, name)
    try:
        with netns.entered(fd, home), rtnetlink.open_route() as route:
            ours = [
                rtnetlink.set_down(link.index)
                for link in rtnetlink.links(route)
                if link.name.startswith(at.profile.inner_links)
            ]
            if ours:
                route.talk(ours)
    finally:
        os.close(fd)


def _open(at: Site, inode: int, name: str) -> int:
    """By its name, or through a process in it where that is hidden or missing. Raises OSError."""
    with contextlib.suppress(OSError):
        fd = netns.open_named(name)
        if os.fstat(fd).st_ino == inode:
            return fd
        os.close(fd)
    for pid in at.scan.pids.get(inode, ()):
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            if os.fstat(fd).st_ino == inode:
                return fd
            os.close(fd)
    raise FileNotFoundError(f"namespace {inode} cannot be entered: it is hidden and empty")
