"""Free choice of what arrives, is lost or doubled, of how time passes and of who is restarted: at
most one node may speak for a router. What fails is shrunk to the fewest steps."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.sim.machine import Kernel
from tests.sim.many import BY_NAME
from tests.sim.parts import Parts
from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Command, Commit, Mute, Permit, Send, Tell
from vrha.core.ownership.holder import first_incarnation
from vrha.core.ownership.timing import Timing
from vrha.model.ownership import Electorate, Holding, Message, Refusal, Renew

TIMING = Timing(drift=0.001)
NODES = ("n1", "n2")
VOTERS = ("v1", "v2", "v3")
ROUTERS = ("r1", "r2")
LEADER = "o"
FROM_NODES = (Renew, Holding, Refusal)
IN_FLIGHT = 60
STEPS = 40
PATIENCE_MS = 600.0
"""After that it deposes whatever voters say: nobody must become an owner too many by that."""


class Ownership(RuleBasedStateMachine):
    """Two nodes, three voters, a leader that is restarted; exact clocks."""

    parts = Parts()

    def __init__(self) -> None:
        super().__init__()
        parts = self.parts
        electorate = Electorate(1, VOTERS)
        self.now = 0.0
        self.store = Book((electorate,))
        self.kernels = {name: Kernel() for name in NODES}
        self.disks = {name: first_incarnation(0, 0) for name in NODES}
        self.holders = {
            name: parts.holder(name, TIMING, electorate, self.disks[name], {}, 0.0)
            for name in NODES
        }
        self.voters = {name: parts.voter(name, TIMING, -1e6) for name in VOTERS}
        self.leader = parts.leader(LEADER, 1, TIMING, self.read(), 0.0)
        self.flying: list[tuple[str, Message]] = []
        for _ in range(4):
            self.time_passes(50.0)
            self.all_arrive()

    def read(self) -> Book:
        return Book(self.store.electorates, dict(self.store.rights), dict(self.store.incarnations))

    # ---- what happens

    @rule(ms=st.sampled_from([1.0, 30.0, 100.0, 150.0, 300.0]))
    def time_passes(self, ms: float) -> None:
        """In small steps, so that every lease ends when it must."""
        until = self.now + ms
        while self.now < until:
            self.now = min(until, self.now + 30.0)
            for name in NODES:
                self.perform(name, self.holders[name].tick(self.now))
                self.feed(name)
        self.decide()

    @rule(count=st.integers(1, 4))
    def some_rounds(self, count: int) -> None:
        """All is well for a while."""
        for _ in range(count):
            self.time_passes(100.0)
            self.all_arrive()

    @rule()
    def all_arrive(self) -> None:
        for _ in range(4):
            flying, self.flying = self.flying, []
            for to, message in flying:
                self.arrive(to, message)
        self.decide()

    @rule(name=st.sampled_from(NODES), count=st.integers(1, 4))
    def unheard(self, name: str, count: int) -> None:
        """The leader does not hear a node for a while; all else arrives."""
        for _ in range(count):
            self.time_passes(100.0)
            for _ in range(4):
                flying, self.flying = self.flying, []
                for to, message in flying:
                    own = isinstance(message, FROM_NODES) and message.node == name
                    if to != LEADER or not own:
                        self.arrive(to, message)
            self.decide()

    @rule(place=st.integers(0, IN_FLIGHT))
    def one_arrives(self, place: int) -> None:
        if self.flying:
            self.arrive(*self.flying.pop(place % len(self.flying)))

    @rule(place=st.integers(0, IN_FLIGHT))
    def one_comes_twice(self, place: int) -> None:
        if self.flying:
            self.arrive(*self.flying[place % len(self.flying)])

    @rule(to=st.sampled_from([*NODES, *VOTERS, LEADER]))
    def lost(self, to: str) -> None:
        self.flying = [each for each in self.flying if each[0] != to]

    @rule(name=st.sampled_from(VOTERS))
    def a_voter_restarts(self, name: str) -> None:
        self.voters[name] = self.parts.voter(name, TIMING, self.now)

    @rule(name=st.sampled_from(NODES))
    def a_watcher_restarts(self, name: str) -> None:
        self.disks[name] = first_incarnation(self.disks[name], 0)
        self.kernels[name] = Kernel()
        old = self.holders[name]
        self.holders[name] = self.parts.holder(
            name, TIMING, old.electorate, self.disks[name], old.epochs, self.now
        )

    @rule()
    def the_leader_restarts(self) -> None:
        self.leader = self.parts.leader(
            LEADER, self.leader.epoch + 1, TIMING, self.read(), self.now
        )

    @rule(router=st.sampled_from(ROUTERS))
    def a_move_is_asked_for(self, router: str) -> None:
        for key in sorted(self.leader.book.by_router.get(router, {})):
            self.perform(LEADER, self.leader.revoke(key, self.now))

    @rule(router=st.sampled_from(ROUTERS), name=st.sampled_from(NODES), new=st.booleans())
    def a_takeover_is_asked_for(self, router: str, name: str, new: bool) -> None:
        """From whomever has it, living or not, by a new instance or one that is known."""
        key = self.instance(router) if new else f"{router}/0"
        self.perform(LEADER, self.leader.reassign({key: name}, self.now))

    # ---- what must hold

    @invariant()
    def at_most_one_owner(self) -> None:
        for router in ROUTERS:
            owners = [
                name
                for name, kernel in self.kernels.items()
                if router in kernel.routers and kernel.live_until > self.now
            ]
            assert len(owners) < 2, f"{router} has {owners}"

    # ---- inside

    def arrive(self, to: str, message: Message) -> None:
        if to in self.holders:
            commands = self.holders[to].receive(message, self.now)
            self.feed(to)
        elif to in self.voters:
            commands = self.voters[to].receive(message, self.now)
        else:
            commands = self.leader.receive(message, self.now)
        self.perform(to, commands)
        self.at_most_one_owner()

    def decide(self) -> None:
        leader, now = self.leader, self.now
        self.perform(LEADER, leader.tick(now))
        for name in leader.silent(now):
            if leader.nodes[name].deposing is None:
                self.perform(LEADER, leader.inquire(name, now))
            if leader.is_missed(name, now) or now - leader.nodes[name].heard_at > PATIENCE_MS:
                self.perform(LEADER, leader.depose(name, now))
            self.perform(LEADER, leader.take(name, now))
        heard = {name: node.heard_at for name, node in leader.nodes.items() if node.seq}
        for router in ROUTERS:
            if heard and not leader.book.by_router.get(router):
                best = max(heard, key=lambda name: (heard[name], name))
                self.perform(LEADER, leader.give(f"{router}/0", best, now))

    def instance(self, router: str) -> str:
        """A new one."""
        return f"{router}/{self.leader.book.epochs.get(router, 0) + 1}"

    def perform(self, name: str, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Send():
                    self.flying.append((command.to, command.message))
                case Tell():
                    self.flying += [(to, command.message) for to in (*VOTERS, LEADER)]
                case Mute():
                    self.kernels[name] = Kernel()
                    self.disks[name] = command.incarnation
                case Permit():
                    self.kernels[name].granted = dict(command.routers)
                case Commit():
                    self.store.apply(command)
                case _:
                    raise AssertionError(command)
        # Links do not keep everything.
        self.flying = self.flying[-IN_FLIGHT:]

    def feed(self, name: str) -> None:
        end, kernel = self.holders[name].lease_end, self.kernels[name]
        if end is not None:
            kernel.live_until = max(kernel.live_until, end)


def run(parts: Parts, examples: int, phases: tuple[Phase, ...] = tuple(Phase)) -> None:
    class Machine(Ownership):
        pass

    Machine.parts = parts
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            phases=phases,
            derandomize=True,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_nothing_makes_two_owners() -> None:
    run(Parts(), examples=400)


@pytest.mark.parametrize("name", ["DeposesNobody", "VoterForgetsDeposed", "MovesWithoutProof"])
def test_without_a_rule_something_does(name: str) -> None:
    with pytest.raises(AssertionError, match="has"):
        run(BY_NAME[name].parts, examples=1000, phases=(Phase.generate,))
