"""A zone in one thread: a network that loses, processes that stop, and what must never happen.

All is drawn from one seed, so a run can be had again exactly. The deciders are those of the
daemons (`vrha.core.ownership`); only what is around them is made here.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count, pairwise

from tests.sim.machine import Clock, Needless, Setup, Store, Unbraked, Violation, Wrong
from tests.sim.nemesis import Delay, Echo
from tests.sim.orchestrator import Orchestrator
from tests.sim.parts import Parts
from tests.sim.process import Process
from tests.sim.watcher import Watcher
from vrha.core.brake import BrakeEvent
from vrha.core.ownership.book import Book
from vrha.model.ownership import Electorate, Message

ACKS = 20
"""That are remembered of each voter and node: more than two gaps can have."""
ANSWERS = 100


class World:
    """Everything of one run; `violations` is what it is all about."""

    def __init__(
        self,
        seed: int,
        parts: Parts | None = None,
        setup: Setup | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.seed = seed
        self.trace = trace
        self.random = random.Random(seed)
        self.parts = parts or Parts()
        self.setup = setup or Setup()
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.done = 0
        self.violations: list[Wrong] = []
        self.over = False
        self.alarms: list[tuple[float, BrakeEvent]] = []
        self.deposed: list[tuple[float, str]] = []
        self.acks: dict[tuple[str, str], deque[float]] = {}
        self.answers: dict[str, deque[float]] = {}
        self.faults = 0
        self.loss, self.double, self.late = 0.0, 0.0, 0.0
        self.cut: set[tuple[str, str]] = set()
        self.slow: list[Delay | Echo] = []
        self.silenced: set[str] = set()
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

    def tell(self, name: str, does: str, what: object) -> None:
        """For people who look at a failing seed, and to compare two runs of one."""
        if self.trace is not None:
            self.trace(f"{self.now:11.3f} {name} {does} {what}")

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (max(when, self.now), next(self.order), what))

    def after(self, length: float, what: Callable[[], None]) -> None:
        self.at(self.now + length, what)

    def run(self, until: float) -> None:
        """Let time pass; ends early when a router has two owners."""
        events = self.events
        while events and events[0][0] <= until and not self.over:
            self.now, _, what = heapq.heappop(events)
            what()
            self.done += 1
        self.now = max(self.now, until) if not self.over else self.now

    def send(self, sender: str, to: str, message: Message) -> None:
        process = self.processes.get(to)
        if process is None or (sender, to) in self.cut:
            return
        dice = self.random.random
        if sender != to and self.loss and dice() < self.loss:
            return

        def arrive() -> None:
            if (sender, to) not in self.cut:
                process.deliver(message)

        copies = 2 if self.double and dice() < self.double else 1
        for _ in range(copies):
            delay = 0.05 if sender == to else 0.2 + dice() * 3
            if self.late and dice() < self.late:
                delay = dice() * 10 * self.setup.timing.lease_ms
            for one in self.slow:
                if sender in one.these and to in one.those:
                    if isinstance(one, Echo):
                        self.after(delay + one.by_ms, arrive)
                    else:
                        delay += one.by_ms
            self.after(delay, arrive)

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
            for router in sorted(watcher.kernel.routers & other.kernel.routers):
                self.over = True
                self.tell(watcher.name, "speaks like", other.name)
                self.violations.append(Violation(self.now, router, (other.name, watcher.name)))

    def speakers(self, router: str) -> list[str]:
        """Who speaks for the router now."""
        return [
            name
            for name, one in self.watchers.items()
            if router in one.kernel.routers and one.kernel.live_until > self.now
        ]

    def acknowledged(self, voter: str, node: str) -> None:
        self.acks.setdefault((voter, node), deque(maxlen=ACKS)).append(self.now)

    def answered(self, node: str) -> None:
        """A majority's acknowledgements have prolonged its lease."""
        self.answers.setdefault(node, deque(maxlen=ANSWERS)).append(self.now)

    def deposes(self, node: str, electorate: Electorate) -> None:
        """A leader gives the node up: not one that a majority has heard all the time, and that got
        its answers."""
        self.deposed.append((self.now, node))
        solid = [voter for voter in electorate.voters if not self.has_missed(voter, node)]
        # What the node said of that may be as late as anything.
        late = 10 * self.setup.timing.lease_ms
        is_answered = not self.has_gap(self.answers.get(node, ()), late)
        if len(solid) >= electorate.majority and is_answered:
            self.tell(node, "is deposed while it is heard by", solid)
            self.violations.append(Needless(self.now, node))

    def is_seen(self, node: str, electorate: Electorate) -> bool:
        """Whether a majority has acknowledged it so lately that answers may still say so."""
        least = self.now - 2 * self.setup.timing.missed_ms * 1.02
        acks = (self.acks.get((voter, node)) for voter in electorate.voters)
        return sum(each is not None and each[-1] >= least for each in acks) >= electorate.majority

    def has_missed(self, voter: str, node: str) -> bool:
        """Whether the voter acknowledged nothing for two renewals, so shortly before that a leader
        may go by it. Clocks differ by 1 %."""
        return self.has_gap(self.acks.get((voter, node), ()), self.setup.timing.missed_ms * 1.02)

    def has_gap(self, instants: Iterable[float], within: float) -> bool:
        """Whether for two renewals there was none of them, in or just before that time."""
        gap = self.setup.timing.missed_ms * 0.98
        begins = self.now - within - gap
        known = [at for at in instants if at >= begins - gap]
        some = [begins, *(at for at in known if at > begins), self.now]
        some[0] = max([at for at in known if at <= begins], default=begins)
        return any(after - before >= gap for before, after in pairwise(some))

    def breaks(self, what: str, nodes: list[str]) -> None:
        """The brake did not hold."""
        self.violations.append(Unbraked(self.now, what, tuple(nodes)))
