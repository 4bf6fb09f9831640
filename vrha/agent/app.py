"""The agent: a command in, steps done, reports out; and what is there, again and again.

It holds no state that matters but the highest epochs: it may be killed at any instant, the kernel
forwards on, and the next agent adopts what it finds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from pathlib import Path

import vrha
from vrha import codec
from vrha.agent.epochs import Epochs
from vrha.agent.executor import CAPABILITIES, Executor, Hands
from vrha.agent.moves import Moves
from vrha.agent.pulse import Pulse
from vrha.agent.standin import STEPS, Leave, sole_agent, sole_stand_in
from vrha.agent.warm import warm_up
from vrha.bus import topology
from vrha.bus.consumer import Consumer, Headers
from vrha.bus.publisher import Publisher
from vrha.config.settings import AgentSettings
from vrha.core.choice import MOVE, STAND_IN
from vrha.errors import InputError, UnreachableError, VrhaError
from vrha.linux.node import NodeKernel
from vrha.model.messages import Command, Inventory, Message
from vrha.model.state import Activity, ObservedInstance
from vrha.peer import Identity, PeerServer

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Pause after an inventory that did not get through."""

REPORT_FOR_S = 60.0
"""How long a report is offered to a broker that is away; then the command is taken again."""


class Agent:
    """One agent. `run` returns when `stop` is set."""

    def __init__(self, settings: AgentSettings, stand_in: bool = False) -> None:
        """`stand_in`: it takes the place of an agent that is missing, see `standin`.

        Raises PreconditionError when the machine or the state folder does not serve.
        Raises RefusedError (`already-running`) when another agent works on the state folder.
        """
        warm_up()
        self._node = settings.node
        self._inventory_s = settings.inventory_s
        self._life = f"{Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}-{uuid.uuid4().hex}"
        self._held = contextlib.ExitStack()
        self._kernel = NodeKernel(settings.state_dir, settings.governed)
        self._held.callback(self._kernel.close)
        # Before the epochs are read: another agent could raise them meanwhile.
        sole = (sole_stand_in if stand_in else sole_agent)(settings.state_dir)
        self._held.enter_context(sole)
        self._pulse = Pulse("stand-in" if stand_in else "agent")
        self._kernel.handovers.tidy()
        self._epochs = Epochs(settings.state_dir / "epochs.json")
        self._kernel_lock = threading.Lock()
        self._identity = Identity.new(self._node)
        self._server: PeerServer | None = None
        moves = None
        if settings.sync_listen:
            self._server = PeerServer(settings.sync_listen, self._identity)
            self._held.callback(self._server.close)
            moves = Moves(self._kernel, self._identity, self._server)
            self._held.callback(moves.close)
        self._leave = Leave(lambda: moves is not None and moves.gives) if stand_in else None
        takes = STEPS if stand_in else None
        self._executor = Executor(self._node, Hands(self._kernel, moves), self._epochs, takes)
        self._look = threading.Event()
        self._stop = threading.Event()
        urls = settings.bus.broker_urls()
        self._reports = Publisher(urls)
        self._inventories = Publisher(urls)
        self._commands = Consumer(
            urls,
            topology.node_queue(self._node),
            self._take,
            declare=(topology.node_queue(self._node),),
            on_connected=self._look.set,
            on_turn=self._pulse.turned,
        )

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`; touches nothing on the way out."""
        self._stop = stop
        watcher = threading.Thread(target=self._tell_inventory, name="inventory", daemon=True)
        watcher.start()
        what = "stand-in for the agent" if self._leave else "agent"
        log.info("%s of node %s, pid %d, ready for commands", what, self._node, os.getpid())
        if self._leave is not None:
            leave = threading.Thread(
                target=self._leave.run, args=(stop,), name="leave", daemon=True
            )
            leave.start()
        self._pulse.start()
        try:
            self._commands.run(stop)
        finally:
            stop.set()
            self._look.set()
            watcher.join(timeout=5)
            self._pulse.stop()
            self._reports.close()
            self._inventories.close()
            self._held.close()

    def _take(self, body: bytes, headers: Headers) -> None:
        """One command. Raises InputError for what is none; the bus sets it aside."""
        command = codec.decode_message(body, topology.MAX_DOWN)
        if not isinstance(command, Command):
            raise InputError("unexpected", f"an agent takes commands, not {command.type}")
        if self._leave is not None:
            self._leave.used()
        with self._pulse.working():
            with self._kernel_lock:
                said = self._executor.execute(command, headers.received)
            for message in said:
                self._report(message)
        self._look.set()

    def _report(self, message: Message) -> None:
        """Say it, over a restart of the broker if need be; the command stays unacknowledged."""
        body = codec.encode(message)
        message_id = uuid.uuid4().hex
        give_up = time.monotonic() + REPORT_FOR_S
        while True:
            try:
                self._reports.publish(
                    topology.UP.name,
                    topology.up_key(self._node, message.type),
                    body,
                    message_id=message_id,
                )
                return
            except UnreachableError as error:
                if time.monotonic() > give_up or self._stop.wait(0.2):
                    raise
                log.warning("report not delivered yet: %s", error.code)

    def _tell_inventory(self) -> None:
        pause = 0.0
        while not self._stop.is_set():
            self._look.wait(pause)
            self._look.clear()
            if self._stop.is_set():
                return
            self._reports.keep_alive()
            with self._pulse.working():
                told = self._publish_inventory()
            pause = self._inventory_s if told else RETRY_S

    def _look_after(self) -> tuple[ObservedInstance, ...]:
        """What is there; a dnsmasq that died is started again, nobody else would."""
        found = self._kernel.observe()
        orphaned = [i.ref for i in found if i.activity is Activity.ACTIVE and not i.dnsmasq_alive]
        for ref in orphaned:
            log.warning("%s has lost its dnsmasq", ref)
            try:
                self._kernel.revive(ref)
            except VrhaError as error:
                log.error("dnsmasq of %s does not start again: %s", ref, error)
        return self._kernel.observe() if orphaned else found

    def _capabilities(self) -> tuple[str, ...]:
        moves = (MOVE,) if self._server else ()
        return (*CAPABILITIES, *moves, *((STAND_IN,) if self._leave else ()))

    def _publish_inventory(self) -> bool:
        """Look at the kernel and say what is there; False when that did not get through."""
        try:
            with self._kernel_lock:
                instances = self._look_after()
                epochs = self._epochs.all()
            inventory = Inventory(
                node=self._node,
                agent=self._life,
                version=vrha.__version__,
                capabilities=self._capabilities(),
                instances=instances,
                highest_epochs=epochs,
                sync_address=self._server.address if self._server else "",
                certificate=self._identity.certificate if self._server else "",
            )
            self._inventories.publish(
                topology.UP.name,
                topology.up_key(self._node, inventory.type),
                codec.encode(inventory),
                message_id=uuid.uuid4().hex,
            )
        except VrhaError as error:
            log.warning("inventory not delivered: %s", error)
            return False
        return True
