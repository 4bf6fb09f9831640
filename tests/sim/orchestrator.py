"""Who leads, or waits to; the policy that moves routers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.machine import Clock
from tests.sim.process import Process
from tests.sim.watcher import FOR_VOTERS
from vrha.core.ownership.commands import Command, Commit, Send, StepDown
from vrha.core.ownership.leader import Leader
from vrha.core.ownership.voter import Voter
from vrha.model.ownership import Deposed, Holding, Message, Refusal, Renew, Silenced

if TYPE_CHECKING:
    from tests.sim.world import World

LEADER_TTL_MS = 500.0
LEADER_BEAT_MS = 100.0
FOR_LEADERS = (Renew, Holding, Deposed, Refusal, Silenced)


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
        if isinstance(message, FOR_VOTERS) and self.name in self.world.can_vote:
            commands += self.voter.receive(message, now)
        if self.leader and isinstance(message, FOR_LEADERS):
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
