"""What all kinds of a sweep work with, and the protocol that the module of a kind follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vrha.core.cleanup.items import Item, Outcome
from vrha.core.cleanup.profile import Profile
from vrha.linux.netlink import Netlink
from vrha.linux.sweep.scan import Scan


@dataclass(frozen=True, slots=True)
class Site:
    """A node as a sweep finds it: the calling thread is in the node's own network namespace."""

    profile: Profile
    state_dir: Path
    route: Netlink
    """rtnetlink in the node's own network namespace."""
    scan: Scan
    """All processes and names of namespaces, looked at once."""


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
