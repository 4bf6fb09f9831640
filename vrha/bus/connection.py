"""One AMQP connection with a deadline on every call, and errors that never show a password."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import unquote, urlsplit

from amqp.exceptions import AccessRefused, AMQPError, NotAllowed
from kombu import Connection, Queue
from kombu.exceptions import KombuError

from vrha.errors import InputError

CONNECT_TIMEOUT_S = 2.0
"""For each of: TCP connect, each frame of the handshake."""
IO_TIMEOUT_S = 3.0
"""For every read and write after the handshake that has no shorter timeout of its own."""

# The AMQP client lets AttributeError, KeyError and ValueError escape on connections that die
# in the middle of a frame.
BUS_ERRORS: tuple[type[Exception], ...] = (
    AMQPError,
    KombuError,
    OSError,
    AttributeError,
    KeyError,
    ValueError,
)
REFUSED_ERRORS: tuple[type[Exception], ...] = (AccessRefused, NotAllowed)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One broker; `name` (host:port/vhost) is safe to show, `url` is not."""

    name: str
    user: str
    host: str
    tls: bool
    url: str = field(repr=False)


def endpoints(urls: Sequence[str]) -> tuple[Endpoint, ...]:
    """The brokers behind `urls`. Raises InputError (`bus-url`) without showing the URL."""
    if not urls:
        raise InputError("bus-url", "no broker URL is configured", "Set bus urls.")
    return tuple(_endpoint(url, position) for position, url in enumerate(urls, 1))


def _endpoint(url: str, position: int) -> Endpoint:
    hint = "Use amqp://USER:PASSWORD@HOST:PORT/VHOST; write / @ : in a password as %2F %40 %3A."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # The text of this error can hold a part of the password.
        raise InputError("bus-url", f"broker URL {position} is malformed", hint) from None
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise InputError("bus-url", f"broker URL {position} is not amqp://HOST..", hint)
    tls = parts.scheme == "amqps"
    vhost = unquote(parts.path[1:]) or "/"
    return Endpoint(
        name=f"{parts.hostname}:{port or (5671 if tls else 5672)}/{vhost.lstrip('/')}",
        user=unquote(parts.username or "guest"),
        host=parts.hostname,
        tls=tls,
        url=url,
    )


class Link:
    """An open connection with one channel. For one thread at a time."""

    def __init__(
        self, endpoint: Endpoint, heartbeat_s: int, timeout_s: float = CONNECT_TIMEOUT_S
    ) -> None:
        """Connect and log in. Raises one of BUS_ERRORS."""
        tls = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": endpoint.host}
        self.endpoint = endpoint
        self._connection = Connection(
            endpoint.url,
            heartbeat=heartbeat_s,
            connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
            ssl=tls if endpoint.tls else False,
        )
        try:
            # Not connect(): that one retries by itself and wraps the error.
            self._amqp: Any = self._connection.transport.establish_connection()
            self._connection._connection = self._amqp
            # Calls of the client without a timeout of their own would wait for ever.
            self._amqp.transport.sock.settimeout(IO_TIMEOUT_S)
            self.channel: Any = self._amqp.channel()
            self.channel.auto_decode = False
        except BaseException:
            self.abandon()
            raise

    @property
    def descriptor(self) -> int:
        return int(self._amqp.transport.sock.fileno())

    @property
    def pending(self) -> bool:
        """Whether TLS holds bytes that a poll of the socket does not show."""
        sock = self._amqp.transport.sock
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def readable(self, timeout_s: float) -> bool:
        if self.pending:
            return True
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(max(timeout_s, 0) * 1000))

    def read_frame(self, timeout_s: float = 1.0) -> None:
        """Read one frame and act on it; a frame cut short is continued by the next call.

        Not drain_events: that waits for another frame when it meets a heartbeat.
        """
        try:
            self._amqp.blocking_read(timeout_s)
        except TimeoutError:
            return

    def read_waiting(self) -> None:
        """Read what has come, without waiting for more."""
        while self.readable(0):
            self.read_frame()

    def declare(self, queues: Sequence[Queue]) -> None:
        """Declare queues with their exchanges and bindings."""
        for queue in queues:
            queue.bind(self.channel).declare()

    def heartbeat(self) -> None:
        """Send one if due. Raises ConnectionForced when the broker has missed two."""
        self._amqp.heartbeat_tick(rate=2)

    def close(self) -> None:
        """Say goodbye (at most one second), then drop the socket."""
        try:
            self._amqp.transport.sock.settimeout(1.0)
            self._amqp.close()
        except BUS_ERRORS:
            pass
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Drop the socket without a word: nothing waits for a peer that may be gone."""
        amqp = getattr(self, "_amqp", None)
        if amqp is None:
            return
        with contextlib.suppress(*BUS_ERRORS):
            # What is not on the wire yet is discarded: it must not arrive after what comes next.
            # Not the property `transport`: that one connects when there is no connection.
            sock = amqp._transport.sock
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        amqp.collect()


def backoff(first_s: float = 0.05, most_s: float = 2.0) -> Iterator[float]:
    """Pauses in seconds, doubling up to `most_s`, each between half and all of it at random."""
    for attempt in count():
        longest = min(most_s, first_s * 2 ** min(attempt, 16))
        yield random.uniform(longest / 2, longest)


def describe(error: BaseException, endpoint: Endpoint) -> str:
    """What went wrong with `endpoint`, safe to show."""
    if isinstance(error, REFUSED_ERRORS):
        return f"broker {endpoint.name} refused user {endpoint.user}: {_text(error)}"
    if isinstance(error, ConnectionRefusedError):
        return f"no broker listens on {endpoint.name}"
    if isinstance(error, socket.gaierror):
        return f"broker {endpoint.name}: unknown host name"
    if isinstance(error, TimeoutError):
        return f"broker {endpoint.name} does not answer"
    return f"broker {endpoint.name}: {type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    return str(error).replace("\n", " ")[:200]
