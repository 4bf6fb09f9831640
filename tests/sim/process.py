"""A process that can be stopped anywhere and killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.machine import Clock
from vrha.core.ownership.commands import Command, Send
from vrha.core.ownership.voter import Voter
from vrha.model.ownership import Ack, Message

if TYPE_CHECKING:
    from tests.sim.world import World


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
        if self.world.trace is not None:
            self.world.tell(self.name, "paused, gets" if self.paused else "gets", message)
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
            if self.world.trace is not None:
                self.world.tell(self.name, "does", command)
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

    def vote(self, voter: Voter, message: Message) -> list[Command]:
        """As a voter; when it acknowledged whom is remembered."""
        commands = voter.receive(message, self.now())
        for command in commands:
            if isinstance(command, Send) and isinstance(command.message, Ack):
                self.world.acknowledged(self.name, command.message.node)
        return commands

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
