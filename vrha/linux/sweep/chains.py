"""Which chains and rules of an iptables table go with an agent. Nothing is read or changed here.

Neutron names its chains `neutron-<binary>-<chain>`, with the first 16 characters of the binary, and
all agents of a node share `neutron-filter-top` and `neutron-postrouting-bottom`, from which each
jumps to its own (neutron/agent/linux/iptables_manager.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chain:
    """`builtin`: the kernel calls it itself, so it is never deleted."""

    name: str
    builtin: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """`place` tells it from others of its chain; `target` is the chain it leads to, or empty."""

    chain: str
    place: int
    target: str


@dataclass(frozen=True, slots=True)
class Content:
    """All chains and rules of a table, in order."""

    chains: list[Chain]
    rules: list[Rule]


@dataclass(frozen=True, slots=True)
class Doomed:
    """Single rules to delete, and chains to delete with all that is in them."""

    rules: tuple[Rule, ...]
    chains: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rules or self.chains)


OwnerOf = Callable[[str], str | None]
Choose = Callable[[Content], Doomed]
"""Says of a table what is to go."""


def owners(content: Content, owner_of: OwnerOf) -> list[str]:
    """All owners with chains in the table."""
    found = {owner_of(chain.name) for chain in content.chains if not chain.builtin}
    return sorted(owner for owner in found if owner is not None)


def chosen_by(content: Content, owner_of: OwnerOf, owner: str, shared: Collection[str]) -> Doomed:
    """What belongs to `owner`: its chains, and every rule that leads to them.

    A `shared` chain goes with them once no other rule is left in it.
    """
    chains = [c.name for c in content.chains if not c.builtin]
    gone = {name for name in chains if owner_of(name) == owner}
    if gone:
        used = {rule.chain for rule in content.rules if rule.target not in gone}
        gone.update(name for name in chains if name in shared and name not in used)
    rules = tuple(r for r in content.rules if r.target in gone and r.chain not in gone)
    return Doomed(rules, tuple(name for name in chains if name in gone))
