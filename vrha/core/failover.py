"""Which uplinks are lost, and whose turn it is."""

from __future__ import annotations

from collections.abc import Iterable, Set

from vrha.model.spec import Router
from vrha.model.state import NodeState, Upstream

DeadUplinks = Set[tuple[str, str]]
"""Nodes and the bridges by which they do not reach the upstream gateways any more."""


def dead_uplinks(nodes: Iterable[NodeState]) -> DeadUplinks:
    """Of these nodes, all of which are heard.

    A gateway that nobody reaches is itself the trouble, and to move routers would not help. Where
    nobody else has ever reached it, the self-test of the replacement is the second view.
    """
    seen: dict[str, dict[str, Upstream]] = {}
    for node in nodes:
        for bridge, state in node.uplinks:
            seen.setdefault(bridge, {})[node.name] = state
    return frozenset(
        (name, bridge)
        for bridge, states in seen.items()
        for name, state in states.items()
        if state is Upstream.UNREACHABLE and _is_reached_elsewhere(name, states)
    )


def _is_reached_elsewhere(name: str, states: dict[str, Upstream]) -> bool:
    others = [state for other, state in states.items() if other != name]
    return not others or Upstream.REACHABLE in others


def by_priority(router: Router) -> tuple[int, str]:
    """Sort key: which router is brought back before which."""
    return -router.priority, router.name
