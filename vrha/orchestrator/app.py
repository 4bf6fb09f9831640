"""The orchestrator's threads: messages in, outbox out, time, and the lead.

While it stands by, it takes no message from the broker, sends none and starts nothing; its API
answers what can be read.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping

from vrha import codec, failpoints
from vrha.bus import topology
from vrha.bus.consumer import Consumer, Headers
from vrha.bus.publisher import Publisher
from vrha.config.settings import OrchestratorSettings
from vrha.core.agents import AgentLimits
from vrha.core.happenings import Limits
from vrha.core.ownership.timing import PROFILES
from vrha.errors import DeadlineError, InputError, NotLeaderError, UnreachableError
from vrha.linux.notify import Init
from vrha.model.messages import Command
from vrha.model.ownership import NodeHealth
from vrha.model.views import BrakeView, NodeSight
from vrha.orchestrator import status
from vrha.orchestrator.engine import Engine, command_place
from vrha.orchestrator.evacuation import Evacuation, Outside
from vrha.orchestrator.failover import Failovers
from vrha.orchestrator.intake import Intake
from vrha.orchestrator.leadership import Leadership
from vrha.orchestrator.metrics import Metrics
from vrha.orchestrator.ownership import Ownership
from vrha.orchestrator.service import OrchestratorService
from vrha.orchestrator.warm import warm_up
from vrha.orchestrator.why import Insight
from vrha.store import OutboxRow, Store

log = logging.getLogger(__name__)

TICK_S = 0.1
STORE_RETRY_S = 1.0
"""Pause after a tick that the store did not take; it tells of its trouble no oftener."""
WORKERS = 16
"""Messages of nodes that one transaction may settle, or that wait here for it."""
SENT_AT_ONCE = 32
"""Commands that are marked as sent in one transaction: after a crash they are sent again."""
PUBLISH_S = 5.0
"""How long the broker has to confirm a command."""
JOIN_S = 30.0
"""At the end of a leadership its threads wait for store and broker no longer than that."""


class Orchestrator:
    """One orchestrator on its store and broker. `run` returns when `stop` is set."""

    def __init__(
        self, settings: OrchestratorSettings, urls: tuple[str, ...], init: Init | None = None
    ) -> None:
        """`init` hears that it serves and that its main loop turns.

        Raises UnreachableError or PreconditionError when the store cannot be opened."""
        warm_up()
        self._life = uuid.uuid4().hex[:8]
        self._init = init or Init({})
        self._outbox_filled = threading.Event()
        self._ownership: Ownership | None = None
        self._failovers: Failovers | None = None
        self._store = Store.open(settings.store_url)
        self._leadership = Leadership(
            self._store,
            settings.name or socket.gethostname(),
            settings.leader,
            sole=settings.store.private,
            on_turn=self._turned,
        )
        metrics = Metrics()
        self._evacuation = self._evacuates(settings)
        run = settings.run
        limits = Limits(step_s=run.step_s, sync_s=run.sync_s, check_in_s=run.check_in_s)
        self._engine = Engine(
            self._store,
            limits,
            metrics,
            self._changed,
            uplinks_changed=self._uplinks_changed,
            watch=self._evacuation.look,
            heals=settings.failover.enabled,
        )
        self.service = OrchestratorService(
            self._store,
            self._engine,
            metrics,
            self._changed,
            lambda: self._messages.connected,
            settings.preferred,
            self._sights,
            self._brake,
            Insight(
                self._healths,
                self._evacuation.decisions,
                self._holds,
                suspect_ms=PROFILES[settings.ownership.profile].suspect_ms,
            ),
        )
        self._intake = Intake(self._engine)
        self._publisher = Publisher(urls)
        self._messages = Consumer(
            urls,
            topology.orchestrator_queue(),
            self._receive,
            declare=(topology.orchestrator_queue(), topology.dead_queue()),
            on_turn=self._turned,
            max_bytes=topology.MAX_UP,
            # A leader that stands still is given messages until the broker drops it. With room for
            # more than one, and the higher epoch, the one that follows it gets all of them.
            workers=WORKERS,
            priority=lambda: self._store.leader_epoch or 0,
        )
        self._declared: frozenset[str] = frozenset()
        name = settings.name or socket.gethostname()
        if settings.ownership.listen:
            self._failovers = Failovers(self._store, self._engine, self._changed, settings.failover)
            self._ownership = Ownership(
                self._store,
                name,
                settings.ownership,
                self._engine,
                self._failovers,
                settings.failover,
            )

    def _evacuates(self, settings: OrchestratorSettings) -> Evacuation:
        failover = settings.failover
        limits = AgentLimits(
            grace_ms=failover.agent_grace_s * 1000,
            failures=failover.agent_failures,
            window_ms=failover.agent_window_s * 1000,
            fail_back_ms=failover.agent_back_s * 1000,
            silent_ms=PROFILES[settings.ownership.profile].suspect_ms,
        )
        outside = Outside(
            self._healths,
            self._stand_in,
            self._holds,
            broker_connected=lambda: self._messages.connected,
        )
        return Evacuation(self._store, outside, limits, settings.preferred)

    def _healths(self) -> Mapping[str, NodeHealth]:
        return self._ownership.healths() if self._ownership is not None else {}

    def _stand_in(self, node: str, seconds: float) -> None:
        if self._ownership is not None:
            self._ownership.stand_in(node, seconds)

    def run(self, stop: threading.Event) -> None:
        """Stand by until it leads, lead until another one does, and so on until `stop`."""
        if self._ownership is not None:
            owning = threading.Thread(target=self._own, args=(stop,), name="own", daemon=True)
            owning.start()
        try:
            while self._leadership.await_lead(stop):
                self._lead(stop)
        finally:
            self._publisher.close()
            self._store.close()

    def _turned(self) -> None:
        """The main loop came round, whether this one leads or stands by."""
        self._init.ready()
        self._init.alive()

    def _own(self, stop: threading.Event) -> None:
        assert self._ownership is not None
        while not stop.is_set():
            try:
                self._ownership.run(stop)
                self._ownership.close()
            except Exception:
                # Without it no node would ever be granted anything again.
                log.exception("ownership failed")
                stop.wait(STORE_RETRY_S)

    def _changed(self) -> None:
        self._outbox_filled.set()
        if self._ownership is not None:
            self._ownership.nudge()

    def _holds(self) -> Mapping[str, str]:
        """Nodes that keep their routers whatever ails them, and why."""
        judgement = self._ownership.judgement if self._ownership else None
        return judgement.holds if judgement else {}

    def _sights(self) -> Mapping[str, NodeSight]:
        judgement = self._ownership.judgement if self._ownership else None
        return status.sights_of(judgement, time.time()) if judgement else {}

    def _brake(self) -> BrakeView | None:
        judgement = self._ownership.judgement if self._ownership else None
        return status.brake_of(judgement, time.time()) if judgement else None

    def _uplinks_changed(self) -> None:
        if self._failovers is not None:
            self._failovers.uplinks_changed()

    def _lead(self, stop: threading.Event) -> None:
        """One leadership: take up open runs, then work until `stop`, or until the lead is lost."""
        over = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(over,), name="leader", daemon=True)
        ender = threading.Thread(target=_end_both, args=(stop, over), name="end", daemon=True)
        workers = [
            threading.Thread(target=self._send, args=(over,), name="outbox", daemon=True),
            threading.Thread(target=self._tick, args=(over,), name="tick", daemon=True),
        ]
        if self._failovers is not None:
            lost = threading.Thread(
                target=self._failovers.run, args=(over,), name="failover", daemon=True
            )
            workers.append(lost)
        threads = [keeper, ender]
        try:
            keeper.start()
            ender.start()
            if self._take_up(over):
                threads += workers
                for worker in workers:
                    worker.start()
                self._messages.run(over)
        finally:
            over.set()
            self._outbox_filled.set()
            until = time.monotonic() + JOIN_S
            for thread in threads:
                thread.join(max(until - time.monotonic(), 0))
            # What is not on the wire yet must not go out under somebody else's lead.
            self._publisher.close()
        if any(thread.is_alive() for thread in threads):
            raise DeadlineError("not-ended", "a thread did not end; this process has to")
        self._leadership.give_up()

    def _keep(self, over: threading.Event) -> None:
        try:
            self._leadership.keep(over)
        except NotLeaderError as error:
            log.warning("%s", error.message)
        finally:
            over.set()

    def _take_up(self, over: threading.Event) -> bool:
        """Resume open runs; False when the lead was lost before that."""
        self._evacuation.forget()
        while not over.is_set():
            try:
                self._engine.resume()
            except NotLeaderError:
                over.set()
            except UnreachableError as error:
                log.error("store: %s", error)
                over.wait(STORE_RETRY_S)
            else:
                self._outbox_filled.set()
                return True
        return False

    def _receive(self, body: bytes, headers: Headers) -> Callable[[], None]:
        # The broker lets a node's user write no keys but `node.NODE.*`.
        return self._intake.take(body, headers.routing_key.split(".")[1])

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(TICK_S):
            try:
                self._engine.tick(cut_off=not self._messages.connected)
            except NotLeaderError:
                stop.set()
            except UnreachableError as error:
                log.error("store: %s", error)
                stop.wait(STORE_RETRY_S)
            except Exception:
                # Without ticks no run would ever end.
                log.exception("tick failed")
                stop.wait(STORE_RETRY_S)

    def _send(self, stop: threading.Event) -> None:
        """Publish what the outbox holds; a row goes only when the broker has it."""
        while not stop.is_set():
            self._outbox_filled.wait(1.0)
            self._outbox_filled.clear()
            try:
                if not self._send_all():
                    stop.wait(0.2)
                    self._outbox_filled.set()
            except NotLeaderError:
                stop.set()
            except Exception as error:
                # Without an outbox nothing would ever be done again.
                known = isinstance(error, UnreachableError)
                log.warning("outbox: %s", error, exc_info=None if known else error)
                stop.wait(0.2)
                self._outbox_filled.set()

    def _send_all(self) -> bool:
        """Publish in order for each node; a node whose queue is full or missing holds up no other.

        Returns whether all of it went. Raises UnreachableError.
        """
        with self._store.transaction() as tx:
            nodes = frozenset(node.name for node in tx.desired()[1].nodes)
            rows = tx.outbox.unsent(SENT_AT_ONCE)
        # An agent finds its queue as soon as its node is wanted, before any command for it.
        self._declare(nodes)
        stuck: set[str] = set()
        while rows:
            sent: list[int] = []
            try:
                for row in rows:
                    self._declare(frozenset({row.node}))
                    if row.node not in stuck and self._is_settled(row):
                        sent.append(row.id)
                    else:
                        stuck.add(row.node)
            finally:
                with self._store.transaction() as tx:
                    tx.outbox.mark_sent(sent)
                    rows = tx.outbox.unsent(SENT_AT_ONCE, stuck)
        self._publisher.keep_alive()
        return not stuck

    def _declare(self, nodes: frozenset[str]) -> None:
        missing = nodes - self._declared
        if missing:
            self._publisher.declare([topology.node_queue(node) for node in sorted(missing)])
            self._declared |= missing

    def _is_settled(self, row: OutboxRow) -> bool:
        """Publish the row unless it is over; False when its node's queue takes nothing now."""
        if is_over(row, time.monotonic()):
            log.warning("command %d to %s is over and was not sent", row.id, row.node)
            return True
        failpoints.reach(lambda: f"{_place(row)}.sending")
        # The last thing before: between reading the row and now this process may have stood still.
        sure_s = self._leadership.sure_for()
        if sure_s <= 0:
            raise UnreachableError("lead-unsure", "the lead is not confirmed; nothing is sent")
        try:
            self._publisher.publish(
                topology.DOWN.name,
                topology.down_key(row.node),
                row.body,
                message_id=f"{self._life}-{row.id}",
                timeout_s=min(sure_s, PUBLISH_S),
                expires=row.expires,
            )
        except InputError as error:
            # Sending it again would not help; its run hears nothing and ends by its deadline.
            log.error("command %d to %s cannot be sent: %s", row.id, row.node, error)
        except UnreachableError as error:
            if error.code not in ("unroutable", "not-confirmed"):
                raise
            log.warning("node %s: %s", row.node, error)
            self._declared -= {row.node}
            return False
        failpoints.reach(lambda: f"{_place(row)}.sent")
        return True


def _end_both(stop: threading.Event, over: threading.Event) -> None:
    """When `stop` is set, the leadership is over as well."""
    while not over.wait(TICK_S):
        if stop.is_set():
            over.set()


def _place(row: OutboxRow) -> str:
    command = codec.decode_message(row.body, topology.MAX_DOWN)
    return (
        command_place(command) if isinstance(command, Command) else f"orchestrator.{command.type}"
    )


def is_over(row: OutboxRow, now: float) -> bool:
    """Whether the command must not be sent any more; `now` on the monotonic clock."""
    return row.expires is not None and now >= row.expires
