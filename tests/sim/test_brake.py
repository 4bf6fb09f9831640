"""The brake over the whole of it: many nodes silent, nobody to confirm it, one that flaps."""

from __future__ import annotations

import pytest

from tests.sim.machine import Setup
from tests.sim.nemesis import Fault, Move, Silence
from tests.sim.run import SimNemesis, names
from tests.sim.world import World
from vrha.core.brake import Hold

FALLS_MS = 5000.0
SEEDS = range(3)


def zone(nodes: int, voters: int = 3) -> Setup:
    return Setup(names(nodes), voters=names(voters), routers=names(4 * nodes, "r"), braked=True)


class Play:
    """A zone in which all is well and every node has something, until it is told otherwise."""

    def __init__(self, seed: int, setup: Setup) -> None:
        self.world = World(seed, setup=setup)
        self.nemesis = SimNemesis(self.world)
        for place, router in enumerate(setup.routers):
            self.at(2000.0 + 10 * place, Move(router))
        self.run(FALLS_MS)
        # They could not say themselves what they hear.
        self.busy = sorted(set(self.owners()) - set(setup.voters))

    def at(self, when: float, fault: Fault) -> None:
        self.world.at(when, lambda: self.nemesis.strike(fault))

    def run(self, until: float) -> None:
        self.world.run(until)
        assert self.world.violations == []

    def owners(self) -> list[str]:
        """Of each router that has any."""
        return [name for router in self.world.setup.routers for name in self.world.speakers(router)]

    @property
    def deposed(self) -> list[str]:
        return [name for _, name in self.world.deposed]

    def is_told(self) -> bool:
        """Whether people know within two seconds that many are silent."""
        at, event = self.world.alarms[0]
        is_it = (event.kind, event.reason) == ("brake-on", Hold.MASS_SILENCE)
        return is_it and FALLS_MS < at < FALLS_MS + 2000


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nodes", [6, 8, 10])
def test_half_of_the_nodes_silent_at_once_moves_nothing_and_tells(nodes: int, seed: int) -> None:
    """Of these the voters are a majority that is heard."""
    play = Play(seed, zone(nodes))
    play.at(FALLS_MS, Silence(names(nodes)[nodes // 2 :], 6000))
    play.run(FALLS_MS + 5000)
    assert play.deposed == []
    assert play.is_told()
    play.run(FALLS_MS + 30_000)
    assert [event.kind for _, event in play.world.alarms] == ["brake-on", "brake-off"]
    assert len(play.owners()) == len(play.world.setup.routers)


@pytest.mark.parametrize("seed", SEEDS)
def test_people_are_told_when_the_voters_are_among_the_silent(seed: int) -> None:
    play = Play(seed, zone(6))
    play.at(FALLS_MS, Silence(names(3), 6000))
    play.run(FALLS_MS + 5000)
    assert play.deposed == []
    assert play.is_told()


@pytest.mark.parametrize("seed", SEEDS)
def test_what_has_begun_goes_on_while_others_fall_silent(seed: int) -> None:
    """One is lost; half of the others follow when its routers have just been given up."""
    play = Play(seed, zone(10))
    lost = play.busy[-1]
    play.at(FALLS_MS, Silence((lost,), 20_000))
    others = [name for name in names(10)[3:] if name != lost]
    play.at(FALLS_MS + 580, Silence(tuple(others[:5]), 12_000))
    play.run(FALLS_MS + 10_000)
    assert play.deposed == [lost]
    assert not play.world.store.book.by_node.get(lost), "all that it had has been taken over"
    assert play.world.alarms


@pytest.mark.parametrize("seed", SEEDS)
def test_not_more_than_the_budget_at_a_time(seed: int) -> None:
    """Two of ten."""
    play = Play(seed, zone(10))
    timing = play.world.setup.timing
    lost = play.busy[:3]
    play.at(FALLS_MS, Silence(tuple(lost), 20_000))
    play.run(FALLS_MS + 15_000)
    assert sorted(play.deposed) == lost
    earliest = FALLS_MS - timing.renew_ms + timing.safe_ms * 0.99
    times = sorted(at for at, _ in play.world.deposed)
    assert [at < earliest for at in times] == [True, True, False], "until one has been taken over"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_flaps_is_given_up_and_gets_nothing_after(seed: int) -> None:
    play = Play(seed, zone(6))
    bad = play.busy[0]
    for turn in range(8):
        play.at(FALLS_MS + 4000 * turn, Silence((bad,), 1500))
    play.run(FALLS_MS + 3000)
    assert play.deposed == [bad]
    while play.world.now < FALLS_MS + 50_000:
        play.run(play.world.now + 500)
        assert bad not in play.owners()
    assert play.deposed == [bad]
    assert play.world.store.health[bad].suppressed_until * 1000 > play.world.now
    assert len(play.owners()) == len(play.world.setup.routers)
