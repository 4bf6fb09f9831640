"""All orders of a few events in the smallest zone: two nodes, one router, one leader.

Time goes in steps, and what is sent arrives at once, unless an event before says otherwise. Clocks
are exact, so that whoever waits waits no longer than it must. Node `a` has the router at first, and
is the one to which things happen; `b` is well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tests.sim.machine import Kernel
from tests.sim.parts import Parts
from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Command, Commit, Mute, Permit, Right, Send, Tell
from vrha.core.ownership.holder import Holder, first_incarnation
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.timing import LATE_MS, Timing
from vrha.core.ownership.voter import Known, Voter
from vrha.model.ownership import Electorate, Message

STEP_MS = 200.0
TIMING = Timing(
    renew_ms=STEP_MS, lease_ms=2.2 * STEP_MS, slice_ms=STEP_MS / 2, suspect_ms=STEP_MS, drift=0.0
)
LEADER = "o"
NODES = ("a", "b")
ROUTER = "r"
FIRST, SECOND = "r/1", "r/2"
"""Its instances."""
HELD = 8
"""Messages that are late at a time; more are lost."""

Parcel = tuple[str, str, Message]
"""Sender, receiver, content."""
Filter = Callable[[Parcel], bool]
Copied = TypeVar("Copied")


class Zone:
    """A state; `broken` once both nodes spoke for the router at one time."""

    def __init__(self, parts: Parts, voters: int) -> None:
        self.parts = parts
        self.now = 0.0
        self.broken = False
        names = tuple(f"v{place}" for place in range(1, voters + 1))
        electorate = Electorate(1, names)
        self.store = Book((electorate,))
        self.kernels = {name: Kernel() for name in NODES}
        self.disks = {name: first_incarnation(0, 0) for name in NODES}
        self.holders = {
            name: parts.holder(name, TIMING, electorate, self.disks[name], {}, 0.0)
            for name in NODES
        }
        # They have been running for so long that they need not keep quiet.
        self.voters = {name: parts.voter(name, TIMING, -10 * TIMING.quiet_ms) for name in names}
        self.leader = parts.leader(LEADER, 1, TIMING, copy_of_book(self.store), 0.0)
        self.paused = False
        self.waiting: list[Parcel] = []
        self.held: list[Parcel] = []
        self.queue: deque[Parcel] = deque()
        self.drops: frozenset[Filter] = frozenset()
        self.holds: frozenset[Filter] = frozenset()

    def copy(self) -> Zone:
        other = _same(self)
        other.store = copy_of_book(self.store)
        other.kernels = {
            name: Kernel(each.granted, each.live_until) for name, each in self.kernels.items()
        }
        other.disks = dict(self.disks)
        other.holders = {name: _copy_of_holder(each) for name, each in self.holders.items()}
        other.voters = {name: _copy_of_voter(each) for name, each in self.voters.items()}
        other.leader = _copy_of_leader(self.leader)
        other.waiting, other.held = list(self.waiting), list(self.held)
        other.queue = deque()
        return other

    # ---- what happens

    def step(self) -> None:
        self.now += STEP_MS
        for name in NODES:
            if name != "a" or not self.paused:
                self._tick(name)
        self._deliver()
        self._decide()

    def toggle_loss(self, which: Filter) -> None:
        self.drops ^= {which}

    def toggle_delay(self, which: Filter) -> None:
        self.holds ^= {which}

    def arrive(self) -> None:
        """What is late arrives, and may do so again."""
        holds, self.holds = self.holds, frozenset()
        self.queue.extend(self.held)
        self._deliver()
        self.holds = holds

    def restart_voter(self, name: str) -> None:
        self.voters[name] = self.parts.voter(name, TIMING, self.now)

    def restart_a(self) -> None:
        self.paused = False
        self.waiting.clear()
        self.kernels["a"].granted, self.kernels["a"].live_until = {}, self.now
        self.disks["a"] = first_incarnation(self.disks["a"], 0)
        old = self.holders["a"]
        self.holders["a"] = self.parts.holder(
            "a", TIMING, old.electorate, self.disks["a"], old.epochs, self.now
        )

    def pause(self) -> None:
        """Node `a` is stopped, or goes on."""
        self.paused = not self.paused
        kernel = self.kernels["a"]
        if self.paused:
            last = self.now + TIMING.slice_ms + LATE_MS
            kernel.live_until = min(kernel.live_until, last)
            return
        self.queue.extend(self.waiting)
        self.waiting.clear()
        self._deliver()
        self._tick("a")
        self._deliver()

    def restart_leader(self) -> None:
        book = copy_of_book(self.store)
        self.leader = self.parts.leader(LEADER, self.leader.epoch + 1, TIMING, book, self.now)

    def move(self) -> None:
        for right in self._rights():
            self._perform(LEADER, self.leader.revoke(right.router, self.now))
        self._deliver()

    def take_over(self) -> None:
        self._take_over()
        self._deliver()

    # ---- inside

    def _tick(self, name: str) -> None:
        self._perform(name, self.holders[name].tick(self.now))
        self._feed(name)

    def _decide(self) -> None:
        leader, now = self.leader, self.now
        self._perform(LEADER, leader.tick(now))
        for name in leader.silent(now):
            self._perform(LEADER, leader.depose(name, now))
            self._deliver()
            if name == "b":
                self._perform(LEADER, leader.take(name, now))
        if any(leader.nodes[right.node].deposing for right in self._rights()):
            self._take_over()
        if not self._rights():
            before = "b" if self.store.epochs else "a"
            heard = {name: node.heard_at for name, node in leader.nodes.items() if node.seq}
            if heard:
                best = max(heard, key=lambda name: (heard[name], name == before))
                self._perform(LEADER, leader.give(FIRST, best, now))
        self._deliver()

    def _rights(self) -> list[Right]:
        return list(self.leader.book.by_router.get(ROUTER, {}).values())

    def _take_over(self) -> None:
        """The other instance, at `b`, in place of that of `a`."""
        self._perform(LEADER, self.leader.reassign({SECOND: "b"}, self.now))

    def _deliver(self) -> None:
        while self.queue and not self.broken:
            parcel = self.queue.popleft()
            _, to, message = parcel
            if any(drops(parcel) for drops in self.drops):
                continue
            if any(holds(parcel) for holds in self.holds):
                if len(self.held) < HELD:
                    self.held.append(parcel)
            elif to == "a" and self.paused:
                self.waiting.append(parcel)
            elif to in self.holders:
                commands = self.holders[to].receive(message, self.now)
                self._feed(to)
                self._perform(to, commands)
            elif to == LEADER:
                self._perform(to, self.leader.receive(message, self.now))
            elif to in self.voters:
                self._perform(to, self.voters[to].receive(message, self.now))

    def _perform(self, name: str, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Send():
                    self.queue.append((name, command.to, command.message))
                case Tell():
                    for to in (*self.holders[name].electorate.voters, LEADER):
                        self.queue.append((name, to, command.message))
                case Mute():
                    kernel = self.kernels[name]
                    kernel.granted, kernel.live_until = {}, self.now
                    self.disks[name] = command.incarnation
                case Permit():
                    self.kernels[name].granted = dict(command.routers)
                    self._check()
                case Commit():
                    self.store.apply(command)
                case _:
                    raise AssertionError(command)

    def _feed(self, name: str) -> None:
        end, kernel = self.holders[name].lease_end, self.kernels[name]
        if end is not None and end > kernel.live_until:
            kernel.live_until = end
            self._check()

    def _check(self) -> None:
        self.broken |= all(
            kernel.live_until > self.now and ROUTER in kernel.routers
            for kernel in self.kernels.values()
        )

    def key(self) -> int:
        """Equal for states from which the same can come: instants count from now."""
        now = self.now
        return hash(
            (
                self.paused,
                self.drops,
                self.holds,
                tuple(self.waiting),
                tuple(self.held),
                tuple(self.disks.values()),
                tuple(
                    (*sorted(each.granted.items()), max(each.live_until - now, 0.0))
                    for each in self.kernels.values()
                ),
                tuple(_key_of_holder(each, now) for each in self.holders.values()),
                tuple(_key_of_voter(each, now) for each in self.voters.values()),
                _key_of_leader(self.leader, now),
            )
        )


def _from_a(parcel: Parcel) -> bool:
    return parcel[0] == "a"


def _to_a(parcel: Parcel) -> bool:
    return parcel[1] == "a"


def _from_a_to_the_leader(parcel: Parcel) -> bool:
    return parcel[0] == "a" and parcel[1] == LEADER


def _from_a_to_voters(parcel: Parcel) -> bool:
    return parcel[0] == "a" and parcel[1] != LEADER


Event = Callable[[Zone], None]
TIME = "time"
EVENTS: dict[str, Event] = {
    TIME: Zone.step,
    "from a: lost": lambda zone: zone.toggle_loss(_from_a),
    "to a: lost": lambda zone: zone.toggle_loss(_to_a),
    "from a to the leader: lost": lambda zone: zone.toggle_loss(_from_a_to_the_leader),
    "from a to voters: lost": lambda zone: zone.toggle_loss(_from_a_to_voters),
    "to a: late": lambda zone: zone.toggle_delay(_to_a),
    "from a: late": lambda zone: zone.toggle_delay(_from_a),
    "late ones arrive": Zone.arrive,
    "a voter restarts": lambda zone: zone.restart_voter("v1"),
    "a restarts": Zone.restart_a,
    "a stops": Zone.pause,
    "the leader restarts": Zone.restart_leader,
    "a move": Zone.move,
    "a takeover": Zone.take_over,
}
"""An event with a colon begins, and ends when it comes again; so does the stop."""


@dataclass(frozen=True, slots=True)
class Found:
    """`orders` of events were tried, and led to `states`; `broken` is the first that breaks it."""

    orders: int
    states: int
    broken: tuple[str, ...] = ()


def explore(parts: Parts, voters: int, events: int, faults: int) -> Found:
    """All orders of up to `events`, of which up to `faults` are others than time going on."""
    start = Zone(parts, voters)
    for _ in range(3):
        start.step()
    assert ROUTER in start.kernels["a"].routers
    layer: list[tuple[Zone, tuple[str, ...], int]] = [(start, (), 0)]
    # The fewest faults by which a state was reached: with fewer more is still to come.
    seen: dict[int, int] = {start.key(): 0}
    orders = 0
    for _ in range(events):
        following: list[tuple[Zone, tuple[str, ...], int]] = []
        for zone, path, spent in layer:
            for name, event in EVENTS.items():
                cost = spent + (name != TIME)
                if cost > faults:
                    continue
                orders += 1
                state = zone.copy()
                event(state)
                if state.broken:
                    return Found(orders, len(seen), (*path, name))
                key = state.key()
                if seen.get(key, faults + 1) <= cost:
                    continue
                seen[key] = cost
                following.append((state, (*path, name), cost))
        layer = following
    return Found(orders, len(seen))


# ---- copies and keys


def _same(one: Copied) -> Copied:
    other = object.__new__(type(one))
    other.__dict__.update(one.__dict__)
    return other


def copy_of_book(book: Book) -> Book:
    return Book(book.electorates, dict(book.rights), dict(book.incarnations), dict(book.epochs))


def _copy_of_holder(holder: Holder) -> Holder:
    other = _same(holder)
    other.routers, other.epochs = dict(holder.routers), dict(holder.epochs)
    other.sent, other.acked = holder.sent.copy(), dict(holder.acked)
    return other


def _copy_of_voter(voter: Voter) -> Voter:
    other = _same(voter)
    other.nodes = {
        name: Known(known.newest, known.deposed, known.acked_at)
        for name, known in voter.nodes.items()
    }
    return other


def _copy_of_leader(leader: Leader) -> Leader:
    other = _same(leader)
    other.book = copy_of_book(leader.book)
    other.nodes = {name: copy(node) for name, node in leader.nodes.items()}
    for node in other.nodes.values():
        if node.deposing is not None:
            node.deposing = replace(node.deposing, answers=dict(node.deposing.answers))
    return other


def _key_of_holder(holder: Holder, now: float) -> tuple[Any, ...]:
    return (
        holder.incarnation,
        holder.seq,
        tuple((seq, at - now) for seq, at in holder.sent.items()),
        tuple(sorted(holder.acked.items())),
        None if holder.lease_end is None else holder.lease_end - now,
        None if holder.unleased_end is None else holder.unleased_end - now,
        tuple(sorted(holder.routers.items())),
        tuple(sorted(holder.epochs.items())),
        holder.leader_epoch,
        holder.number,
        holder.next_renewal - now,
    )


def _key_of_voter(voter: Voter, now: float) -> tuple[Any, ...]:
    known = tuple(
        (name, each.newest, each.deposed, None if each.acked_at is None else each.acked_at - now)
        for name, each in sorted(voter.nodes.items())
    )
    return voter.started - now, voter.leader_epoch, known


def _key_of_leader(leader: Leader, now: float) -> tuple[Any, ...]:
    nodes = []
    for name, node in sorted(leader.nodes.items()):
        deposing = node.deposing
        asked: tuple[Any, ...] = ()
        if deposing is not None:
            out = None if deposing.out_at is None else deposing.out_at - now
            answers = tuple((voter, at - now) for voter, at in sorted(deposing.answers.items()))
            asked = (deposing.incarnation, deposing.attempt, deposing.began - now, answers, out)
        heard = (node.heard_at - now, node.granted_at - now)
        told = (node.number, node.content, node.stale, node.answered)
        nodes.append((name, node.incarnation, node.seq, *heard, *told, asked))
    rights = tuple(sorted(leader.book.rights.items()))
    incarnations = tuple(sorted(leader.book.incarnations.items()))
    return leader.epoch, leader.number, leader.attempt, tuple(nodes), rights, incarnations
