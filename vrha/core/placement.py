"""Placement: on which node an instance is built, why there, and why not on the others.

A planned run keeps its node or takes the quietest place. An automatic one has rules of its own:
what fails over goes where least was sent already, since each taker builds one after the other and
the last router waits for the longest queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vrha.model.spec import Node, Router


class Unfit(StrEnum):
    """Why a node cannot host a router."""

    SILENT = "silent"
    DRAINING = "draining"
    WRONG_ZONE = "wrong-zone"
    MISSING_LABEL = "missing-label"
    FULL = "full"
    SAME_NODE = "same-node"
    """The other instance of the pair is there."""
    PAUSED = "paused"
    """No automatic moves, neither from there nor to it."""
    SUPPRESSED = "suppressed"
    """It flaps; only a person may place something there."""


class Reason(StrEnum):
    """Why the chosen node was chosen, before those that fit as well."""

    BESIDE = "beside the old instance"
    ONLY_ONE = "the only one that fits"
    OTHER_ZONE = "in another zone than the other instance"
    NO_OTHER_ZONE = "in the zone of the other instance, as nothing better fits"
    TRUSTED = "neither failed over lately nor flapping"
    LAST_RESORT = "failed over lately or flapping, but no other fits"
    QUIETEST_ZONE = "in the zone with the fewest instances"
    FEWEST_SENT = "fewest routers sent there by this failover"
    LEAST_LOAD = "least loaded"
    FEWEST = "fewest instances"
    NAME = "first by name"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it: how many instances it hosts, whether its agent is heard, and
    whether it is being emptied.

    `paused` and `suppressed` count for automatic moves; `delayed`, it was failed over lately, makes
    it the last resort of all.
    """

    node: Node
    instances: int
    heard: bool
    draining: bool = False
    paused: bool = False
    suppressed: bool = False
    delayed: bool = False


@dataclass(frozen=True, slots=True)
class Apart:
    """Where the other instance of a pair is: never on that node, rather not in that zone."""

    node: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Placement:
    """The chosen node (empty: none fits), why that one (the reasons that told it from the others
    that fit, the weightiest first), and the reason against every node that does not fit."""

    node: str
    unfit: Mapping[str, Unfit]
    chosen: tuple[Reason, ...] = ()

    def explain(self) -> str:
        """In one line."""
        against = ", ".join(f"{name}: {reason}" for name, reason in self.unfit.items())
        if not self.node:
            return against or "no nodes"
        chosen = f"{self.node}: {', '.join(self.chosen)}"
        return f"{chosen}; {against}" if against else chosen


def place(
    router: Router,
    candidates: Sequence[Candidate],
    beside: str = "",
    apart: Apart | None = None,
) -> Placement:
    """The node for a new instance of `router` in a planned run; deterministic.

    `beside` is the node of the instance to be replaced: kept when it fits, because a
    replacement beside the old one hands over without leaving the machine. Otherwise the zone
    with the fewest instances, in it the node with the fewest, then by name. Nodes that flap or
    were failed over lately come after all others.
    """
    return Placer(candidates, automatic=False).place(router, beside, apart)


_Asked = tuple[str, frozenset[tuple[str, str]]]
_Criterion = tuple[Reason, Callable[[Candidate], float]]


class Placer:
    """Places many routers, one after the other, and knows what it has placed.

    `automatic`: nobody asked for these moves, and they are all for one failover. `sent`: how many
    routers each node is to get already, that its candidate's `instances` do not count.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        automatic: bool = True,
        sent: Mapping[str, int] | None = None,
    ) -> None:
        # By name: of those that are equal in everything the first one is taken.
        self._candidates = sorted(candidates, key=lambda c: c.node.name)
        self._automatic = automatic
        self._zones = {c.node.name: c.node.zone for c in self._candidates}
        self._in_zone: Counter[str] = Counter()
        for candidate in self._candidates:
            self._in_zone[candidate.node.zone] += candidate.instances
        self._sent: Counter[str] = Counter()
        for node, count in (sent or {}).items():
            self.take(node, count)
        self._known: dict[_Asked, tuple[list[Candidate], dict[str, Unfit]]] = {}

    def take(self, node: str, count: int = 1) -> None:
        """So many more routers go to `node`."""
        self._sent[node] += count
        self._in_zone[self._zones.get(node, "")] += count

    def place(self, router: Router, beside: str = "", apart: Apart | None = None) -> Placement:
        """Where `router` goes, with all that was taken so far; takes nothing itself."""
        able, reasons = self._able(router)
        now = [(c, self._unfit_now(c, apart)) for c in able]
        fit = [candidate for candidate, why in now if why is None]
        against = reasons | {c.node.name: why for c, why in now if why is not None}
        if not fit:
            return Placement("", against)
        if any(candidate.node.name == beside for candidate in fit):
            return Placement(beside, against, (Reason.BESIDE,))
        best, chosen = _best(fit, self._criteria(fit, apart))
        if len(fit) == 1:
            chosen = (Reason.ONLY_ONE,)
        return Placement(best.node.name, against, chosen + self._drawbacks(best, apart))

    def _able(self, router: Router) -> tuple[list[Candidate], dict[str, Unfit]]:
        """Who can host routers that ask for what this one does, and why the others cannot."""
        asked = (router.zone, frozenset(router.labels.items()))
        if asked not in self._known:
            judged = [(c, _unfit_for(router, c, self._automatic)) for c in self._candidates]
            able = [c for c, why in judged if why is None]
            self._known[asked] = able, {c.node.name: why for c, why in judged if why is not None}
        return self._known[asked]

    def _unfit_now(self, candidate: Candidate, apart: Apart | None) -> Unfit | None:
        if candidate.instances + self._sent[candidate.node.name] >= candidate.node.capacity:
            return Unfit.FULL
        return Unfit.SAME_NODE if apart and apart.node == candidate.node.name else None

    def _criteria(self, fit: Sequence[Candidate], apart: Apart | None) -> list[_Criterion]:
        """What decides between nodes that fit, the weightiest first; less is better."""
        sent = self._sent
        found: list[_Criterion] = []
        if any(_distrust(c) for c in fit):
            found.append((Reason.TRUSTED, _distrust))
        if apart and apart.zone:
            zone = apart.zone
            found.append((Reason.OTHER_ZONE, lambda c: c.node.zone == zone))
        if self._automatic:
            found += [
                (Reason.FEWEST_SENT, lambda c: sent[c.node.name]),
                (
                    Reason.LEAST_LOAD,
                    lambda c: (c.instances + sent[c.node.name]) / c.node.capacity,
                ),
            ]
            return found
        return [
            *found,
            (Reason.QUIETEST_ZONE, lambda c: self._in_zone[c.node.zone]),
            (Reason.FEWEST, lambda c: c.instances + sent[c.node.name]),
        ]

    def _drawbacks(self, best: Candidate, apart: Apart | None) -> tuple[Reason, ...]:
        """What speaks against the chosen one; no other that fits is better in that."""
        here = apart is not None and apart.zone == best.node.zone
        return ((Reason.LAST_RESORT,) if _distrust(best) else ()) + (
            (Reason.NO_OTHER_ZONE,) if here else ()
        )


def _unfit_for(router: Router, candidate: Candidate, automatic: bool) -> Unfit | None:
    """Why the node cannot host routers like this one, however many it has already."""
    node = candidate.node
    if not candidate.heard:
        return Unfit.SILENT
    if candidate.draining:
        return Unfit.DRAINING
    if automatic and candidate.paused:
        return Unfit.PAUSED
    if automatic and candidate.suppressed:
        return Unfit.SUPPRESSED
    if router.zone and router.zone != node.zone:
        return Unfit.WRONG_ZONE
    if any(node.labels.get(key) != value for key, value in router.labels.items()):
        return Unfit.MISSING_LABEL
    return None


def _distrust(candidate: Candidate) -> int:
    """How little the node is to be trusted."""
    return 2 * candidate.suppressed + candidate.delayed


def _best(
    fit: Sequence[Candidate], criteria: Iterable[_Criterion]
) -> tuple[Candidate, tuple[Reason, ...]]:
    """The first of those that are best, and the criteria that told it from others."""
    chosen: list[Reason] = []
    left = fit
    for reason, measure in criteria:
        measured = [measure(candidate) for candidate in left]
        least = min(measured)
        better = [c for c, value in zip(left, measured, strict=True) if value == least]
        if len(better) < len(left):
            chosen.append(reason)
        left = better
        if len(left) == 1:
            break
    if len(left) > 1:
        chosen.append(Reason.NAME)
    return left[0], tuple(chosen)
