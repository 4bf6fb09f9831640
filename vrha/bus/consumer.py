"""Consuming: one thread keeps the connection alive, others do the work.

The thread of `run` owns the connection: it reads, acknowledges and exchanges heartbeats. The
handler runs in worker threads, so however long it takes, the broker never thinks us dead.
What a worker finishes reaches the connection's thread through an eventfd; nothing polls.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum
from queue import SimpleQueue
from time import monotonic

from amqp import Message
from kombu import Queue

from vrha.bus.connection import Link, backoff, describe, endpoints
from vrha.bus.topology import MAX_DOWN
from vrha.errors import InputError, VrhaError

log = logging.getLogger(__name__)

STOP_GRACE_S = 2.0
"""How long `run` waits at its end for the handler to finish."""
_TICK_S = 0.25
"""How often the stop flag and the heartbeats are looked at; messages do not wait for it."""
_SAY_AGAIN_S = 30.0
"""How often a broker that stays away is mentioned."""
_RETRY_S = 0.1
"""Pause before a message whose handler failed goes back; doubles with every delivery."""
_STALL_S = 5.0
"""A process that stood still for longer drops its connection: what waits in the socket may have
been given to nobody for hours. The broker delivers again what has not expired."""


@dataclass(frozen=True, slots=True)
class Headers:
    """What the broker says about a message. `user` is checked by the broker, if present."""

    message_id: str
    routing_key: str
    user: str
    deliveries: int
    """How often it was delivered before."""
    received: float
    """When it was read from the connection: seconds of the monotonic clock."""


Handler = Callable[[bytes, Headers], Callable[[], None] | None]
"""Takes one message. It may return what remains to be done: handlers are called one at a time, in
the order in which the messages came; what remains of one is done beside the others."""


class _Verdict(Enum):
    ACCEPTED = "accepted"
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(slots=True)
class Counts:
    """What became of the messages since start."""

    handled: int = 0
    refused: int = 0
    """Sent to the dead letters: the handler said InputError, or the message was too large."""
    failed: int = 0
    """Given back to the queue: the handler raised something else."""
    connects: int = 0


class Consumer:
    """Hands the messages of one queue to `handler`, in their order, while `run` runs."""

    def __init__(
        self,
        urls: Sequence[str],
        queue: Queue | str,
        handler: Handler,
        *,
        workers: int = 1,
        prefetch: int = 1,
        on_connected: Callable[[], None] | None = None,
        on_turn: Callable[[], object] = int,
        declare: Sequence[Queue] = (),
        heartbeat_s: int = 10,
        max_bytes: int = MAX_DOWN,
        priority: Callable[[], int] = int,
    ) -> None:
        """`declare` is declared at every connect; without it the queue must exist already.

        `on_connected` is called in the thread of `run` each time messages begin to flow, `on_turn`
        several times a second, but not while a broker does not answer.
        A message is acknowledged after `handler` returned, and what that returned; InputError
        sends it to the dead letters; any other exception gives it back after a pause, until the
        queue's delivery limit is reached. At most `workers` messages are worked on at a time;
        with more than one, a message that a new connection brings again may be handled beside
        what remains of its first delivery. Of several consumers of a queue the one with the
        highest `priority`, asked for at every connect, gets all that it has room for (`prefetch`).
        Raises InputError (`bus-url`).
        """
        self.counts = Counts()
        self._endpoints = endpoints(urls)
        self._queue = queue.name if isinstance(queue, Queue) else queue
        self._handler = handler
        self._workers = workers
        self._prefetch = max(prefetch, workers)
        self._on_connected = on_connected
        self._on_turn = on_turn
        self._declare = declare
        self._heartbeat_s = heartbeat_s
        self._max_bytes = max_bytes
        self._priority = priority
        self._connected = threading.Event()

    @property
    def connected(self) -> bool:
        """Whether messages flow, as far as is known."""
        return self._connected.is_set()

    def run(self, stop: threading.Event) -> None:
        """Consume until `stop` is set. Survives everything that broker and handler do."""
        worker = _Workers(self._handler, self._max_bytes, self._workers)
        pauses = backoff()
        turn = 0
        said: dict[str, float] = {}
        try:
            while not stop.is_set():
                endpoint = self._endpoints[turn % len(self._endpoints)]
                turn += 1
                self._on_turn()
                try:
                    self._consume(Link(endpoint, self._heartbeat_s), worker, stop)
                except Exception as error:
                    said = self._complain(describe(error, endpoint), said)
                if self.connected:
                    said = {}
                    pauses = backoff()
                    self._connected.clear()
                stop.wait(next(pauses))
        finally:
            worker.close()

    def _complain(self, trouble: str, said: dict[str, float]) -> dict[str, float]:
        """Log what is new, and what goes on once in a while; what was said when."""
        now = monotonic()
        if now - said.get(trouble, -_SAY_AGAIN_S) < _SAY_AGAIN_S:
            return said
        log.warning("%s; trying again", trouble)
        return {**said, trouble: now}

    def _consume(self, link: Link, worker: _Workers, stop: threading.Event) -> None:
        session = _Session(link, worker, self.counts)
        try:
            link.declare(self._declare)
            session.start(self._queue, self._prefetch, self._priority())
            self.counts.connects += 1
            self._connected.set()
            if self._on_connected is not None:
                self._on_connected()
            while not stop.is_set():
                session.turn(_TICK_S)
                self._on_turn()
            session.finish(STOP_GRACE_S)
        finally:
            worker.forget()
            link.abandon()


class _Session:
    """One connection's life: what is delivered, worked on and settled over it."""

    def __init__(self, link: Link, worker: _Workers, counts: Counts) -> None:
        self._link = link
        self._worker = worker
        self._counts = counts
        self._delayed: list[tuple[float, int]] = []
        self._turned = monotonic()
        self._poll = select.poll()
        self._poll.register(link.descriptor, select.POLLIN)
        self._poll.register(worker.wakeup, select.POLLIN)

    def start(self, queue: str, prefetch: int, priority: int) -> None:
        # Not kombu's Consumer: that one unpacks whatever a header claims to be compressed.
        self._link.channel.basic_qos(0, prefetch, False)
        self._link.channel.basic_consume(
            queue, callback=self._worker.submit, arguments={"x-priority": priority}
        )

    def turn(self, timeout_s: float) -> None:
        """Wait for something to happen, at most `timeout_s`, and act on it."""
        due = min((at for at, _ in self._delayed), default=None)
        if due is not None:
            timeout_s = min(timeout_s, max(due - monotonic(), 0))
        ready = [] if self._link.pending else self._poll.poll(timeout_s * 1000)
        if monotonic() - self._turned > _STALL_S:
            raise ConnectionAbortedError("this process stood still")
        if self._link.pending or any(fd == self._link.descriptor for fd, _ in ready):
            self._link.read_frame()
        self._settle()
        self._link.heartbeat()
        self._turned = monotonic()

    def finish(self, grace_s: float) -> None:
        """Settle what the handler is working on, if it ends within `grace_s`; then goodbye."""
        self._worker.halt()
        self._worker.idle.wait(grace_s)
        self._settle()
        self._link.close()

    def _settle(self) -> None:
        channel = self._link.channel
        for message, verdict in self._worker.finished():
            if verdict is _Verdict.ACCEPTED:
                self._counts.handled += 1
                channel.basic_ack(message.delivery_tag)
            elif verdict is _Verdict.REFUSED:
                self._counts.refused += 1
                channel.basic_reject(message.delivery_tag, requeue=False)
            else:
                self._counts.failed += 1
                pause = _RETRY_S * 2 ** min(_deliveries(message), 5)
                self._delayed.append((monotonic() + pause, message.delivery_tag))
        now = monotonic()
        for entry in [entry for entry in self._delayed if entry[0] <= now]:
            self._delayed.remove(entry)
            channel.basic_reject(entry[1], requeue=True)


class _Workers:
    """The threads in which handlers run, and the two queues that lead to them and back.

    `life` numbers the connections: a delivery of an earlier one is void, the broker delivers
    it again.
    """

    def __init__(self, handler: Handler, max_bytes: int, count: int) -> None:
        self.wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.idle = threading.Event()
        self.idle.set()
        self._handler = handler
        self._max_bytes = max_bytes
        self._life = 0
        self._halted = False
        self._lock = threading.Lock()
        self._busy = 0
        self._threads = count
        self._in_order = threading.Lock()
        self._todo: SimpleQueue[tuple[int, Message, float] | None] = SimpleQueue()
        self._done: list[tuple[int, Message, _Verdict]] = []
        for _ in range(count):
            threading.Thread(target=self._work, name="vrha-handler", daemon=True).start()

    def submit(self, message: Message) -> None:
        self._todo.put((self._life, message, monotonic()))

    def forget(self) -> None:
        """The connection is gone: what was delivered over it is void."""
        with self._lock:
            self._life += 1
            self._done.clear()

    def halt(self) -> None:
        """Begin no further delivery."""
        with self._lock:
            self._halted = True

    def finished(self) -> list[tuple[Message, _Verdict]]:
        """What ended since the last call, of this life."""
        with self._lock:
            done, self._done = self._done, []
            with suppress(BlockingIOError):
                os.eventfd_read(self.wakeup)
            return [(message, verdict) for life, message, verdict in done if life == self._life]

    def close(self) -> None:
        """End the threads, once their handlers have returned."""
        self.halt()
        self._todo.put(None)

    def _work(self) -> None:
        try:
            while self._take():
                pass
        finally:
            # Passed on to the next thread.
            self._todo.put(None)
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    # Here and nowhere else: a late handler must not write into somebody's
                    # descriptor.
                    os.close(self.wakeup)

    def _take(self) -> bool:
        """Wait for a delivery and handle it; False when there are no more."""
        with ExitStack() as turn:
            turn.enter_context(self._in_order)
            item = self._todo.get()
            if item is None:
                return False
            life, message, received = item
            with self._lock:
                if life != self._life or self._halted:
                    return True
                self._busy += 1
                self.idle.clear()
            verdict = self._handle(message, received, turn.close)
        with self._lock:
            self._done.append((life, message, verdict))
            os.eventfd_write(self.wakeup, 1)
            self._busy -= 1
            if not self._busy:
                self.idle.set()
        return True

    def _handle(
        self, message: Message, received: float, let_others: Callable[[], None]
    ) -> _Verdict:
        headers = _headers(message, received)
        body = bytes(message.body)
        try:
            if len(body) > self._max_bytes:
                raise InputError("too-large", f"{len(body)} bytes, limit {self._max_bytes}")
            rest = self._handler(body, headers)
            if rest is not None:
                let_others()
                rest()
        except InputError as error:
            log.warning(
                "message %s refused: %s [%s]", headers.message_id, error.message, error.code
            )
            return _Verdict.REFUSED
        except VrhaError as error:
            # Known trouble (a full disk, say) explains itself; a traceback would hide it.
            log.error("message %s failed: %s", headers.message_id, error)
            return _Verdict.FAILED
        except Exception:
            log.exception("message %s failed", headers.message_id)
            return _Verdict.FAILED
        return _Verdict.ACCEPTED


def _deliveries(message: Message) -> int:
    headers = message.properties.get("application_headers") or {}
    return int(headers.get("x-delivery-count", 0))


def _headers(message: Message, received: float) -> Headers:
    properties = message.properties
    return Headers(
        message_id=str(properties.get("message_id", "")),
        routing_key=str(message.delivery_info.get("routing_key", "")),
        user=str(properties.get("user_id", "")),
        deliveries=_deliveries(message),
        received=received,
    )
