"""What belongs to an agent: data, and small functions that tell by a name whose it is.

A profile of a third party is an object of this class under the entry point group
`vrha.cleanup_profiles`; `vrha cleanup --profile NAME` and `vrha-cleanup --profile NAME` find it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

GROUP = "vrha.cleanup_profiles"
"""Entry points of third parties."""


def nobody(*_: object) -> None:
    """The owner of what a profile knows nothing of."""


def itself(owner: str) -> str:
    """The router of an owner, where owners are routers."""
    return owner


@dataclass(frozen=True, slots=True)
class Profile:
    """What is whose. Every function returns the owner, or None: not ours, hands off.

    Owners are any texts that say which router, network or instance it is; empty stands for the
    agent as a whole.
    """

    name: str
    summary: str
    state_dir: str
    """Where the agent keeps its files, unless it is given otherwise."""
    namespace_owner: Callable[[str], str | None]
    """Of the name of a network namespace. Everything inside one that is ours is ours."""
    port_owner: Callable[[str, str], str | None] = nobody
    """Of (name, alias) of a link in the node's own network namespace."""
    process_owner: Callable[[Sequence[str], str], str | None] = nobody
    """Of (command line, state_dir). It is asked only for processes in namespaces without a name,
    which are not the node's own."""
    file_places: tuple[str, ...] = ()
    """Patterns (as of pathlib's glob) below `state_dir` at which there may be something of ours."""
    file_owner: Callable[[str], str | None] = nobody
    """Of a path relative to `state_dir` that one of `file_places` found. A folder goes as a
    whole."""
    router_of: Callable[[str], str] = itself
    """The router of an owner, as a person names it (`--only`)."""
    inner_links: tuple[str, ...] = ()
    """Beginnings of names of links inside its namespaces that are set down in order to mute;
    empty where the ports outside can be muted."""
    chains: tuple[str, ...] = ()
    """Beginnings of names of chains in the node's own iptables and ip6tables."""
    tables: tuple[str, ...] = ()
    """Tables of nftables in the node's own namespace, `family name`."""
    sets: tuple[str, ...] = ()
    """Beginnings of names of ipsets."""
    ovs_prefixes: tuple[str, ...] = ()
    """Beginnings of names of Open vSwitch ports; one is ours only if it has all `ovs_keys`."""
    ovs_keys: tuple[str, ...] = ()
    """Keys that must be in `external_ids` of the interface."""
    conntrack: bool = False
    """Whether its namespaces leave entries in the node's own connection tracking."""
    governed: bool = False
    """Whether its agent holds the lock of `state_dir` while it lives, and its ports are held back
    by vrha's own table of nftables."""
    records: str = ""
    """Where the journal is kept; empty: `cleanup` below `state_dir`."""
