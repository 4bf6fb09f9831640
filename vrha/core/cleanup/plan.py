"""A plan: what was found, by owner, with the decision on each, in the order of removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vrha.core.cleanup.decide import Choice, Decision
from vrha.core.cleanup.items import Item, Kind

ORDER = (
    Kind.OVS_PORT,
    Kind.PORT,
    Kind.PROCESS,
    Kind.RULES,
    Kind.TABLE,
    Kind.IPSET,
    Kind.CONNTRACK,
    Kind.FILE,
    Kind.NAMESPACE,
)
"""Ports first: with them the traffic ends, whatever else goes wrong. Chains before the sets that
they name. A name of a namespace goes last: it is the handle to what would not go."""


@dataclass(frozen=True, slots=True)
class Share:
    """One owner with all that is there of it."""

    owner: str
    decision: Decision
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Owners in order of their names."""

    profile: str
    shares: tuple[Share, ...]

    @property
    def to_sweep(self) -> tuple[Share, ...]:
        return tuple(s for s in self.shares if s.decision.choice is Choice.SWEEP)

    def items(self, kind: Kind) -> list[Item]:
        """Of all owners that are to be swept."""
        return [item for share in self.to_sweep for item in share.items if item.kind is kind]


def make(profile: str, found: Iterable[Item], decision_on: Callable[[str], Decision]) -> Plan:
    """Put what was found in order. What belongs to the agent as a whole is swept only when no
    owner is kept: they may need it."""
    by_owner: dict[str, list[Item]] = {}
    for item in found:
        by_owner.setdefault(item.owner, []).append(item)
    decided = {owner: decision_on(owner) for owner in sorted(by_owner)}
    kept = next((d for o, d in decided.items() if o and d.choice is not Choice.SWEEP), None)
    if kept is not None and "" in decided:
        decided[""] = kept
    return Plan(
        profile,
        tuple(Share(o, d, _ordered(by_owner[o])) for o, d in decided.items()),
    )


def only(plan: Plan, wanted: Callable[[str], bool]) -> Plan:
    """The plan for some owners."""
    return Plan(plan.profile, tuple(share for share in plan.shares if wanted(share.owner)))


def _ordered(items: Sequence[Item]) -> tuple[Item, ...]:
    return tuple(sorted(items, key=lambda item: (ORDER.index(item.kind), item.name)))
