"""What belongs to an agent: data, and small functions that tell by a name whose it is.

A profile of a third party is an object of this class under the entry point group
`vrha.cleanup_profiles`; `vrha cleanup --profile NAME` and `vrha-cleanup --profile NAME` find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vrha.core.cleanup.items import Item

GROUP = "vrha.cleanup_profiles"
"""Entry points of third parties."""


def nobody(*_: object) -> None:
    """The owner of what a profile knows nothing of."""


def no_agents(_: object) -> tuple[str, ...]:
    """The agents of an item, where none are known."""
    return ()


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
    chain_owner: Callable[[str], str | None] = nobody
    """Of a chain in the node's own iptables and ip6tables; rules that lead to it go with it."""
    shared_chains: frozenset[str] = frozenset()
    """Chains that several agents use: they go with those of `chain_owner` once nobody else has a
    rule in them."""
    tables: tuple[str, ...] = ()
    """Tables of nftables in the node's own namespace, `family name`."""
    set_owner: Callable[[str], str | None] = nobody
    """Of the name of an ipset in the node's own namespace."""
    ovs_owner: Callable[[str, Mapping[str, str], str | None], str | None] = nobody
    """Of (name, external_ids) of an Open vSwitch interface and the owner, if there is one, in whose
    namespace there is a link of that name or whose files (`link_notes`) name it."""
    link_notes: tuple[str, ...] = ()
    """Patterns below `state_dir` of files that name the links of their owner."""
    agents: tuple[str, ...] = ()
    """Programs whose living process in the node's own namespace keeps what is theirs; none where
    something else tells whether the agent lives."""
    agents_of: Callable[[Item], tuple[str, ...]] = no_agents
    """Those of `agents` that an item may belong to."""
    conntrack: bool = False
    """Whether its namespaces leave entries in the node's own connection tracking."""
    governed: bool = False
    """Whether its agent holds the lock of `state_dir` while it lives, and its ports are held back
    by vrha's own table of nftables."""
    records: str = ""
    """Where the journal is kept; empty: `cleanup` below `state_dir`."""
