"""Which agents keep an owner, where one profile serves several agents of a node."""

from __future__ import annotations

from collections.abc import Iterable

from vrha.core.cleanup.items import Item
from vrha.core.cleanup.profile import Profile


def keepers(profile: Profile, found: Iterable[Item]) -> dict[str, frozenset[str]]:
    """By owner the agents that may own something of it; if one of them lives, all of it is kept.

    What may be one agent's or another's counts as of those to whom the rest of its owner surely
    belongs; where nothing is sure, as of all of them.
    """
    sure: dict[str, set[str]] = {}
    possible: dict[str, set[str]] = {}
    for item in found:
        agents = profile.agents_of(item)
        possible.setdefault(item.owner, set()).update(agents)
        if len(agents) == 1:
            sure.setdefault(item.owner, set()).update(agents)
    return {owner: frozenset(sure.get(owner) or agents) for owner, agents in possible.items()}
