"""Messages to nodes that the broker has not confirmed yet, in the order they were decided."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, delete, select

from vrha.store import schema
from vrha.store.pending import Pending
from vrha.store.rows import OutboxRow


class Outbox:
    """Reads and writes of one transaction; `Tx.outbox`."""

    def __init__(self, connection: Connection, pending: Pending) -> None:
        self._db = connection
        self._pending = pending

    def enqueue(self, node: str, body: bytes, expires: float | None = None) -> None:
        """Queue a message to `node` in this transaction.

        It must not be sent after `expires` (seconds of the monotonic clock).
        """
        self._pending.add(schema.outbox, {"node": node, "body": body, "expires": expires})

    def unsent(self, limit: int = 100, but_to: Collection[str] = ()) -> tuple[OutboxRow, ...]:
        """The oldest messages that were not marked sent, in order, but those to nodes `but_to`."""
        table = schema.outbox
        self._pending.write(table)
        query = select(table).where(table.c.node.not_in(but_to)).order_by(table.c.id).limit(limit)
        return tuple(OutboxRow(r.id, r.node, r.body, r.expires) for r in self._db.execute(query))

    def forget_expiring(self) -> None:
        """Forget messages that expire: their clock ended with the process that wrote them."""
        self._pending.write(schema.outbox)
        self._db.execute(delete(schema.outbox).where(schema.outbox.c.expires.is_not(None)))

    def mark_sent(self, ids: Sequence[int]) -> None:
        """Forget messages that the broker confirmed, bodies (and tokens in them) included."""
        if ids:
            self._db.execute(delete(schema.outbox).where(schema.outbox.c.id.in_(ids)))
