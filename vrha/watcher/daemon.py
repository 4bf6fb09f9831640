"""The loop of the watcher: clock and datagrams in, slices and grants to the kernel, answers out.

It holds the lease of its node, and votes on those of others if it is a voter. Between the clock and
the kernel stands nothing but this thread: no disk is waited for, no name looked up, no library used
that is not Python's own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
from collections import Counter, deque
from functools import partial
from typing import Any

from vrha.core.ownership.commands import Command, Mute, Permit, Relieve, Send, Tell
from vrha.core.ownership.holder import Holder, first_incarnation, held_of
from vrha.core.ownership.voter import Voter
from vrha.errors import VrhaError
from vrha.fencing.clock import clock_ms
from vrha.fencing.endpoint import Endpoint
from vrha.fencing.keys import Keys
from vrha.linux import tools
from vrha.linux.deadman import DeadMan
from vrha.linux.hint import Hint
from vrha.linux.mute import Switch
from vrha.linux.notify import Init
from vrha.linux.urgency import settle
from vrha.model.ownership import Ack, Depose, Electorate, Message, Renew
from vrha.watcher.afterlife import Afterlife
from vrha.watcher.agents import Agents
from vrha.watcher.pen import Pen
from vrha.watcher.ports import Ports
from vrha.watcher.precedence import take_precedence
from vrha.watcher.settings import WatcherSettings
from vrha.watcher.state import LeaseFile, State
from vrha.watcher.status import StatusSocket

log = logging.getLogger(__name__)

ARM_MS = 20
"""Between the look at the clock and the first slice at most this may pass."""
RETRY_MS = 20.0
"""Before something is tried again that the kernel or the disk refused."""
_STATE, _LEASE = "state", "lease"
SHOW_MS = 200.0
"""Between two signs of life for init."""


class Watcher:
    """One watcher. `run` returns when `stop` becomes readable."""

    def __init__(self, settings: WatcherSettings, init: Init) -> None:
        """`init` hears that it serves and that its loop turns.

        Mutes the node, whatever it finds, unless the lease of the process before still lasts.

        Raises PreconditionError when machine, keys or state folder do not serve.
        """
        self._settings = settings
        self._init = init
        self._timing = settings.timing
        self._held = contextlib.ExitStack()
        keys = Keys(settings.keys)
        self._endpoint = Endpoint(settings.node, settings.listen, settings.peers, keys)
        self._held.callback(self._endpoint.close)
        self._pen = Pen(take_precedence)
        self._held.callback(self._pen.close)
        first = Electorate(1, tuple(sorted(settings.voters)))
        self._state = State(settings.state_dir, first, partial(self._pen.write, _STATE))
        self._switch = Switch(tools.need("nft"), governed=True)
        self._held.callback(self._switch.close)
        self._kernel = DeadMan()
        self._held.callback(self._kernel.close)
        self._ports = Ports()
        self._held.callback(self._ports.close)
        self._status = StatusSocket(settings.socket, self._tell)
        self._held.callback(self._status.close)
        self._lease = LeaseFile(settings.socket.with_suffix(".lease"))
        self._hint = Hint()
        self._held.callback(self._hint.close)
        self._waiting: int | None = None
        """The number of a write of the lease for which the first of `_to_do` waits."""
        self._granted: frozenset[str] | None = None
        now = clock_ms()
        self._agents = Agents(settings.agent, settings.socket.with_suffix(".agent"), now)
        self._held.callback(self._agents.close)
        self._afterlife = Afterlife(settings.cleanup, self._agents, now)
        self._held.callback(self._afterlife.close)
        self._holder = self._begin(now)
        self._voter = Voter(settings.node, self._timing, now)
        self._to_do: deque[Command] = deque()
        self._local: deque[Message] = deque()
        self._slice_due = now
        self._shown_at = now - SHOW_MS
        self._counts: Counter[str] = Counter()
        self._since = now

    def _begin(self, now: float) -> Holder:
        kept, settings = self._state.kept, self._settings
        incarnation = first_incarnation(kept.incarnation, secrets.randbits(32))
        holder = Holder(
            settings.node, self._timing, kept.electorate, incarnation, dict(kept.epochs), now
        )
        life = self._lease.read()
        if life is not None and life.incarnation == kept.incarnation and holder.resume(life, now):
            log.info("the lease lasts for %.0f ms more: nothing is muted", life.lease_end - now)
            self._grant(self._ports.permitted(holder.routers))
            return holder
        self._lease.forget()
        self._kernel.mute()
        self._state.begins(incarnation)
        return holder

    def run(self, stop: int) -> None:
        """Work until `stop` is readable. Then the kernel goes on to the end of the lease at most:
        time for a next process to take it over."""
        settle()
        take_precedence()
        with selectors.DefaultSelector() as selector, self._held:
            answering = (self._endpoint, self._ports, self._status, self._pen)
            for each in (stop, *answering, self._agents, self._afterlife):
                selector.register(each, selectors.EVENT_READ, each)
            log.info("watcher of node %s, pid %d", self._settings.node, os.getpid())
            while True:
                self._step()
                self._show()
                wait_ms = max(0.0, self._due() - clock_ms())
                for key, _ in selector.select(wait_ms / 1000):
                    if key.data is stop:
                        self._init.stopping()
                        self._leave()
                        return
                    self._serve(key.data)

    def _show(self) -> None:
        now = clock_ms()
        if now - self._shown_at >= SHOW_MS:
            self._shown_at = now
            self._init.ready(f"watches node {self._settings.node}")
            self._init.alive()

    def _leave(self) -> None:
        """One last slice, to the end of the lease."""
        left = (self._holder.lease_end or 0.0) - clock_ms()
        if left > self._timing.slice_ms and not self._to_do:
            with contextlib.suppress(VrhaError):
                self._kernel.renew(int(left))

    def _due(self) -> float:
        if self._local:
            return 0.0
        due = self._holder.due
        if self._to_do:
            due = min(due, clock_ms() + RETRY_MS)
        if self._may_feed():
            # Else it is overdue, and whoever looked again at once would take all of a processor,
            # in real time, from those who write the file that is waited for.
            due = min(due, self._slice_due)
        return due

    def _step(self) -> None:
        """What the clock asks for."""
        while self._local:
            self._take(self._local.popleft())
        now = clock_ms()
        self._agents.look(now)
        self._holder.health = self._agents.health(now)
        self._perform(self._holder.tick(now))
        self._feed()
        # After all that has a deadline.
        self._afterlife.look(self._holder, now)

    def _serve(self, what: Any) -> None:
        if what is self._endpoint:
            for _, message in self._endpoint.receive():
                self._take(message)
        elif what is self._ports:
            if self._ports.follow() and self._permitted() != self._granted:
                held = held_of(self._holder.routers)
                epochs = held_of(self._holder.epochs)
                self._perform([Permit(held, epochs, self._holder.electorate)])
        elif what is self._status:
            self._status.answer()
        elif what is self._pen:
            self._pen.look()
            self._perform([])

    def _take(self, message: Message) -> None:
        if not isinstance(message, Renew | Depose):
            self._perform(self._holder.receive(message, clock_ms()))
            if isinstance(message, Ack):
                # Nothing but its end has changed: an older file promises less.
                self._keep_lease()
        elif self._settings.node in self._holder.electorate.voters:
            self._perform(self._voter.receive(message, clock_ms()))

    def _keep_lease(self) -> int:
        life = self._holder.saved()
        job = self._lease.forget if life is None else partial(self._lease.write, life)
        return self._pen.write(_LEASE, job)

    def _is_kept(self) -> bool:
        """Whether the lease of the command at hand is on file. Raises StepError `state-dir`."""
        if self._waiting is None:
            self._waiting = self._keep_lease()
        return self._pen.has_written(_LEASE, self._waiting)

    def _perform(self, commands: list[Command]) -> None:
        """Carry out commands in order. One that fails is tried again later, and all wait for it.

        One that waits for a file only keeps back what must follow it: renewals go on.
        """
        for command in commands:
            if isinstance(command, Tell) and self._only_writes():
                self._carry_out(command)
            else:
                self._to_do.append(command)
        while self._to_do:
            try:
                if not self._carry_out(self._to_do[0]):
                    return
            except VrhaError as error:
                self._waiting = None
                self._counts["failed"] += 1
                log.error("%s", error)
                return
            self._waiting = None
            self._to_do.popleft()

    def _only_writes(self) -> bool:
        """Whether what is to be done waits for a file, and nothing of it for silence."""
        return self._waiting is not None and not any(isinstance(c, Mute) for c in self._to_do)

    def _carry_out(self, command: Command) -> bool:
        """Whether it is done; else it waits for a file. Raises VrhaError."""
        match command:
            case Mute():
                self._granted = None
                self._kernel.mute()
                if not self._is_kept():
                    return False
                self._state.begins(command.incarnation)
                self._counts["mutes"] += 1
                log.warning("the lease has ended: muted; incarnation %x", command.incarnation)
            case Permit():
                self._state.learns(command.epochs, command.electorate)
                # Before the answer: a next process must not go on with what was given up.
                if not self._is_kept():
                    return False
                self._grant(self._ports.permitted(dict(command.routers)))
            case Tell():
                named = self._holder.electorate.voters + self._settings.leaders
                for to in dict.fromkeys(named):
                    self._send(to, command.message)
            case Send():
                self._send(command.to, command.message)
            case Relieve():
                self._agents.relieve(command.seconds, clock_ms())
            case _:
                raise AssertionError(command)
        return True

    def _permitted(self) -> frozenset[str]:
        return self._ports.permitted(self._holder.routers)

    def _grant(self, ports: frozenset[str]) -> None:
        self._granted = None
        self._kernel.grant(ports)
        self._granted = ports
        # Whoever announces what may speak now need not look again and again.
        self._hint.give()

    def _send(self, to: str, message: Message) -> None:
        if to == self._settings.node:
            self._local.append(message)
        else:
            self._endpoint.send(to, message)

    def _may_feed(self) -> bool:
        """Whether nothing waits to be done that slices must not come before."""
        return not self._to_do or self._only_writes()

    def _feed(self) -> None:
        """A slice, if it is time for one and the lease lasts for it."""
        now = clock_ms()
        if now < self._slice_due or not self._may_feed():
            return
        self._slice_due = now + self._timing.slice_every_ms
        if not self._holder.may_extend(now):
            return
        try:
            if self._kernel.renew(int(self._timing.slice_ms)):
                self._counts["slices"] += 1
                return
            # A table that is gone refuses as well, and then nothing would be held back.
            self._switch.ensure()
            self._kernel.arm(ARM_MS)
            # Whoever is stopped here finds that the kernel refuses.
            if self._holder.may_extend(clock_ms() + ARM_MS) and self._kernel.fire(
                int(self._timing.slice_ms)
            ):
                self._counts["activations"] += 1
                log.info("active: the lease holds")
        except VrhaError as error:
            self._counts["failed"] += 1
            self._slice_due = now + RETRY_MS
            log.error("%s", error)

    def _tell(self) -> dict[str, Any]:
        """What `vrha watcher status` shows; instants are ms from now on."""
        now, holder = clock_ms(), self._holder
        end = holder.lease_end
        electorate = holder.electorate
        return {
            "node": self._settings.node,
            "pid": os.getpid(),
            "up_ms": round(now - self._since),
            "profile": self._settings.profile,
            "incarnation": f"{holder.incarnation:x}",
            "lease_ms": None if end is None else round(end - now, 1),
            "live_ms": self._kernel.remaining_ms(),
            "leader_epoch": holder.leader_epoch,
            "routers": dict(held_of(holder.routers)),
            "epochs": dict(held_of(holder.epochs)),
            "ports": sorted(self._kernel.granted()),
            "voters": list(electorate.voters),
            "electorate": electorate.version,
            "votes": self._settings.node in electorate.voters,
            "acknowledged": {name: holder.acked.get(name, 0) for name in electorate.voters},
            "seq": holder.seq,
            "agents": dict(self._agents.tell(now)),
            **self._afterlife.tell(holder, now),
            "counts": dict(self._counts),
            "rejected": dict(self._endpoint.rejected),
        }
