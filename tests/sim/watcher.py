"""A node: its kernel, the holder of its lease, its voter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.machine import Clock, Disk, Kernel
from tests.sim.process import Process
from vrha.core.ownership.commands import Command, Mute, Permit, Send, Tell
from vrha.core.ownership.holder import Holder, Life
from vrha.core.ownership.voter import Voter
from vrha.model.ownership import Ack, Depose, Grant, Message, Over, Renew

if TYPE_CHECKING:
    from tests.sim.world import World

FOR_VOTERS = (Renew, Depose)
FOR_HOLDERS = (Ack, Over, Grant)


class Watcher(Process):
    """A node: the kernel, the holder of its lease, and its voter if it is one."""

    def __init__(self, world: World, name: str, clock: Clock) -> None:
        super().__init__(world, name, clock)
        self.kernel = Kernel()
        electorate = world.store.book.electorates[0]
        self.disk = Disk(0, (), electorate)
        self.older = self.disk
        self.checked = False
        self.lease: Life | None = None
        self.begin()

    def begin(self, resumes: bool = False) -> None:
        """A process begins: mutes first, whatever it finds, unless it goes on with a lease."""
        parts, setup = self.world.parts, self.world.setup
        nonce = self.world.random.getrandbits(32)
        incarnation = parts.first_incarnation(self.disk.incarnation, nonce)
        epochs, electorate = dict(self.disk.epochs), self.disk.electorate
        self.holder: Holder = parts.holder(
            self.name, setup.timing, electorate, incarnation, epochs, self.now()
        )
        self.voter: Voter = parts.voter(self.name, setup.timing, self.now())
        if resumes and self.lease and self.holder.resume(self.lease, self.now()):
            parts.permit(self, dict(self.holder.routers))
            self.world.check(self)
        else:
            parts.begin(self)
            self.keep(incarnation)
        self.run()

    def keep(self, incarnation: int) -> None:
        self.lease = None
        self.older = self.disk
        self.disk = Disk(incarnation, self.disk.epochs, self.disk.electorate)

    def restart(self, state: str) -> None:
        """`kept`, `old` (the last write was lost), `lost`, or `resumed`: with its lease."""
        if self.alive:
            return
        if state == "old":
            self.disk = self.older
        elif state == "lost":
            self.disk = Disk(0, (), self.world.first_electorate)
        self.alive = True
        self.begin(state == "resumed")

    def receive(self, message: Message) -> list[Command]:
        if isinstance(message, FOR_HOLDERS):
            end = self.holder.lease_end
            commands = self.holder.receive(message, self.now())
            if isinstance(message, Ack):
                self.lease = self.holder.saved()
                if self.holder.lease_end not in (None, end):
                    self.world.answered(self.name)
            self.feed()
            return commands
        if isinstance(message, FOR_VOTERS) and self.name in self.world.can_vote:
            return self.vote(self.voter, message)
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
        self.kernel.live_until = self.world.parts.slice_ends(self)

    def woken(self) -> None:
        """It may have been stopped between its look at the clock and the kernel's transaction."""
        self.life += 1
        if self.checked and self.world.random.random() < 0.5:
            self.world.parts.renew_late(self)

    def carry_out(self, command: Command) -> bool:
        match command:
            case Send():
                self.world.send(self.name, command.to, command.message)
            case Mute():
                self.world.parts.mute(self)
                self.keep(command.incarnation)
            case Permit():
                self.older = self.disk
                self.disk = Disk(self.disk.incarnation, command.epochs, command.electorate)
                self.lease = self.world.parts.lease_of_grant(self)
                self.world.parts.permit(self, dict(command.routers))
                self.world.check(self)
            case Tell():
                for to in dict.fromkeys(self.holder.electorate.voters + self.world.setup.leaders):
                    self.world.send(self.name, to, command.message)
            case _:
                raise AssertionError(command)
        return True
