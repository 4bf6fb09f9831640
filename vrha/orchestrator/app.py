"""The orchestrator's threads: messages in, outbox out, time, and the API."""

from __future__ import annotations

import logging
import threading
import uuid

from vrha.bus import topology
from vrha.bus.consumer import Consumer, Headers
from vrha.bus.publisher import Publisher
from vrha.config.settings import OrchestratorSettings
from vrha.core.run import Limits
from vrha.errors import UnreachableError
from vrha.orchestrator.engine import Engine
from vrha.orchestrator.metrics import Metrics
from vrha.orchestrator.service import OrchestratorService
from vrha.store import Store

log = logging.getLogger(__name__)

TICK_S = 0.1
STORE_RETRY_S = 1.0
"""Pause after a tick that the store did not take; it tells of its trouble no oftener."""


class Orchestrator:
    """One orchestrator on its store and broker. `run` returns when `stop` is set."""

    def __init__(self, settings: OrchestratorSettings, urls: tuple[str, ...]) -> None:
        """Raises UnreachableError or PreconditionError when the store cannot be opened."""
        self._life = uuid.uuid4().hex[:8]
        self._outbox_filled = threading.Event()
        self._store = Store.open(settings.store_url)
        metrics = Metrics()
        limits = Limits(step_s=settings.run.step_s, check_in_s=settings.run.check_in_s)
        self._engine = Engine(self._store, limits, metrics, self._outbox_filled.set)
        self.service = OrchestratorService(
            self._store,
            self._engine,
            metrics,
            self._outbox_filled.set,
            lambda: self._messages.connected,
            settings.run.strategy,
        )
        self._publisher = Publisher(urls)
        self._messages = Consumer(
            urls,
            topology.orchestrator_queue(),
            self._receive,
            declare=(topology.orchestrator_queue(), topology.dead_queue()),
            max_bytes=topology.MAX_UP,
        )
        self._declared: frozenset[str] = frozenset()

    def run(self, stop: threading.Event) -> None:
        """Take up open runs, then work until `stop`."""
        self._engine.resume()
        self._outbox_filled.set()
        threads = [
            threading.Thread(target=self._send, args=(stop,), name="outbox", daemon=True),
            threading.Thread(target=self._tick, args=(stop,), name="tick", daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            self._messages.run(stop)
        finally:
            stop.set()
            self._outbox_filled.set()
            for thread in threads:
                thread.join(timeout=5)
            self._publisher.close()
            self._store.close()

    def _receive(self, body: bytes, headers: Headers) -> None:
        self._engine.receive(body)

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(TICK_S):
            try:
                self._engine.tick()
            except UnreachableError as error:
                log.error("store: %s", error)
                stop.wait(STORE_RETRY_S)

    def _send(self, stop: threading.Event) -> None:
        """Publish what the outbox holds, in order; a row goes only when the broker has it."""
        while not stop.is_set():
            self._outbox_filled.wait(1.0)
            self._outbox_filled.clear()
            try:
                self._send_all()
            except UnreachableError as error:
                log.warning("outbox: %s", error.code)
                stop.wait(0.2)
                self._outbox_filled.set()

    def _send_all(self) -> None:
        with self._store.transaction() as tx:
            nodes = frozenset(node.name for node in tx.desired()[1].nodes)
            rows = tx.unsent()
        # An agent finds its queue as soon as its node is wanted, before any command for it.
        missing = (nodes | {row.node for row in rows}) - self._declared
        if missing:
            self._publisher.declare([topology.node_queue(node) for node in sorted(missing)])
            self._declared |= missing
        for row in rows:
            self._publisher.publish(
                topology.DOWN.name,
                topology.down_key(row.node),
                row.body,
                message_id=f"{self._life}-{row.id}",
            )
            with self._store.transaction() as tx:
                tx.mark_sent([row.id])
        self._publisher.keep_alive()
