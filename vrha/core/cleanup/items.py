"""What a sweep finds and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What there may be of an agent on a node."""

    PORT = "port"
    """A link in the node's own network namespace."""
    PROCESS = "process"
    NAMESPACE = "namespace"
    """A network namespace, or a name of one without any."""
    RULES = "rules"
    """Chains and rules of iptables or ip6tables, of either variant, in the node's own tables."""
    TABLE = "table"
    """A table of nftables in the node's own namespace."""
    IPSET = "ipset"
    CONNTRACK = "conntrack"
    """Entries of the node's own connection tracking."""
    OVS_PORT = "ovs-port"
    FILE = "file"


class Result(StrEnum):
    """How it ended for one item; every item that a sweep was to remove gets exactly one."""

    REMOVED = "removed"
    GONE = "gone"
    """It was not there any more."""
    KEPT = "kept"
    """It was left alone on purpose."""
    LEAKED = "leaked"
    """It cannot be removed; it is muted, and its name is not used again."""
    FAILED = "failed"
    """Another try may help."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is to go.

    `name` is what an administrator calls it, `owner` whose it is (an instance, router or network;
    empty: the agent's as a whole), `why` the mark by which it is ours. `detail` is what its kind
    needs to remove it, and is shown.
    """

    kind: Kind
    name: str
    owner: str
    why: str
    detail: Mapping[str, str | int] = field(default_factory=dict)

    def number(self, key: str) -> int:
        """A number of `detail`; 0 when it is not there."""
        return int(self.detail.get(key, 0))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item; `reason` is empty when there is nothing to say."""

    item: Item
    result: Result
    reason: str = ""


BAD = frozenset((Result.LEAKED, Result.FAILED))
"""Results for which the sweep as a whole has not succeeded."""


def worst(outcomes: list[Outcome]) -> Result:
    """What a set of outcomes amounts to; GONE for none."""
    order = (Result.FAILED, Result.LEAKED, Result.REMOVED, Result.KEPT)
    found = {outcome.result for outcome in outcomes}
    return next((result for result in order if result in found), Result.GONE)
