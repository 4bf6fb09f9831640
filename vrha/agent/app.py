"""The agent: a command in, steps done, reports out; and what is there, again and again.

It holds no state that matters but the highest epochs: it may be killed at any instant, the kernel
forwards on, and the next agent adopts what it finds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import vrha
from vrha import codec
from vrha.agent.checkup import Checkup
from vrha.agent.epochs import Epochs
from vrha.agent.executor import CAPABILITIES, Executor, Hands
from vrha.agent.herald import Herald
from vrha.agent.leases import LeaseTeller, give_leases
from vrha.agent.lookout import Lookout
from vrha.agent.mirror import Mirrors
from vrha.agent.moves import Moves
from vrha.agent.pulse import Pulse
from vrha.agent.reports import Reports
from vrha.agent.standin import STEPS, Leave, sole_agent, sole_stand_in
from vrha.agent.turns import Turn, Turns
from vrha.agent.warm import warm_up
from vrha.bus import topology
from vrha.bus.consumer import Consumer, Headers
from vrha.bus.publisher import Publisher
from vrha.config.settings import AgentSettings
from vrha.core.choice import MOVE, STAND_IN, STANDBY
from vrha.errors import InputError, VrhaError
from vrha.linux.node import NodeKernel
from vrha.linux.notify import Init
from vrha.model.messages import Command, Inventory, Leases, Message, PutLeases
from vrha.model.spec import InstanceRef
from vrha.model.state import Activity, Following, ObservedInstance
from vrha.peer import Identity, PeerServer

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Pause after an inventory that did not get through."""

REST = 9
"""How many times as long as an inventory took it rests at least, before the next."""

REPORT_CONNECTIONS = 4
"""Enough for reports to come faster than instances are built."""

FILES = 65_536
"""Descriptors at most: a standby takes two, and one that is told of here five."""


class Agent:
    """One agent. `run` returns when `stop` is set."""

    def __init__(
        self, settings: AgentSettings, stand_in: bool = False, init: Init | None = None
    ) -> None:
        """`stand_in`: it takes the place of an agent that is missing, see `standin`. `init` hears
        that it serves and gets on.

        Raises PreconditionError when the machine or the state folder does not serve.
        Raises RefusedError (`already-running`) when another agent works on the state folder.
        """
        warm_up()
        _allow_files()
        self._node = settings.node
        self._inventory_s = settings.inventory_s
        self._life = f"{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}-{uuid.uuid4().hex}"
        self._held = contextlib.ExitStack()
        self._kernel = NodeKernel(settings.state_dir, settings.governed)
        self._held.callback(self._kernel.close)
        # Before the epochs are read: another agent could raise them meanwhile.
        sole = (sole_stand_in if stand_in else sole_agent)(settings.state_dir)
        self._held.enter_context(sole)
        self._init = init or Init({})
        self._pulse = Pulse("stand-in" if stand_in else "agent", self._init)
        self._kernel.handovers.tidy()
        self._epochs = Epochs(settings.state_dir / "epochs.json")
        self._turns = Turns(lambda: self._stop.is_set())
        self._identity = Identity.new(self._node)
        self._server: PeerServer | None = None
        self._look = threading.Event()
        self._mirrors: Mirrors | None = None
        moves = None
        if settings.sync_listen:
            self._server = PeerServer(settings.sync_listen, self._identity)
            self._held.callback(self._server.close)
            moves = Moves(self._kernel, self._identity, self._server)
            self._held.callback(moves.close)
            at = self._kernel.instances
            self._mirrors = Mirrors(at, self._identity, self._server, self._look.set)
            self._held.callback(self._mirrors.close)
        self._leave = Leave(lambda: moves is not None and moves.gives) if stand_in else None
        self._herald = Herald(self._kernel.instances)
        self._hands = Hands(self._kernel, moves, self._mirrors, self._herald)
        takes = STEPS if stand_in else None
        self._executor = Executor(self._node, self._hands, self._epochs, takes)
        self._governed = settings.governed
        at = self._kernel.instances
        self._lookout = Lookout(at, self._look.set)
        self._checkup = Checkup(at, self._examining, self._lookout.uplinks, self._look.set)
        self._stop = threading.Event()
        urls = settings.bus.broker_urls()
        self._reports = Reports(
            urls,
            self._node,
            lambda seconds: self._stop.wait(seconds),
            connections=min(settings.build_workers, REPORT_CONNECTIONS),
        )
        self._inventories = Publisher(urls)
        self._leases = LeaseTeller(
            self._kernel.instances, self._node, self._life, self._tell_leases
        )
        self._commands = Consumer(
            urls,
            topology.node_queue(self._node),
            self._take,
            workers=settings.build_workers,
            declare=(topology.node_queue(self._node),),
            on_connected=self._look.set,
            on_turn=self._pulse.turned,
        )

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`; touches nothing on the way out."""
        self._stop = stop
        what = "stand-in for the agent" if self._leave else "agent"
        threads = [
            threading.Thread(target=work, args=(stop,), name=name, daemon=True)
            for name, work in self._works()
        ]
        for thread in threads:
            thread.start()
        log.info("%s of node %s, pid %d, ready for commands", what, self._node, os.getpid())
        self._pulse.start()
        self._init.status(f"{what} of node {self._node}")
        try:
            self._commands.run(stop)
        finally:
            stop.set()
            self._look.set()
            for thread in threads:
                thread.join(timeout=5)
            self._pulse.stop()
            self._reports.close()
            self._inventories.close()
            self._held.close()

    def _works(self) -> list[tuple[str, Callable[[threading.Event], None]]]:
        """What runs beside the commands."""
        works = [("inventory", self._tell_inventory), ("leases", self._leases.run)]
        if self._governed:
            works += [("herald", self._herald.run), ("lookout", self._lookout.run)]
            works.append(("checkup", self._checkup.run))
        if self._leave is not None:
            works.append(("leave", self._leave.run))
        return works

    def _take(self, body: bytes, headers: Headers) -> Callable[[], None]:
        """One command; what is left to do. Raises InputError for what is none; the bus sets it
        aside.
        """
        with self._turns.shared():
            command = codec.decode_message(body, topology.MAX_DOWN)
        if isinstance(command, PutLeases):
            turn = self._turns.line_up(command.instance.router)
            return partial(self._refresh_leases, command, turn, headers.received)
        if not isinstance(command, Command):
            raise InputError("unexpected", f"an agent takes commands, not {command.type}")
        if self._leave is not None:
            self._leave.used()
        turn = self._turns.line_up(command.router)
        return partial(self._carry_out, command, turn, headers.received)

    def _carry_out(self, command: Command, turn: Turn, received: float) -> None:
        with turn.first(), self._pulse.working():
            with self._place_for(command):
                said = self._executor.execute(command, received)
            for message in said:
                self._reports.say(message)
        self._look.set()

    def _refresh_leases(self, message: PutLeases, turn: Turn, received: float) -> None:
        with turn.first():
            if message.node != self._node:
                raise InputError("wrong-node", f"leases for {message.node} reached {self._node}")
            if time.monotonic() > received + message.valid_s:
                return
            try:
                with self._turns.shared():
                    give_leases(self._kernel.instances, message)
            except VrhaError as error:
                log.warning("leases for %s: %s", message.instance, error)

    def _tell_leases(self, leases: Leases) -> None:
        self._publish(self._inventories, leases)

    @contextlib.contextmanager
    def _place_for(self, command: Command) -> Iterator[None]:
        with self._turns.shared():
            if self._executor.may_run_beside_others(command):
                yield
                return
        with self._turns.alone():
            yield

    def _publish(self, publisher: Publisher, message: Message) -> None:
        publisher.publish(
            topology.UP.name,
            topology.up_key(self._node, message.type),
            codec.encode(message),
            message_id=uuid.uuid4().hex,
        )

    @contextlib.contextmanager
    def _examining(self, ref: InstanceRef) -> Iterator[bool]:
        """The block has the node for test packets through the instance, unless it moves."""
        with self._turns.shared():
            yield not self._hands.hands_over(ref)

    def _tell_inventory(self, _stop: threading.Event) -> None:
        pause = 0.0
        while not self._stop.is_set():
            self._look.wait(pause)
            self._look.clear()
            if self._stop.is_set():
                return
            self._reports.keep_alive()
            began = time.monotonic()
            with self._pulse.working():
                told = self._publish_inventory()
            pause = self._inventory_s if told else RETRY_S
            # While hundreds are built, each of them asks for a look at all that are there.
            self._stop.wait(min((time.monotonic() - began) * REST, self._inventory_s))

    def _look_after(self) -> tuple[ObservedInstance, ...]:
        """What is there; a dnsmasq that died is started again, nobody else would. So is a standby
        made ready again that somebody muted, as with the whole switch."""
        found = self._found()
        self._make_ready([i.ref for i in found if i.follows])
        orphaned = [
            i.ref
            for i in found
            if (i.activity is Activity.ACTIVE or i.follows) and not i.dnsmasq_alive
        ]
        for ref in orphaned:
            log.warning("%s has lost its dnsmasq", ref)
            try:
                with self._turns.line_up(ref.router).first(), self._turns.alone():
                    self._kernel.revive(ref)
            except VrhaError as error:
                log.error("dnsmasq of %s does not start again: %s", ref, error)
        return self._found() if orphaned else found

    def _make_ready(self, standbys: Sequence[InstanceRef]) -> None:
        for ref in self._kernel.unready(standbys):
            try:
                with self._turns.line_up(ref.router).first(), self._turns.alone():
                    # A command may have come first.
                    if self._mirrors and ref in self._mirrors.follows():
                        log.warning("standby %s was not ready to speak", ref)
                        self._kernel.ready(ref)
            except VrhaError as error:
                log.error("standby %s cannot be made ready: %s", ref, error)

    def _found(self) -> tuple[ObservedInstance, ...]:
        """All instances, and which of them follow others."""
        with self._turns.looking():
            found = self._kernel.observe()
        follows = self._mirrors.follows() if self._mirrors else {}
        sick = self._checkup.sick()
        if not follows and not sick:
            return found
        return tuple(
            replace(i, follows=self._cost(follows.get(i.ref), i.ref), sick=i.ref in sick)
            for i in found
        )

    def _cost(self, following: Following | None, ref: InstanceRef) -> Following | None:
        if following is None:
            return None
        return replace(following, memory_kib=self._kernel.instances.memory_kib(ref))

    def _capabilities(self) -> tuple[str, ...]:
        moves = (MOVE, STANDBY) if self._server else ()
        return (*CAPABILITIES, *moves, *((STAND_IN,) if self._leave else ()))

    def _publish_inventory(self) -> bool:
        """Look at the kernel and say what is there; False when that did not get through."""
        try:
            instances = self._look_after()
            inventory = Inventory(
                node=self._node,
                agent=self._life,
                version=vrha.__version__,
                capabilities=self._capabilities(),
                instances=instances,
                highest_epochs=self._epochs.all(),
                sync_address=self._server.address if self._server else "",
                certificate=self._identity.certificate if self._server else "",
                uplinks=self._lookout.uplinks(),
            )
            self._publish(self._inventories, inventory)
        except VrhaError as error:
            log.warning("inventory not delivered: %s", error)
            return False
        return True


def _allow_files() -> None:
    """As many descriptors as the machine lets this process have: 1024 are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
