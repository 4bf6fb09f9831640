"""What an agent says to the orchestrator about its commands."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from queue import LifoQueue

from vrha import codec
from vrha.bus import topology
from vrha.bus.publisher import Publisher
from vrha.errors import UnreachableError
from vrha.model.messages import Message

log = logging.getLogger(__name__)

REPORT_FOR_S = 60.0
"""How long a report is offered to a broker that is away; then the command is taken again."""
_RETRY_S = 0.2


class Reports:
    """Says one message per thread at a time, over as many connections as are needed at once.

    Each message waits for the broker's disk: over one connection, that would be the pace of all.
    """

    def __init__(
        self, urls: Sequence[str], node: str, pause: Callable[[float], bool], connections: int
    ) -> None:
        """Connects lazily. `pause` waits for so many seconds; True when the agent is to end.

        Raises InputError (`bus-url`).
        """
        self._node = node
        self._pause = pause
        self._all = [Publisher(urls) for _ in range(connections)]
        # The one that was used last comes first: with little to say there is one connection.
        self._idle: LifoQueue[Publisher] = LifoQueue()
        for publisher in reversed(self._all):
            self._idle.put(publisher)

    def say(self, message: Message) -> None:
        """Over a restart of the broker if need be; the command stays unacknowledged meanwhile.

        Raises UnreachableError when it is of no use any more.
        """
        body = codec.encode(message)
        message_id = uuid.uuid4().hex
        give_up = time.monotonic() + REPORT_FOR_S
        while True:
            try:
                with self._one() as publisher:
                    publisher.publish(
                        topology.UP.name,
                        topology.up_key(self._node, message.type),
                        body,
                        message_id=message_id,
                    )
                return
            except UnreachableError as error:
                if time.monotonic() > give_up or self._pause(_RETRY_S):
                    raise
                log.warning("report not delivered yet: %s", error.code)

    @contextlib.contextmanager
    def _one(self) -> Iterator[Publisher]:
        publisher = self._idle.get()
        try:
            yield publisher
        finally:
            self._idle.put(publisher)

    def keep_alive(self) -> None:
        """As Publisher.keep_alive, for all connections."""
        for publisher in self._all:
            publisher.keep_alive()

    def close(self) -> None:
        """Close all connections."""
        for publisher in self._all:
            publisher.close()
