"""Placement: on which node an instance is built, and why not on the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it: how many instances it hosts, whether its agent is heard, and
    whether it is being emptied."""

    node: Node
    instances: int
    heard: bool
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """The chosen node (empty: none fits) and the reason against every node that does not fit."""

    node: str
    unfit: Mapping[str, Unfit]

    def explain(self) -> str:
        return ", ".join(f"{name}: {reason}" for name, reason in self.unfit.items()) or "no nodes"


def unfit(router: Router, candidate: Candidate) -> Unfit | None:
    """Why `candidate` cannot host `router`; None when it can."""
    node = candidate.node
    if not candidate.heard:
        return Unfit.SILENT
    if candidate.draining:
        return Unfit.DRAINING
    if router.zone and router.zone != node.zone:
        return Unfit.WRONG_ZONE
    if any(node.labels.get(key) != value for key, value in router.labels.items()):
        return Unfit.MISSING_LABEL
    if candidate.instances >= node.capacity:
        return Unfit.FULL
    return None


def place(router: Router, candidates: Sequence[Candidate], beside: str = "") -> Placement:
    """The node for a new instance of `router`; deterministic.

    `beside` is the node of the instance to be replaced: kept when it fits, because a
    replacement beside the old one hands over without leaving the machine. Otherwise the zone
    with the fewest instances, in it the node with the fewest, then by name.
    """
    reasons = {c.node.name: reason for c in candidates if (reason := unfit(router, c))}
    fit = [c for c in candidates if c.node.name not in reasons]
    if any(c.node.name == beside for c in fit):
        return Placement(beside, reasons)
    zone_load: dict[str, int] = {}
    for candidate in candidates:
        zone = candidate.node.zone
        zone_load[zone] = zone_load.get(zone, 0) + candidate.instances
    fit.sort(key=lambda c: (zone_load[c.node.zone], c.instances, c.node.name))
    return Placement(fit[0].node.name if fit else "", reasons)
