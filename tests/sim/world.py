"""A zone in one thread: clocks that drift, a network that loses, processes that stop, a store.

All is drawn from one seed, so a run can be had again exactly. The deciders are those of the
daemons (`vrha.core.ownership`); only what is around them is made here. Times are in ms; true time
is that of the event queue, which nobody else can see.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.sim.parts import Parts
from vrha.core.ownership.commands import Command, Commit, Mute, Permit, Send, StepDown, Tell
from vrha.core.ownership.holder import Holder
from vrha.core.ownership.leader import Book, Leader
from vrha.core.ownership.timing import PROFILES, Timing
from vrha.core.ownership.voter import Voter
from vrha.model.ownership import (
    Ack,
    Depose,
    Deposed,
    Electorate,
    Grant,
    Held,
    Holding,
    Message,
    Over,
    Refusal,
    Renew,
    Silenced,
)

LEADER_TTL_MS = 500.0
LEADER_BEAT_MS = 100.0
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Violation:
    """Two nodes that could speak for one router at the same time."""

    at_ms: float
    router: str
    nodes: tuple[str, str]

    def __str__(self) -> str:
        return f"at {self.at_ms:.1f} ms {' and '.join(self.nodes)} both own {self.router}"


@dataclass(frozen=True, slots=True)
class Setup:
    """What a zone is made of."""

    nodes: tuple[str, ...] = ("n1", "n2", "n3")
    leaders: tuple[str, ...] = ("o1", "o2")
    voters: tuple[str, ...] = ("n1", "n2", "n3")
    routers: tuple[str, ...] = ("r1", "r2", "r3", "r4")
    timing: Timing = PROFILES["default"]
    rates: tuple[tuple[str, float], ...] = ()
    decide_ms: float = 50.0


@dataclass(slots=True)
class Clock:
    """Reads `offset + rate * true time`; the wall clock jumps besides."""

    offset: float
    rate: float
    jump: float = 0.0

    def read(self, true: float) -> float:
        return self.offset + self.rate * true

    def true(self, read: float) -> float:
        return (read - self.offset) / self.rate


@dataclass(slots=True)
class Kernel:
    """What lets routers speak; it goes on while processes are stopped."""

    granted: dict[str, int] = field(default_factory=dict)
    live_until: float = -FOREVER


class Store:
    """One row of leadership and a book; compare-and-set."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.holder = ""
        self.epoch = 0
        self.beat = 0
        self.up = True
        self.unsure = 0.0

    def commit(self, epoch: int, commit: Commit, dice: float) -> bool:
        """A commit whose answer is lost has happened all the same."""
        if not self.up or epoch != self.epoch:
            return False
        self.book.apply(commit)
        return dice >= self.unsure

    def copy(self) -> Book:
        book = self.book
        return Book(book.electorates, dict(book.rights), dict(book.incarnations), dict(book.epochs))


class Process:
    """Something with a clock, that can be stopped anywhere and killed."""

    def __init__(self, world: World, name: str, clock: Clock) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.alive = True
        self.paused = False
        self.life = 0
        self.inbox: list[Message] = []
        self.rest: list[Command] = []

    def now(self) -> float:
        return self.world.parts.now(self)

    def deliver(self, message: Message) -> None:
        if not self.alive:
            return
        if self.paused:
            # A socket's buffer is not endless.
            if len(self.inbox) < 200:
                self.inbox.append(message)
            return
        self.perform(self.receive(message))

    def perform(self, commands: list[Command]) -> None:
        """Carry out commands in order; a pause may come before any of them."""
        for place, command in enumerate(commands):
            if self.paused or (self.world.pausing and self.world.stumbles(self)):
                self.rest += commands[place:]
                return
            if not self.carry_out(command):
                return

    def pause(self, length: float) -> None:
        if not self.alive or self.paused:
            return
        self.paused = True
        self.stopped()
        life = self.life
        self.world.after(length, lambda: self.resume(life))

    def resume(self, life: int) -> None:
        if not self.alive or not self.paused or life != self.life:
            return
        self.paused = False
        self.woken()
        rest, self.rest = self.rest, []
        self.perform(rest)
        waiting, self.inbox = self.inbox, []
        for message in waiting:
            self.deliver(message)
        if self.alive and not self.paused:
            self.run()

    def kill(self) -> None:
        if not self.alive:
            return
        if not self.paused:
            self.stopped()
        self.alive, self.paused = False, False
        self.life += 1
        self.inbox.clear()
        self.rest.clear()

    def receive(self, message: Message) -> list[Command]:
        raise NotImplementedError

    def carry_out(self, command: Command) -> bool:
        raise NotImplementedError

    def run(self) -> None:
        """Do what is due, and be called again."""
        raise NotImplementedError

    def stopped(self) -> None:
        """From here on nothing of it runs."""

    def woken(self) -> None:
        """It runs on, in the middle of whatever it was doing."""


@dataclass(slots=True)
class Disk:
    """What a watcher keeps: its last incarnation, the highest epochs, its electorate."""

    incarnation: int
    epochs: Held
    electorate: Electorate


class Watcher(Process):
    """A node: the kernel, the holder of its lease, and its voter if it is one."""

    def __init__(self, world: World, name: str, clock: Clock) -> None:
        super().__init__(world, name, clock)
        self.kernel = Kernel()
        electorate = world.store.book.electorates[0]
        self.disk = Disk(0, (), electorate)
        self.older = self.disk
        self.checked = False
        self.begin()

    def begin(self) -> None:
        """A process begins: mutes first, whatever it finds."""
        parts, setup = self.world.parts, self.world.setup
        nonce = self.world.random.getrandbits(32)
        incarnation = parts.first_incarnation(self.disk.incarnation, nonce)
        epochs, electorate = dict(self.disk.epochs), self.disk.electorate
        self.holder: Holder = parts.holder(
            self.name, setup.timing, electorate, incarnation, epochs, self.now()
        )
        self.voter: Voter = parts.voter(self.name, setup.timing, self.now())
        parts.begin(self)
        self.keep(incarnation)
        self.run()

    def keep(self, incarnation: int) -> None:
        self.older = self.disk
        self.disk = Disk(incarnation, self.disk.epochs, self.disk.electorate)

    def restart(self, state: str) -> None:
        """`kept`, `old` (the last write was lost) or `lost`."""
        if self.alive:
            return
        if state == "old":
            self.disk = self.older
        elif state == "lost":
            self.disk = Disk(0, (), self.world.first_electorate)
        self.alive = True
        self.begin()

    def receive(self, message: Message) -> list[Command]:
        now = self.now()
        if isinstance(message, Renew | Depose):
            return self.voter.receive(message, now) if self.name in self.world.can_vote else []
        if isinstance(message, Ack | Over | Grant):
            commands = self.holder.receive(message, now)
            self.feed()
            return commands
        return []

    def run(self) -> None:
        life, holder = self.life, self.holder
        commands = holder.tick(self.now())
        # What ended is muted before anything else can happen.
        self.perform(commands)
        self.feed()
        if not self.alive or self.paused:
            return
        self.world.at(self.world.parts.true(self, holder.due) + 0.01, lambda: self.again(life))

    def again(self, life: int) -> None:
        # A pause takes the timer with it: who wakes up runs at once, and sets the next.
        if self.alive and not self.paused and life == self.life:
            self.life += 1
            self.run()

    def feed(self) -> None:
        """Slices, one after the other, up to the end of the lease. The last may end with it."""
        if self.paused or not self.alive:
            return
        until = self.world.parts.fed_until(self)
        if until > self.kernel.live_until:
            was_live = self.kernel.live_until > self.world.now
            self.kernel.live_until = until
            if not was_live:
                self.world.check(self)

    def stopped(self) -> None:
        """The slice that is running now goes on to its end."""
        self.checked = self.holder.may_extend(self.now())
        ends = self.world.parts.slice_ends(self)
        self.kernel.live_until = min(self.kernel.live_until, ends)

    def woken(self) -> None:
        """It may have been stopped between its look at the clock and the kernel's transaction."""
        self.life += 1
        if self.checked and self.world.random.random() < 0.5:
            self.world.parts.renew_late(self)

    def carry_out(self, command: Command) -> bool:
        match command:
            case Mute():
                self.world.parts.mute(self)
                self.keep(command.incarnation)
            case Permit():
                self.older = self.disk
                self.disk = Disk(self.disk.incarnation, command.epochs, command.electorate)
                self.world.parts.permit(self, dict(command.routers))
                self.world.check(self)
            case Tell():
                for to in dict.fromkeys(self.holder.electorate.voters + self.world.setup.leaders):
                    self.world.send(self.name, to, command.message)
            case Send():
                self.world.send(self.name, command.to, command.message)
            case _:
                raise AssertionError(command)
        return True


class Orchestrator(Process):
    """Leads, or waits for the leader's beat to stop; may be a voter."""

    def __init__(self, world: World, name: str, clock: Clock) -> None:
        super().__init__(world, name, clock)
        self.leader: Leader | None = None
        self.voter: Voter = world.parts.voter(name, world.setup.timing, self.now())
        self.seen = (0, 0)
        self.seen_at = self.now()
        self.beaten_at = self.now()
        self.run()

    def restart(self) -> None:
        if self.alive:
            return
        self.alive = True
        self.leader = None
        self.voter = self.world.parts.voter(self.name, self.world.setup.timing, self.now())
        self.seen_at = self.now()
        self.run()

    def receive(self, message: Message) -> list[Command]:
        now = self.now()
        commands: list[Command] = []
        if isinstance(message, Renew | Depose) and self.name in self.world.can_vote:
            commands += self.voter.receive(message, now)
        if self.leader and isinstance(message, Renew | Holding | Deposed | Refusal | Silenced):
            commands += self.leader.receive(message, now)
        return commands

    def carry_out(self, command: Command) -> bool:
        match command:
            case Commit():
                if self.leader is None or not self.world.parts.commit(self, command):
                    self.leader = None
                    return False
            case Send():
                self.world.send(self.name, command.to, command.message)
            case StepDown():
                self.leader = None
                return False
            case _:
                raise AssertionError(command)
        return True

    def woken(self) -> None:
        self.life += 1

    def run(self) -> None:
        life = self.life
        self.keep_leading()
        if self.leader is not None:
            self.decide(self.leader)
        every = self.world.setup.decide_ms * self.world.random.uniform(0.9, 1.1)
        self.world.after(every, lambda: self.again(life))

    def again(self, life: int) -> None:
        if self.alive and not self.paused and life == self.life:
            self.run()

    def keep_leading(self) -> None:
        store, now = self.world.store, self.now()
        if not store.up:
            return
        if self.leader is not None:
            if self.leader.epoch != store.epoch:
                self.leader = None
            elif now - self.beaten_at >= LEADER_BEAT_MS:
                store.beat += 1
                self.beaten_at = now
            return
        if (store.epoch, store.beat) != self.seen:
            self.seen, self.seen_at = (store.epoch, store.beat), now
        elif now - self.seen_at >= LEADER_TTL_MS:
            store.epoch += 1
            store.holder, store.beat = self.name, 0
            timing = self.world.setup.timing
            self.leader = self.world.parts.leader(self.name, store.epoch, timing, store.copy(), now)
            self.beaten_at = now

    def decide(self, leader: Leader) -> None:
        """The policy: depose the silent, take from those that are out, give to the living."""
        now = self.now()
        self.act(leader, leader.tick(now))
        for name in leader.silent(now):
            self.act(leader, leader.depose(name, now))
            self.act(leader, leader.take(name, now))
        free = [r for r in self.world.setup.routers if not self.owner(leader, r)]
        living = [
            name for name, node in leader.nodes.items() if node.seq and now - node.heard_at < 300
        ]
        for router in free:
            if living:
                name = self.world.random.choice(living)
                self.act(leader, leader.give(router, name, now))

    def act(self, leader: Leader, commands: list[Command]) -> None:
        if self.leader is leader:
            self.perform(commands)

    @staticmethod
    def owner(leader: Leader, router: str) -> str:
        right = leader.book.rights.get(router)
        return right.node if right else ""


class World:
    """Everything of one run; `violations` is what it is all about."""

    def __init__(self, seed: int, parts: Parts | None = None, setup: Setup | None = None) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.parts = parts or Parts()
        self.setup = setup or Setup()
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.done = 0
        self.violations: list[Violation] = []
        self.faults = 0
        self.moves = 0
        self.loss, self.double, self.late = 0.0, 0.0, 0.0
        self.cut: set[tuple[str, str]] = set()
        self.pausing = 0.0
        self.can_vote = set(self.setup.voters)
        self.first_electorate = Electorate(1, tuple(sorted(self.setup.voters)))
        self.store = Store(Book((self.first_electorate,)))
        self.processes: dict[str, Process] = {}
        self.watchers = {name: Watcher(self, name, self.clock(name)) for name in self.setup.nodes}
        self.orchestrators = {
            name: Orchestrator(self, name, self.clock(name)) for name in self.setup.leaders
        }
        self.processes |= {**self.watchers, **self.orchestrators}

    def clock(self, name: str) -> Clock:
        drift = self.setup.timing.drift
        drawn = self.random.choice((1 - drift, 1.0, 1 + drift, self.random.uniform(0.995, 1.005)))
        rate = dict(self.setup.rates).get(name, drawn)
        return Clock(self.random.uniform(0, 1e9), rate)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (max(when, self.now), next(self.order), what))

    def after(self, length: float, what: Callable[[], None]) -> None:
        self.at(self.now + length, what)

    def run(self, until: float) -> None:
        """Let time pass; ends early at the first violation."""
        events = self.events
        while events and events[0][0] <= until and not self.violations:
            self.now, _, what = heapq.heappop(events)
            what()
            self.done += 1
        self.now = max(self.now, until) if not self.violations else self.now

    def send(self, sender: str, to: str, message: Message) -> None:
        process = self.processes.get(to)
        if process is None or (sender, to) in self.cut:
            return
        dice = self.random.random
        if sender != to and self.loss and dice() < self.loss:
            return
        copies = 2 if self.double and dice() < self.double else 1
        for _ in range(copies):
            delay = 0.05 if sender == to else 0.2 + dice() * 3
            if self.late and dice() < self.late:
                delay = dice() * 10 * self.setup.timing.lease_ms
            self.after(delay, lambda: self.arrive(sender, to, process, message))

    def arrive(self, sender: str, to: str, process: Process, message: Message) -> None:
        if (sender, to) not in self.cut:
            process.deliver(message)

    def stumbles(self, process: Process) -> bool:
        """Whether a pause hits the process here, in the middle of what it does."""
        if self.random.random() >= self.pausing:
            return False
        process.pause(self.random.choice((50, 150, 400, 800, 2000)) * self.random.uniform(0.5, 1.5))
        return True

    def check(self, watcher: Watcher) -> None:
        """To be called whenever a node begins to speak for something."""
        if watcher.kernel.live_until <= self.now:
            return
        for other in self.watchers.values():
            if other is watcher or other.kernel.live_until <= self.now:
                continue
            for router in watcher.kernel.granted.keys() & other.kernel.granted.keys():
                self.violations.append(Violation(self.now, router, (other.name, watcher.name)))

    def speakers(self, router: str) -> list[str]:
        """Who speaks for the router now."""
        return [
            name
            for name, one in self.watchers.items()
            if router in one.kernel.granted and one.kernel.live_until > self.now
        ]

    def state(self) -> dict[str, Any]:
        """For people who look at a failing seed."""
        return {
            name: (one.kernel.granted, one.kernel.live_until, one.holder.incarnation)
            for name, one in self.watchers.items()
        }
