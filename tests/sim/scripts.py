"""Faults in an order that random ones hardly ever find: each shows why one rule is there.

A script draws its instants, so that seeds differ; it is played several times in a run, against n1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from tests.sim.machine import Setup
from tests.sim.nemesis import (
    Cut,
    Delay,
    Echo,
    Elect,
    Fault,
    Kill,
    Move,
    Noise,
    Pause,
    Silence,
    schedule,
)

Script = Callable[[random.Random, Setup, float], Iterator[tuple[float, Fault]]]
LEADERS = ("o1", "o2")


def at_random(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """Whatever comes."""
    yield from schedule(dice, setup.nodes, setup.leaders, setup.routers, end)


def _times(
    dice: random.Random, setup: Setup, end: float, apart: float
) -> Iterator[tuple[float, list[tuple[float, Fault]]]]:
    """Instants of a play, each with moves before it, by which n1 may come to something again."""
    at = 3000.0
    while at < end - apart:
        start = at + dice.uniform(0, 400)
        moves = [(start - 1500 + 110 * i, Move(dice.choice(setup.routers))) for i in range(10)]
        yield start, list(moves)
        at += apart + 1800


def forgotten(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A node is cut off and deposed; then those who did it are restarted; then it is back."""
    for at, moves in _times(dice, setup, end, 7000):
        yield from moves
        yield at, Cut(("n1",), ("n2", "n3", *LEADERS), 4000)
        yield at + dice.uniform(1500, 2000), Kill("n2", 100)
        yield at + dice.uniform(1500, 2000), Kill("n3", 100)


def split_answers(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """Only the leader hears nothing of the node. One voter answers and is restarted, the other
    answers after that; what they say to the node is lost."""
    for at, moves in _times(dice, setup, end, 6000):
        yield from moves
        yield at, Cut(("n1",), LEADERS, 4000)
        yield at + 200, Cut(("n2",), ("n1",), 420, both=False)
        yield at + 240, Cut(LEADERS, ("n3",), dice.uniform(320, 420))
        yield at + dice.uniform(460, 530), Kill("n2", 20)
        yield at + 540, Cut(("n3",), ("n1",), 4000, both=False)


def late_answer(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """As before, but the other voter answers when the restarted one speaks again."""
    for at, moves in _times(dice, setup, end, 8000):
        yield from moves
        yield at, Cut(("n1",), LEADERS, 6000)
        yield at + 200, Cut(("n2",), ("n1",), 420, both=False)
        yield at + 240, Cut(LEADERS, ("n3",), dice.uniform(2000, 2300))
        yield at + dice.uniform(460, 560), Kill("n2", 20)
        yield at + 2200, Cut(("n3",), ("n1",), 4000, both=False)


def unleased(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """Everybody is restarted, so that nobody acknowledges for a while; the node is granted what
    it had, is deposed before it gets a lease, and those who did it are restarted again."""
    for at, moves in _times(dice, setup, end, 7000):
        yield from moves
        for name in setup.nodes:
            yield at, Kill(name, 30)
        yield at + dice.uniform(250, 350), Cut(("n1",), LEADERS, 5000)
        yield at + 350, Cut(("n2", "n3"), ("n1",), 1000, both=False)
        yield at + dice.uniform(900, 1100), Kill("n2", 20)
        yield at + dice.uniform(900, 1100), Kill("n3", 20)


def forgetful_witness(
    dice: random.Random, setup: Setup, end: float
) -> Iterator[tuple[float, Fault]]:
    """The only voter besides n1 itself that acknowledged is restarted just before it is asked."""
    for at, moves in _times(dice, setup, end, 6000):
        yield from moves
        yield at, Cut(("n1",), ("n3",), 4500)
        yield at + 1000, Cut(("n1",), LEADERS, 3000)
        yield at + 1000 + dice.uniform(330, 430), Kill("n2", 15)


def to_the_edge(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A watcher begins, so that its renewals are foreseen. The leader loses sight of it and asks
    the voters just after they acknowledged the seventh. The watcher is stopped when it is about to
    renew its last slice, and is back to do so just before the kernel would have muted."""
    slow = 1 / dict(setup.rates)["n1"]
    for at, moves in _times(dice, setup, end, 5000):
        yield from moves
        begins = at + 30
        last = begins + 6 * setup.timing.renew_ms * slow
        lease_end = last + setup.timing.lease_ms * slow
        yield at, Kill("n1", 30)
        yield begins + 470, Cut(("n1",), LEADERS, 3000)
        yield begins + 780, Cut(LEADERS, ("n2", "n3"), last + 4 - begins - 780)
        yield last + 7, Cut(("n1",), ("n2", "n3"), 3000)
        stops = lease_end - setup.timing.slice_ms * slow - dice.uniform(0.05, 2)
        yield stops, Pause("n1", setup.timing.slice_ms - dice.uniform(0.05, 1))
        yield stops + setup.timing.slice_ms, Pause("n1", 1500)


def short_lives(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A watcher begins twice while answers are late; then the world hears nothing of it, and it
    hears the answers to its former life."""
    for at, moves in _times(dice, setup, end, 8000):
        yield from moves
        yield at, Noise(0.0, 0.3, 0.5, 1600)
        yield at + 50, Kill("n1", 30, "kept")
        yield at + dice.uniform(1200, 1600), Kill("n1", 30, "old")
        yield at + dice.uniform(1900, 2400), Cut(("n1",), ("n2", "n3", *LEADERS), 3500, both=False)


def elections(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """The leader loses sight of a node, which the voters of old still hear, and voters change."""
    for at, moves in _times(dice, setup, end, 7000):
        yield from moves
        if dice.random() < 0.5:
            yield at + dice.uniform(0, 300), Kill("n1", 60, "lost")
        cut = at + dice.uniform(200, 500)
        yield cut, Cut(("n1",), LEADERS, 3500)
        for voter in ("o1", "n2", "o2", "n3"):
            yield cut + dice.uniform(0, 300), Elect(voter)


def old_voters(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """All voters but n1 are others now. It comes back without its disk, so it has its lease from
    those of old; a grant by which it would learn better is late, and the leader loses sight of
    it."""
    for at, moves in _times(dice, setup, end, 7000):
        yield from moves
        for place, voter in enumerate(("o1", "n2", "o2", "n3")):
            yield at + 300 * place, Elect(voter)
        yield at + 2000, Kill("n1", 60, "lost")
        yield at + 2060, Delay(LEADERS, ("n1",), dice.uniform(350, 550), 3000)
        yield at + 2060 + dice.uniform(160, 350), Cut(("n1",), LEADERS, 3500, both=False)


def moves_in_noise(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """Many planned moves while answers are late and doubled."""
    for at, moves in _times(dice, setup, end, 5000):
        yield from moves
        yield at, Noise(0.05, 0.4, 0.3, 4000)
        for place in range(12):
            yield at + 300 * place + dice.uniform(0, 200), Move(dice.choice(setup.routers))


def echoes(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A watcher has a short life that only voters hear of, and loses its last write with its end.
    The next life is soon heard by nobody, and hears again what the voters said to the last."""
    for at, moves in _times(dice, setup, end, 6000):
        yield from moves
        length = dice.uniform(800, 950)
        yield at - 20, Cut(("n1",), LEADERS, length + 45)
        yield at, Kill("n1", 20, "kept")
        yield at, Echo(("n2", "n3"), ("n1",), length + dice.uniform(50, 400), length)
        yield at + length, Kill("n1", 20, "old")
        unheard = at + length + dice.uniform(300, 440)
        yield unheard, Cut(("n1",), LEADERS, 3500)
        yield unheard, Cut(("n1",), ("n2", "n3"), 3500, both=False)


def slow_grant(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A watcher begins that hears of no voter. The leader grants it what it had, loses sight of it
    and deposes it; those who did it are restarted, and acknowledge what they had deposed. Then the
    grant comes."""
    for at, moves in _times(dice, setup, end, 8000):
        yield from moves
        yield at, Cut(("n1",), ("n2", "n3"), 1800)
        yield at, Kill("n1", 20)
        yield at, Delay(LEADERS, ("n1",), dice.uniform(2200, 2800), 1000)
        yield at + dice.uniform(50, 400), Cut(("n1",), LEADERS, 5000, both=False)
        yield at + 900, Kill("n2", 20)
        yield at + 900, Kill("n3", 20)


def power_lost(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A node is gone for good, and what the leader asks the others about it at first is lost."""
    yield end - 4000, Kill("n1", 1e9)
    yield end - 3800, Cut(LEADERS, ("n2", "n3"), dice.uniform(500, 1500), both=False)


def unanswered(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A node that the leaders hear gets no more answers of the other voters, or these do not hear
    it; for some time, and in the end for good."""
    for at, moves in _times(dice, setup, end, 5000):
        yield from moves
        yield at, Cut(("n2", "n3"), ("n1",), dice.uniform(300, 4000), both=dice.random() < 0.5)
    yield end + 500, Cut(("n2", "n3"), ("n1",), 1e9, both=dice.random() < 0.5)


def upgrades(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A watcher is restarted, and goes on with its lease, when its routers have just been moved."""
    for at, moves in _times(dice, setup, end, 3000):
        yield from moves
        for place, router in enumerate(setup.routers):
            yield at + 20 * place, Move(router)
        yield at + dice.uniform(5, 150), Kill("n1", dice.uniform(10, 120), "resumed")


def half_silent(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """Half of the nodes, whichever, fall silent at once, or as many as may without that being too
    many."""
    at = 3000.0
    while at < end - 6000:
        count = len(setup.nodes) // 2 if dice.random() < 0.6 else int(len(setup.nodes) * 0.3)
        many = dice.sample(setup.nodes, count)
        length = dice.uniform(2500, 5000)
        yield at, Silence(tuple(sorted(many)), length)
        yield at + dice.uniform(100, 2000), Move(dice.choice(setup.routers))
        # The brake has to come off in between.
        at += length + dice.uniform(11_000, 13_000)


def voters_silent(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """All voters among the nodes fall silent, so that nobody can say who is missed."""
    at = 3000.0
    while at < end - 6000:
        some = {name for name in setup.nodes if name in setup.voters}
        some |= set(dice.sample(setup.nodes, len(setup.nodes) // 2))
        yield at, Silence(tuple(sorted(some)), dice.uniform(2500, 5000))
        at += dice.uniform(17_000, 19_000)


def flapping(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """A node falls silent again and again."""
    at = 3000.0
    while at < end - 2000:
        length = dice.uniform(900, 2500)
        yield at, Silence(("n1",), length)
        at += length + dice.uniform(500, 4000)


def still_deaf(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """Half of the nodes are silent for a moment; then only the leaders do not hear one of them,
    until the brake has come off."""
    at = 3000.0
    while at < end - 16_000:
        many = tuple(sorted(dice.sample(setup.nodes, len(setup.nodes) // 2)))
        length = dice.uniform(900, 2000)
        yield at, Cut(many[:1], LEADERS, 15_000)
        yield at, Silence(many[1:], length)
        yield at, Cut(many[:1], setup.nodes, length)
        at += dice.uniform(19_000, 21_000)


BRAKED = (half_silent, voters_silent, flapping, still_deaf)
"""They are about many nodes, and who of them is given up."""


def deaf_leader(dice: random.Random, setup: Setup, end: float) -> Iterator[tuple[float, Fault]]:
    """The leader alone, or with one voter, hears nothing of a node; before that everybody did
    not, so that what voters said then is known."""
    for at, moves in _times(dice, setup, end, 9000):
        yield from moves
        yield at, Cut(("n1",), ("n2", "n3", *LEADERS), dice.uniform(450, 1300))
        others = dice.choice((LEADERS, (*LEADERS, "n2"), (*LEADERS, "n3")))
        yield at + dice.uniform(1500, 3500), Cut(("n1",), others, 3000)


SCRIPTS: Mapping[str, Script] = {
    script.__name__: script
    for script in (
        at_random,
        forgotten,
        split_answers,
        late_answer,
        unleased,
        forgetful_witness,
        to_the_edge,
        short_lives,
        echoes,
        slow_grant,
        elections,
        old_voters,
        moves_in_noise,
        power_lost,
        unanswered,
        upgrades,
        deaf_leader,
        *BRAKED,
    )
}
"""By name; the first is that of random faults."""
