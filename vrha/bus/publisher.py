"""Publishing with confirms: when `publish` returns, the broker has the message on disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any

from amqp.exceptions import NotFound
from kombu import Message, Producer, Queue

from vrha.bus.connection import (
    BUS_ERRORS,
    REFUSED_ERRORS,
    Endpoint,
    Link,
    backoff,
    describe,
    endpoints,
)
from vrha.bus.topology import MAX_DOWN
from vrha.errors import InputError, UnreachableError

log = logging.getLogger(__name__)


class _Failure(Exception):
    """The broker was there and did not confirm."""


class _Nacked(_Failure):
    """Its queue is full, or has no leader at the moment."""


class _Lost(_Failure):
    """The connection broke, or time ran out, after the message was begun."""


class _Returned(Exception):
    """No queue is bound for the message."""


class _Session:
    """A connection with its confirms: tags of this channel that are still open."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._returns: list[str] = []
        self._last_tag = 0
        self._settled: dict[int, bool] = {}
        channel = link.channel
        channel.confirm_select()
        channel.events["basic_ack"].add(self._acked)
        channel.events["basic_nack"].add(self._nacked)
        self._producer = Producer(channel, auto_declare=False, on_return=self._returned)

    def _acked(self, tag: int, _multiple: bool) -> None:
        # One message at a time is on its way, so `multiple` changes nothing.
        self._settled[tag] = True

    def _nacked(self, tag: int, _multiple: bool, *_: Any) -> None:
        self._settled[tag] = False

    def _returned(self, _error: Exception, _exchange: str, key: str, _message: Message) -> None:
        self._returns.append(key)

    def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        message_id: str,
        deadline: float,
        expires: float | None,
    ) -> None:
        """Raises _Nacked, _Lost, _Returned, NotFound or AccessRefused."""
        self._returns.clear()
        self._settled.clear()
        self._last_tag += 1
        try:
            self._producer.publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                content_type="application/json",
                content_encoding="utf-8",
                delivery_mode=2,
                mandatory=True,
                message_id=message_id,
                user_id=self.link.endpoint.user,
                expiration=None if expires is None else max(expires - monotonic(), 0.001),
                timeout=max(deadline - monotonic(), 0.001),
            )
            self._await_confirm(deadline)
        except (NotFound, *REFUSED_ERRORS):
            raise
        except BUS_ERRORS as error:
            raise _Lost(f"was lost before it confirmed ({type(error).__name__})") from error
        # The return of an unroutable message comes before its confirm.
        if self._returns:
            raise _Returned(f"exchange {exchange}, routing key {routing_key}")
        if not self._settled[self._last_tag]:
            raise _Nacked("refused the message (queue full, or without a leader)")

    def _await_confirm(self, deadline: float) -> None:
        while self._last_tag not in self._settled:
            remaining = deadline - monotonic()
            if remaining <= 0:
                raise _Lost("did not confirm in time")
            if self.link.readable(remaining):
                self.link.read_frame(remaining)


class Publisher:
    """Publishes persistent messages, one at a time, over a connection of its own.

    Calls from several threads wait for each other. Call `keep_alive` about every second while
    nothing is published; without it the broker drops the idle connection, and the next
    `publish` spends some milliseconds on a new one.
    """

    def __init__(self, urls: Sequence[str], heartbeat_s: int = 10) -> None:
        """Connects lazily. Raises InputError (`bus-url`)."""
        self._endpoints = endpoints(urls)
        self._turn = 0
        self._heartbeat_s = heartbeat_s
        self._declared: dict[str, Queue] = {}
        self._session: _Session | None = None
        self._lock = threading.Lock()

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        message_id: str,
        timeout_s: float = 5.0,
        expires: float | None = None,
    ) -> None:
        """Returns once the broker has confirmed that a queue holds the message.

        Tries again, with the same message id, until `timeout_s` has passed: the receiver may
        see a message twice, and must not mind. The broker drops the message if it is not delivered
        before `expires` (seconds of the monotonic clock). Raises InputError (`too-large`) and
        UnreachableError: `broker-unreachable` (surely not delivered), `broker-refused` (login
        or permission), `unroutable` (no queue is bound), `not-confirmed` (outcome unknown).
        """
        if len(body) > MAX_DOWN:
            raise InputError("too-large", f"message of {len(body)} bytes; the limit is {MAX_DOWN}")

        def send(session: _Session, deadline: float) -> None:
            session.send(exchange, routing_key, body, message_id, deadline, expires)

        with self._lock:
            self._until(timeout_s, send)

    def declare(self, queues: Sequence[Queue], timeout_s: float = 5.0) -> None:
        """Declare `queues` with their exchanges and bindings, now and after every reconnect.

        Raises UnreachableError.
        """

        def declare(session: _Session, _deadline: float) -> None:
            session.link.declare(queues)

        with self._lock:
            self._until(timeout_s, declare)
            self._declared |= {queue.name: queue for queue in queues}

    def keep_alive(self) -> None:
        """Exchange heartbeats if there is a connection; never raises, never waits."""
        if not self._lock.acquire(blocking=False):
            return  # A message is on its way, which is as good as a heartbeat.
        try:
            if self._session is not None:
                self._session.link.read_waiting()
                self._session.link.heartbeat()
        except BUS_ERRORS as error:
            log.info("%s", describe(error, self._endpoint))
            self._drop()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; a later `publish` opens a new one."""
        with self._lock:
            if self._session is not None:
                self._session.link.close()
            self._session = None

    @property
    def _endpoint(self) -> Endpoint:
        return self._endpoints[self._turn % len(self._endpoints)]

    def _until(self, timeout_s: float, action: Callable[[_Session, float], None]) -> None:
        deadline = monotonic() + timeout_s
        unknown = False
        refusals = 0
        for pause in backoff():
            try:
                return action(self._connected(deadline), deadline)
            except _Failure as failure:
                error = _unreachable("not-confirmed", f"broker {self._endpoint.name} {failure}")
                if not isinstance(failure, _Nacked):
                    unknown = True
                    self._drop()
            except (NotFound, _Returned) as failure:
                if isinstance(failure, NotFound):
                    self._drop()
                raise _unreachable("unroutable", f"no queue takes the message: {failure}") from None
            except BUS_ERRORS as failure:
                refused = isinstance(failure, REFUSED_ERRORS)
                refusals += refused
                code = "broker-refused" if refused else "broker-unreachable"
                error = _unreachable(code, describe(failure, self._endpoint))
                self._drop()
            if refusals == len(self._endpoints) or monotonic() + pause >= deadline:
                raise _unreachable("not-confirmed", error.message) if unknown else error
            sleep(pause)

    def _connected(self, deadline: float) -> _Session:
        if self._session is not None:
            try:
                # The broker's goodbye may have come while idle: better known before sending.
                self._session.link.read_waiting()
                return self._session
            except BUS_ERRORS:
                self._session.link.abandon()
                self._session = None
        link = Link(self._endpoint, self._heartbeat_s, max(deadline - monotonic(), 0.01))
        try:
            link.declare(tuple(self._declared.values()))
            self._session = _Session(link)
        except BaseException:
            link.abandon()
            raise
        return self._session

    def _drop(self) -> None:
        """Drop the connection; the next one goes to the next broker."""
        if self._session is not None:
            self._session.link.abandon()
        self._session = None
        self._turn += 1


_HINTS = {
    "broker-unreachable": "Is RabbitMQ running, and the bus URL right?",
    "broker-refused": "Check user, password, virtual host and permissions of the bus URL.",
    "unroutable": "Was the node's queue declared?",
    "not-confirmed": "It may have been delivered; sending it again does no harm.",
}


def _unreachable(code: str, message: str) -> UnreachableError:
    return UnreachableError(code, message, _HINTS[code])
