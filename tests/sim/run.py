"""One seed: a world, its faults, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.machine import Setup, Wrong
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
    StoreDown,
    StoreUnsure,
    Stumble,
    WallJump,
)
from tests.sim.orchestrator import Orchestrator
from tests.sim.parts import Parts
from tests.sim.scripts import BRAKED, Script, at_random
from tests.sim.watcher import Watcher
from tests.sim.world import World
from vrha.core.brake import Rules, share


def names(count: int, first: str = "n") -> tuple[str, ...]:
    return tuple(f"{first}{place}" for place in range(1, count + 1))


LENGTH_MS = 60_000.0
CALM_MS = 12_000.0
"""At the end of a run without faults: all must be owned again by then."""
SETUPS = (
    Setup(),
    Setup(voters=("n1", "n2", "o1")),
    Setup(nodes=("n1", "n2", "n3", "n4", "n5"), voters=("n1", "n2", "n3", "n4", "n5")),
    Setup(voters=("n1",)),
    Setup(nodes=("n1", "n2", "n3", "n4", "n5", "n6"), braked=True),
)
LARGE = tuple(
    Setup(nodes=names(count), voters=voters, routers=names(count, "r"), braked=True)
    for count, voters in ((6, names(3)), (8, names(5)), (10, names(3)), (7, ("n1", "n2", "o1")))
)
DIRECTED = Setup(rates=(("n1", 0.99), ("o1", 1.01), ("o2", 1.01)), decide_ms=5.0)
"""A node whose clock is slow, and leaders who are in a hurry."""


class SimNemesis:
    """Does to a simulated zone what a fault says."""

    def __init__(self, world: World) -> None:
        self.world = world

    def strike(self, fault: Fault) -> None:
        world = self.world
        world.faults += 1
        world.tell("nemesis", "does", fault)
        match fault:
            case Pause():
                world.processes[fault.name].pause(fault.ms)
            case Kill():
                self.kill(fault)
            case Cut():
                pairs = {(a, b) for a in fault.these for b in fault.those}
                pairs |= {(b, a) for a, b in pairs} if fault.both else set()
                world.cut |= pairs
                world.after(fault.ms, lambda: world.cut.difference_update(pairs))
            case Silence():
                self.silence(fault)
            case Delay() | Echo():
                world.slow.append(fault)
                world.after(fault.ms, lambda: self.quick(fault))
            case Noise():
                world.loss, world.double, world.late = fault.loss, fault.double, fault.late
                world.after(fault.ms, self.quiet)
            case Stumble():
                world.pausing = fault.share
                world.after(fault.ms, self.steady)
            case StoreDown():
                world.store.up = False
                world.after(fault.ms, self.store_back)
            case StoreUnsure():
                world.store.unsure = fault.share
                world.after(fault.ms, self.store_back)
            case WallJump():
                world.processes[fault.name].clock.jump += fault.ms
            case Move() | Elect():
                self.ask(fault)

    def silence(self, fault: Silence) -> None:
        world, names = self.world, set(fault.names)
        pairs = {(a, b) for a in names for b in world.processes if a != b}
        pairs |= {(b, a) for a, b in pairs}
        world.cut |= pairs
        if len(names) > share(len(world.setup.nodes), Rules().mass_silence):
            world.silenced |= names

        def back() -> None:
            world.cut -= pairs
            world.silenced -= names

        world.after(fault.ms, back)

    def kill(self, fault: Kill) -> None:
        process = self.world.processes[fault.name]
        process.kill()

        def again() -> None:
            if isinstance(process, Watcher):
                process.restart(fault.state)
            elif isinstance(process, Orchestrator):
                process.restart()

        self.world.after(fault.ms, again)

    def ask(self, fault: Move | Elect) -> None:
        for one in self.world.orchestrators.values():
            if one.leader is None or not one.alive or one.paused:
                continue
            if isinstance(fault, Move):
                one.move(fault.router)
            else:
                voters = set(one.leader.book.electorates[-1].voters) ^ {fault.name}
                if 1 <= len(voters) <= 5:
                    self.world.can_vote.add(fault.name)
                    one.act(one.leader, one.leader.elect(voters, one.now()))

    def quiet(self) -> None:
        self.world.loss = self.world.double = self.world.late = 0.0

    def steady(self) -> None:
        self.world.pausing = 0.0

    def store_back(self) -> None:
        self.world.store.up, self.world.store.unsure = True, 0.0

    def quick(self, fault: Delay | Echo) -> None:
        if fault in self.world.slow:
            self.world.slow.remove(fault)

    def heal(self) -> None:
        self.world.cut.clear()
        self.world.silenced.clear()
        self.world.slow.clear()
        self.quiet()
        self.steady()
        self.store_back()


@dataclass(frozen=True, slots=True)
class Outcome:
    """`unowned` are routers that nobody, or more than one, had after the calm."""

    seed: int
    violations: tuple[Wrong, ...]
    unowned: tuple[str, ...]
    events: int
    faults: int
    epochs: int

    @property
    def bad(self) -> bool:
        return bool(self.violations or self.unowned)


def setup_of(seed: int, script: Script) -> Setup:
    if script is at_random:
        return SETUPS[seed % len(SETUPS)]
    # The others are about nodes that they name.
    return LARGE[seed % len(LARGE)] if script in BRAKED else DIRECTED


def run_seed(
    seed: int,
    parts: Parts | None = None,
    script: Script = at_random,
    length_ms: float = LENGTH_MS,
    trace: Callable[[str], None] | None = None,
) -> Outcome:
    """Run one seed: faults, then calm. `trace` is given a line for all that happens."""
    world = World(seed, parts, setup_of(seed, script), trace)
    nemesis = SimNemesis(world)
    dice = random.Random(seed ^ 0x5EED)
    setup = world.setup
    end = length_ms - CALM_MS
    for at, fault in script(dice, setup, end):
        world.at(at, lambda fault=fault: nemesis.strike(fault))
    world.at(end, nemesis.heal)
    world.run(length_ms)
    unowned = ()
    if not world.violations:
        unowned = tuple(r for r in setup.routers if len(world.speakers(r)) != 1)
    epochs = sum(world.store.book.epochs.values())
    return Outcome(seed, tuple(world.violations), unowned, world.done, world.faults, epochs)
