"""What all kinds of a sweep work with, and the protocol that the module of a kind follows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from vrha.core.cleanup.items import Item, Outcome
from vrha.core.cleanup.profile import Profile
from vrha.errors import StepError
from vrha.linux import nsid, rtnetlink
from vrha.linux.netlink import Netlink
from vrha.linux.rtnetlink import Link
from vrha.linux.sweep import scan
from vrha.linux.sweep.leaked import Leak, leaks_of, records_of
from vrha.linux.sweep.scan import Scan


@dataclass(frozen=True, slots=True)
class Claim:
    """A network namespace that is ours, and why."""

    owner: str
    why: str


class Site:
    """A node as a sweep finds it: the calling thread is in the node's own network namespace.

    What `scan`, `links` and `claims` say is looked at once and kept, so make a new Site for each
    sweep. They raise OSError or VrhaError when that cannot be looked at.
    """

    def __init__(self, profile: Profile, state_dir: Path, route: Netlink) -> None:
        """`route`: rtnetlink in the node's own network namespace."""
        self.profile = profile
        self.state_dir = state_dir
        self.route = route
        self.records = records_of(profile, state_dir)
        self.leaks = leaks_of(profile, state_dir)

    @cached_property
    def scan(self) -> Scan:
        """All processes and names of namespaces."""
        return scan.look()

    @cached_property
    def links(self) -> Sequence[Link]:
        """All links of the node's own namespace."""
        return rtnetlink.links(self.route)

    @cached_property
    def claims(self) -> Mapping[int, Claim]:
        """What is ours, by inode: all in it may be ended.

        A namespace that has a name of somebody else too is shared, and the node's own and that of
        init are nobody's to end, whatever a name says.
        """
        owner_of = self.profile.namespace_owner
        found: dict[int, Claim] = {}
        others = {self.scan.home, *_of_init()}
        for name, inodes in self.scan.names.items():
            owner = owner_of(name)
            if owner is None:
                others.update(inodes)
            else:
                found |= {inode: Claim(owner, f"is named {name}") for inode in inodes}
        found |= self._nameless()
        return {inode: claim for inode, claim in found.items() if inode not in others}

    def _nameless(self) -> Iterator[tuple[int, Claim]]:
        peers = {
            link.peer_netns: Claim(owner, f"has the other end of {link.name}")
            for link in self.links
            if link.peer_netns is not None
            and (owner := self.profile.port_owner(link.name, link.alias)) is not None
        }
        for inode in self.scan.nameless:
            claim = self._of_nameless(self.scan.pids[inode], peers)
            if claim is not None:
                yield inode, claim
        for leak in self.leaking:
            yield leak.inode, Claim(leak.owner, "could not be removed by an earlier sweep")

    @cached_property
    def leaking(self) -> Sequence[Leak]:
        """What earlier sweeps could not remove, and is still there.

        Numbers and inodes are given anew when they are free, so both must fit, and nobody may have
        a link to it: the ports of what has leaked are gone.
        """
        marked = self.leaks.read()
        if not marked:
            return ()
        linked = {link.peer_netns for link in self.links}
        known = nsid.all_known(self.route) - linked
        return [leak for leak in marked if leak.nsid in known and self._is_still(leak)]

    def _is_still(self, leak: Leak) -> bool:
        with contextlib.suppress(OSError):
            pids = self.scan.pids.get(leak.inode, ())
            return not pids or nsid.of_process(self.route, pids[0]) == leak.nsid
        return False

    def _of_nameless(self, pids: Sequence[int], peers: Mapping[int, Claim]) -> Claim | None:
        if peers:
            with contextlib.suppress(OSError):
                if (number := nsid.of_process(self.route, pids[0])) in peers:
                    return peers[number]
        for pid in pids:
            owner = self.profile.process_owner(scan.arguments(pid), str(self.state_dir))
            if owner is not None and self._shares_state(pid):
                return Claim(owner, f"holds process {pid}, which uses its files")
        return None

    def _shares_state(self, pid: int) -> bool:
        """Whether the state folder is for the process what it is here: another container's agent
        may well keep its files in a folder of the same name."""
        try:
            return os.path.samefile(f"/proc/{pid}/root{self.state_dir}", self.state_dir)
        except OSError:
            return False


class KindModule(Protocol):
    """A module of `vrha.linux.sweep` that finds and removes one kind, or a few.

    Nothing here may wait without a deadline. What a single item does not survive is an Outcome
    FAILED of it, with a reason for people, and never an exception: others of the batch must go on.
    An exception is for what concerns all of them (VrhaError or OSError); the engine then notes
    every item of the batch that has no outcome yet as FAILED, and goes on with the next kind.
    """

    def find(self, at: Site) -> list[Item]:
        """All that is ours by the profile of `at`; changes nothing. Quick and empty where the
        profile has none of it, or where the program that would show it is not installed."""

    def remove(self, at: Site, items: Sequence[Item]) -> Iterable[Outcome]:
        """Remove a batch of what `find` found, of all owners at once; one outcome for each item.

        What is not there any more is GONE. Whether it is still ours is looked at again, in the
        same step as the removal where the kernel or the tool allows that.
        """


def _of_init() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield os.stat("/proc/1/ns/net").st_ino


@contextlib.contextmanager
def opened(profile: Profile, state_dir: Path) -> Iterator[Site]:
    """The node of the calling thread. Raises StepError `no-rtnetlink`."""
    try:
        route = rtnetlink.open_route()
    except OSError as error:
        raise StepError("no-rtnetlink", f"rtnetlink: {error.strerror}") from error
    with route:
        yield Site(profile, state_dir, route)
