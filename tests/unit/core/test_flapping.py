"""Brake, damping and placement together: a node that comes and goes, tick by tick."""

from __future__ import annotations

from vrha.core.brake import Brake, Rules, SeenNode, ZoneSight, decide
from vrha.core.damping import (
    Damping,
    came_back,
    failed_over,
    fell_silent,
    is_delayed,
    is_suppressed,
)
from vrha.core.placement import Candidate, Placer
from vrha.model.health import NodeHealth
from vrha.model.spec import Node, Router

NAMES = ("bad", "n1", "n2", "n3", "n4")
ROUTER = Router("r", ("blue",))
TICK_S = 0.5
UNIX = 1.8e9
RULE = Damping()


class Zone:
    """Five nodes with ten routers each, which move in the tick in which their node is released."""

    def __init__(self) -> None:
        self.now = 0.0
        self.routers = dict.fromkeys(NAMES, 10)
        self.health = {name: NodeHealth(name) for name in NAMES}
        self.silent: dict[str, float] = {}
        self.brake = Brake()
        self.failovers: list[str] = []

    def run(self, seconds: float, silent: frozenset[str] = frozenset()) -> None:
        for name in silent - self.silent.keys():
            self.silent[name] = self.now
            self.health[name] = fell_silent(self.health[name], UNIX + self.now, RULE)
        for name in self.silent.keys() - silent:
            del self.silent[name]
            self.health[name] = came_back(self.health[name], UNIX + self.now, RULE)
        until = self.now + seconds
        while self.now < until:
            self.tick()
            self.now += TICK_S

    def tick(self) -> None:
        unix = UNIX + self.now
        nodes = tuple(
            SeenNode(
                name,
                self.silent.get(name),
                self.routers[name],
                suppressed=is_suppressed(self.health[name], unix),
            )
            for name in NAMES
        )
        found = decide(ZoneSight(nodes, 3, Rules(), self.brake), self.now)
        self.brake = found.brake
        for name in found.go:
            self.failovers.append(name)
            self.health[name] = failed_over(self.health[name], unix, RULE)
            self.spread(name)

    def placer(self) -> Placer:
        unix = UNIX + self.now
        return Placer(
            Candidate(
                Node(name),
                self.routers[name],
                name not in self.silent,
                suppressed=is_suppressed(self.health[name], unix),
                delayed=is_delayed(self.health[name], unix),
            )
            for name in NAMES
        )

    def spread(self, name: str) -> None:
        placer = self.placer()
        for _ in range(self.routers.pop(name)):
            target = placer.place(ROUTER).node
            placer.take(target)
            self.routers[target] += 1
        self.routers[name] = 0


def test_a_node_that_flaps_loses_its_routers_once_and_gets_none_back() -> None:
    zone = Zone()
    bad = frozenset({"bad"})
    for _ in range(50):
        zone.run(2, silent=bad)
        zone.run(20)
    assert zone.failovers == ["bad"]
    assert zone.routers == {"bad": 0, "n1": 13, "n2": 13, "n3": 12, "n4": 12}
    # Another node is lost meanwhile: what flaps is empty, and the emptiest all the same.
    zone.run(30, silent=frozenset({"n1"}))
    assert zone.failovers == ["bad", "n1"]
    assert zone.routers == {"bad": 0, "n1": 0, "n2": 17, "n3": 17, "n4": 16}
    # A quiet hour, and it is a node as any other.
    zone.run(3600)
    assert zone.placer().place(ROUTER).node == "bad"


def test_slow_flapping_is_held_off_by_the_delay() -> None:
    zone = Zone()
    for _ in range(20):
        zone.run(5, silent=frozenset({"bad"}))
        zone.run(720)
        assert zone.placer().place(ROUTER).node != "bad"
    assert zone.failovers == ["bad"]


def test_with_all_others_gone_the_one_that_came_back_serves() -> None:
    """One after the other, slowly: no mass silence, and at the end nobody else is there."""
    zone = Zone()
    gone: frozenset[str] = frozenset()
    zone.run(5, silent=frozenset({"bad"}))
    for name in NAMES[1:]:
        gone |= {name}
        zone.run(60, silent=gone)
    assert zone.failovers == list(NAMES)
    assert zone.routers == {"bad": 50, "n1": 0, "n2": 0, "n3": 0, "n4": 0}
