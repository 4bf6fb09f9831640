"""The brake of automatic failover: which silent nodes lose their routers now, and which not.

A node that is silent may be dead, and so may the judge's own ears. The more nodes fall silent at
once, the likelier it is the latter, or something that no move can mend; and each move costs the
nodes that are left. Hence limits, all of the whole installation:

- more than `mass_silence` of the nodes silent at once: nothing new begins, and people are told;
- at most `budget` of the nodes under recovery at the same time.

"At once" is judged over a window, as nodes never fall silent in the same millisecond. The first of
many is released before the others are silent, and counts all the same when they come; what has
begun is never stopped half-way, which would leave its routers with nobody. Once too many were
silent, they count until they are heard again; and the brake stays on until it has been calm for
the length of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Hold(StrEnum):
    """Why a silent node keeps its routers."""

    DISABLED = "disabled"
    """By the settings."""
    NOTHING_THERE = "nothing-there"
    """It has no routers."""
    FLAPPING = "flapping"
    """It has no routers any more, and gets none: it falls silent too often."""
    UNCONFIRMED = "unconfirmed"
    """Only the leader misses it for certain: too few voters answer that could say so too."""
    PAUSED = "paused"
    """By a person."""
    TWO_NODES = "two-nodes-without-third-voter"
    """The node that is left cannot know whether it is the one that is cut off."""
    MASS_SILENCE = "mass-silence"
    """Too many are silent at once."""
    NO_TARGET = "no-target"
    """No other node is there that could take routers."""
    OTHERS_LATE = "others-late"
    """Renewals of so many others are overdue that it may be a mass silence; known in moments."""
    BUDGET = "budget"
    """As many nodes as allowed are under recovery."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Shares of all nodes, and seconds. At least one node may always be recovered.

    `look_s`: how much longer the last of many takes to fall silent than the first: one interval of
    renewals.
    """

    enabled: bool = True
    budget: float = 0.2
    mass_silence: float = 0.3
    window_s: float = 10.0
    look_s: float = 0.15


@dataclass(frozen=True, slots=True)
class SeenNode:
    """One node, as the leader sees it.

    `silent_since`: when it was found silent (seconds, the leader's monotonic clock), None while it
    is heard; minus infinity for one without routers that this leader has never heard, which is no
    news. `routers`: how many instances it has a right to. `recovering`: its routers are being given
    to others now, whether it is heard again or not. `suppressed`: it flaps. `late`: not silent,
    and its last renewal is overdue. `unconfirmed`: the leader does not hear it, and too few voters
    say whether they do; it is never given up for that, but counts: at first only as overdue, and
    later, with `silent_since`, as silent.
    """

    name: str
    silent_since: float | None = None
    routers: int = 0
    recovering: bool = False
    suppressed: bool = False
    draining: bool = False
    paused: bool = False
    late: bool = False
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True)
class Brake:
    """Whether it is on (`reason`, `since` when by the leader's monotonic clock), and what must be
    remembered for that: who counts as silent, and when there were last too many."""

    reason: Hold | None = None
    since: float = 0.0
    counted: frozenset[str] = frozenset()
    over_at: float = 0.0


@dataclass(frozen=True, slots=True)
class ZoneSight:
    """All nodes of the desired state, how many voters there are, and the brake of last time."""

    nodes: Sequence[SeenNode]
    voters: int
    rules: Rules = Rules()
    brake: Brake = Brake()


@dataclass(frozen=True, slots=True)
class BrakeEvent:
    """What people are to be told, once: `kind` is `brake-on` or `brake-off`."""

    kind: str
    reason: Hold
    detail: str


@dataclass(frozen=True, slots=True)
class Decisions:
    """`go`: nodes whose recovery begins now, in this order. `hold`: the other silent nodes that are
    not under recovery, and why. `event` is None while the brake is as it was.

    `recovering` (with `go`) of at most `budget`; `silent` (those that count) of at most `limit`.
    """

    go: tuple[str, ...]
    hold: Mapping[str, Hold]
    brake: Brake
    event: BrakeEvent | None
    recovering: int
    budget: int
    silent: int
    limit: int


def share(nodes: int, part: float) -> int:
    """How many nodes `part` of them is: rounded down, and at least one."""
    return max(1, math.floor(nodes * part + 1e-9))


def decide(zone: ZoneSight, now: float) -> Decisions:
    """Whose recovery begins at `now` (seconds, the leader's monotonic clock).

    The order of `zone.nodes` does not matter. Who is in `go` must be `recovering` in the next call.
    """
    budget = share(len(zone.nodes), zone.rules.budget)
    limit = share(len(zone.nodes), zone.rules.mass_silence)
    counted = frozenset(node.name for node in zone.nodes if _counts(node, zone, now))
    over_at = now if len(counted) > limit else zone.brake.over_at
    mass = len(counted) > limit or _is_not_calm(zone, now)
    recovering = sum(node.recovering for node in zone.nodes)
    heard = [node for node in zone.nodes if node.silent_since is None]
    late = sum(node.late for node in heard)
    doubted = sum(node.unconfirmed for node in heard)
    go: list[str] = []
    hold: dict[str, Hold] = {}
    for since, node in _silent(zone):
        reason = _hold(node, zone, mass)
        overdue = late if now - since < zone.rules.look_s else doubted
        if reason is None and len(counted) + overdue > limit:
            reason = Hold.OTHERS_LATE
        if reason is None and recovering + len(go) >= budget:
            reason = Hold.BUDGET
        if reason is None:
            go.append(node.name)
        else:
            hold[node.name] = reason
    brake = Brake(_reason_of(mass, hold), now)
    if mass:
        brake = replace(brake, counted=counted, over_at=over_at)
    if brake.reason is zone.brake.reason:
        brake = replace(brake, since=zone.brake.since)
    decided = Decisions(
        tuple(go), hold, brake, None, recovering + len(go), budget, len(counted), limit
    )
    return replace(decided, event=_event(zone, decided))


def _counts(node: SeenNode, zone: ZoneSight, now: float) -> bool:
    """Whether the node is silent and that is news, or it has routers that nobody took over."""
    if node.silent_since is None:
        return False
    news = now - node.silent_since < zone.rules.window_s
    return news or node.routers > 0 or node.name in zone.brake.counted


def _is_not_calm(zone: ZoneSight, now: float) -> bool:
    """Whether too many were silent a short while ago."""
    was = zone.brake.reason is Hold.MASS_SILENCE
    return was and now - zone.brake.over_at < zone.rules.window_s


def _silent(zone: ZoneSight) -> list[tuple[float, SeenNode]]:
    """The silent nodes that are not under recovery yet, and since when: the longest silent first,
    then the one with most routers."""
    found = [
        (node.silent_since, node)
        for node in zone.nodes
        if node.silent_since is not None and not node.recovering
    ]
    return sorted(found, key=lambda each: (each[0], -each[1].routers, each[1].name))


def _hold(node: SeenNode, zone: ZoneSight, mass: bool) -> Hold | None:
    """Why the silent node is left alone, if it is not for haste or budget."""
    reasons = (
        (Hold.FLAPPING, node.routers == 0 and node.suppressed),
        (Hold.NOTHING_THERE, node.routers == 0),
        (Hold.DISABLED, not zone.rules.enabled),
        (Hold.PAUSED, node.paused),
        (Hold.TWO_NODES, len(zone.nodes) == 2 and zone.voters < 3),
        (Hold.MASS_SILENCE, mass),
        (Hold.UNCONFIRMED, node.unconfirmed),
        (Hold.NO_TARGET, not any(_takes_routers(each) for each in zone.nodes)),
    )
    return next((reason for reason, applies in reasons if applies), None)


def _takes_routers(node: SeenNode) -> bool:
    kept_out = node.suppressed or node.draining or node.paused
    return node.silent_since is None and not node.recovering and not kept_out


def _reason_of(mass: bool, hold: Mapping[str, Hold]) -> Hold | None:
    if mass:
        return Hold.MASS_SILENCE
    return Hold.BUDGET if Hold.BUDGET in hold.values() else None


def _event(zone: ZoneSight, now: Decisions) -> BrakeEvent | None:
    before, reason = zone.brake.reason, now.brake.reason
    if reason is before:
        return None
    detail = (
        f"{now.silent} of {len(zone.nodes)} nodes are silent (limit {now.limit}), "
        f"{now.recovering} under recovery (budget {now.budget})"
    )
    if reason is not None:
        return BrakeEvent("brake-on", reason, detail)
    return None if before is None else BrakeEvent("brake-off", before, detail)
