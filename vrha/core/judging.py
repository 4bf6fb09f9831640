"""Whom the leader gives up: silence by its clock, what the voters say, and the brake.

Used by the thread of ownership alone. What has to be kept or told (penalties, the alarm) is handed
over as notes to whoever writes them, since this thread must not wait for the store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from vrha.core.brake import (
    Brake,
    BrakeEvent,
    Decisions,
    Hold,
    Rules,
    SeenNode,
    ZoneSight,
    decide,
)
from vrha.core.damping import is_suppressed
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.timing import Timing
from vrha.core.pauses import paused_by
from vrha.model.health import NodeHealth
from vrha.model.pauses import Pause
from vrha.model.spec import Node

_LATE = 1.5
"""Intervals after which a renewal is overdue."""


class Turn(StrEnum):
    """What a node has come to."""

    SILENT = "silent"
    GIVEN_UP = "given-up"
    OUT = "out"
    """Nothing that was granted to it can be active any more."""
    BACK = "back"


Note = tuple[Turn, str] | BrakeEvent
"""A node and what it has come to, or what the brake has to say."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """All that was seen and decided `at` one moment (s, the leader's clock), and how long ago nodes
    were heard (ms)."""

    at: float
    zone: ZoneSight
    decided: Decisions
    heard_ms_ago: Mapping[str, float]
    health: Mapping[str, NodeHealth]

    @property
    def holds(self) -> Mapping[str, str]:
        """Nodes from which nothing is moved now, whatever ails them, and why."""
        reason = self.decided.brake.reason
        everywhere = reason is Hold.MASS_SILENCE
        found = {node.name: str(Hold.PAUSED) for node in self.zone.nodes if node.paused}
        if everywhere:
            found |= {node.name: str(reason) for node in self.zone.nodes}
        return found | {name: str(hold) for name, hold in self.decided.hold.items()}


class Judge:
    """Of one leadership."""

    def __init__(self, rules: Rules, timing: Timing) -> None:
        self._timing = timing
        self._rules = rules
        self._nodes: tuple[Node, ...] = ()
        self._pauses: Sequence[Pause] = ()
        self._health: Mapping[str, NodeHealth] = {}
        self._draining: Set[str] = frozenset()
        self._suppressed: Set[str] = frozenset()
        self._silent: dict[str, float] = {}
        self._doubted: dict[str, float] = {}
        self._recovering: set[str] = set()
        self._brake = Brake()
        self.notes: list[Note] = []

    def learn(
        self,
        nodes: Iterable[Node],
        pauses: Sequence[Pause],
        draining: Set[str],
        health: Mapping[str, NodeHealth],
        unix: float,
    ) -> None:
        """What the store says now (`unix`: the time of day, s)."""
        self._nodes = tuple(nodes)
        self._pauses = pauses
        self._draining = draining
        self._health = health
        self._suppressed = {name for name, each in health.items() if is_suppressed(each, unix)}

    @property
    def recovering(self) -> frozenset[str]:
        """Nodes that are given up, and have not come back before all was taken over."""
        return frozenset(self._recovering)

    def judge(self, leader: Leader, now: float) -> Judgement:
        """What is to be done about silent nodes at `now` (ms, the clock of `leader`)."""
        names = {node.name for node in self._nodes}
        self._look(leader, names, now)
        zone = ZoneSight(
            tuple(self._seen(leader, node, now) for node in self._nodes),
            len(leader.book.electorates[-1].voters),
            self._rules,
            self._brake,
        )
        decided = decide(zone, now / 1000)
        self._brake = decided.brake
        self._recovering |= set(decided.go)
        self.notes += [(Turn.GIVEN_UP, name) for name in decided.go]
        if decided.event is not None:
            self.notes.append(decided.event)
        heard = {n: now - leader.nodes[n].heard_at for n in names if self._is_known(leader, n)}
        return Judgement(now / 1000, zone, decided, heard, self._health)

    def _look(self, leader: Leader, names: set[str], now: float) -> None:
        for name in names:
            silent = self._is_silent(leader, name, now)
            if silent is None:
                self._doubted.setdefault(name, now / 1000)
                continue
            self._doubted.pop(name, None)
            if not silent:
                if self._silent.pop(name, -math.inf) > -math.inf:
                    self.notes.append((Turn.BACK, name))
                self._recovering.discard(name)
            elif name not in self._silent:
                self._silent[name] = now / 1000 if self._is_known(leader, name) else -math.inf
                if self._is_known(leader, name):
                    self.notes.append((Turn.SILENT, name))
        for known in (self._silent, self._doubted):
            for name in known.keys() - names:
                del known[name]
        self._recovering = {n for n in self._recovering if leader.book.by_node.get(n)}

    def _is_silent(self, leader: Leader, name: str, now: float) -> bool | None:
        """Silence that others confirm, where it matters. None: too few answer; all is as it was."""
        node = leader.nodes.get(name)
        if node is None:
            return True
        if node.deposing is not None:
            return True
        if leader.is_unanswered(name, now):
            # Where it has nothing to lose, that is no news: voters that begin are quiet for a time.
            return bool(leader.book.by_node.get(name))
        if not leader.is_suspect(node, now):
            return False
        if not leader.book.by_node.get(name) or leader.is_missed(name, now):
            return True
        return False if leader.is_seen(name, now) else None

    @staticmethod
    def _is_known(leader: Leader, name: str) -> bool:
        return name in leader.nodes

    def _seen(self, leader: Leader, node: Node, now: float) -> SeenNode:
        name, known = node.name, leader.nodes.get(node.name)
        late = known is not None and now - known.heard_at > _LATE * self._timing.renew_ms
        since, doubted = self._silent.get(name), self._doubted.get(name)
        if since is None and doubted is not None and now / 1000 - doubted >= self._doubt_s:
            since = doubted
        return SeenNode(
            name,
            since,
            len(leader.book.by_node.get(name, {})),
            recovering=name in self._recovering,
            suppressed=name in self._suppressed,
            draining=name in self._draining,
            paused=paused_by(self._pauses, zone=node.zone, node=name) is not None,
            late=late,
            unconfirmed=doubted is not None,
        )

    @property
    def _doubt_s(self) -> float:
        """Long enough for a leader that stood still; then its people have to know."""
        return self._timing.lease_ms / 1000
