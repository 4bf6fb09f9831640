"""One transaction of the store: what can be read and written, in the words of the model."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from vrha import codec
from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Commit
from vrha.model.messages import Inventory
from vrha.model.ownership import Electorate
from vrha.model.spec import Desired
from vrha.model.state import NodeState
from vrha.model.views import Event
from vrha.store import rights, rows, schema
from vrha.store.journal import Journal
from vrha.store.leases import LeaseFiles
from vrha.store.node_health import NodeHealths
from vrha.store.outbox import Outbox
from vrha.store.pauses import Pauses
from vrha.store.pending import Pending
from vrha.store.rollouts import Rollouts
from vrha.store.routers import Routers

KEPT_EVENTS = 100_000
"""Events beyond this number are forgotten, oldest first."""
FORGET_EVERY = 1000
"""So many events are written between two times that old ones are forgotten."""

_TOKEN = select(schema.check_ins.c.token_hash).where(schema.check_ins.c.run_id == bindparam("run"))
_USED = (
    update(schema.check_ins)
    .where(schema.check_ins.c.run_id == bindparam("run"), schema.check_ins.c.used.is_(False))
    .values(used=True)
)
_LAST_EVENT = select(func.max(schema.events.c.id))
_DESIRED = select(schema.desired.c.version, schema.desired.c.applied_at)


class Tx(Journal, Routers):
    """Reads and writes of one transaction; made by `Store.transaction`."""

    def __init__(
        self,
        connection: Connection,
        memory: rows.Memory,
        desired: dict[tuple[int, str], Desired],
    ) -> None:
        pending = Pending(connection)
        Journal.__init__(self, connection, memory, pending)
        Routers.__init__(self, connection, memory, pending)
        self.rollouts = Rollouts(connection)
        self.leases = LeaseFiles(connection)
        self.outbox = Outbox(connection, pending)
        self.pauses = Pauses(connection)
        self.node_health = NodeHealths(connection)
        self._desired = desired

    # Desired state

    def desired(self) -> tuple[int, Desired]:
        """Version and content; version 0 and empty when nothing was applied yet."""
        table = schema.desired
        row = self._db.execute(_DESIRED).first()
        if row is None:
            return 0, Desired()
        # It changes seldom, is read often and may hold 20,000 rules.
        key = (row.version, row.applied_at)
        if key not in self._desired:
            self._desired.clear()
            body = self._db.execute(select(table.c.body)).scalar_one()
            self._desired[key] = codec.decode(Desired, body)
        return row.version, self._desired[key]

    def put_desired(self, desired: Desired) -> int:
        """Replace the desired state; returns its version."""
        last = self._db.execute(select(schema.desired.c.version)).scalar() or 0
        self._db.execute(delete(schema.desired))
        self._desired.clear()
        values: dict[str, Any] = {
            "version": last + 1,
            "body": codec.encode(desired).decode(),
            "applied_at": _now(),
        }
        self._desired[last + 1, values["applied_at"]] = desired
        self._db.execute(insert(schema.desired).values(values))
        return last + 1

    def drop_router_state(self, router: str) -> None:
        """Forget all of a router but its last epoch and generation."""
        self.drop_router_row(router)
        self.leases.forget(router)

    # Check-ins

    def expect_check_in(self, run_id: str, token_hash: str) -> None:
        """From now on only the token with this hash is accepted, once."""
        values = {"token_hash": token_hash, "used": False}
        self._pending.put(schema.check_ins, {"run_id": run_id}, values)

    def consume_check_in(self, run_id: str, token_hash: str) -> bool:
        """Use the token up. True exactly once, and only for the token expected last."""
        self._pending.write(schema.check_ins)
        expected = self._db.execute(_TOKEN, {"run": run_id}).scalar()
        if expected is None or not hmac.compare_digest(expected.encode(), token_hash.encode()):
            return False
        return self._db.execute(_USED, {"run": run_id}).rowcount == 1

    # Nodes

    def node_seen(self, inventory: Inventory, at: float) -> None:
        """Keep a node's newest inventory, heard `at` (seconds, Unix time)."""
        table = schema.nodes
        self._upsert(
            table,
            table.c.name == inventory.node,
            {
                "name": inventory.node,
                "inventory": self._memory.inventory_text(inventory),
                "seen_at": at,
            },
        )

    def node_silent(self, node: str) -> None:
        """Count the node as not heard (`seen_at` 0) until it is heard again."""
        self._db.execute(
            update(schema.nodes).where(schema.nodes.c.name == node).values(seen_at=0.0)
        )

    def not_seen_after(self, now: float) -> None:
        """Count no node as heard later than `now` (seconds, Unix time).

        Another machine, or a clock that was wrong, may have written the time.
        """
        table = schema.nodes
        self._db.execute(update(table).where(table.c.seen_at > now).values(seen_at=now))

    def node_states(self) -> tuple[NodeState, ...]:
        """Every node that was ever heard, by name."""
        found = self._db.execute(select(schema.nodes).order_by(schema.nodes.c.name))
        return tuple(self._memory.node_state(row) for row in found)

    # Events

    def add_event(
        self,
        kind: str,
        reason: str,
        *,
        run: str = "",
        router: str = "",
        node: str = "",
        detail: str = "",
    ) -> None:
        """Keep one thing that happened, and why."""
        values = {"at": _now(), "kind": kind, "reason": reason, "run": run, "router": router}
        self._pending.add(schema.events, values | {"node": node, "detail": detail})

    def events(self, after: int = 0, limit: int = 200) -> tuple[Event, ...]:
        """Events with an id above `after`, oldest first."""
        table = schema.events
        self._write_events()
        query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
        return tuple(Event(**row._mapping) for row in self._db.execute(query))

    def events_about(self, column: str, name: str, limit: int) -> tuple[Event, ...]:
        """The newest events of a `node` or `router` (the column), newest first."""
        table = schema.events
        self._write_events()
        query = select(table).where(table.c[column] == name).order_by(table.c.id.desc())
        return tuple(Event(**row._mapping) for row in self._db.execute(query.limit(limit)))

    # Ownership

    def book(self, first: Electorate) -> Book:
        """Who may have what active; `first` votes where nobody ever did."""
        return rights.read(self._db, first)

    def commit_rights(self, commit: Commit) -> None:
        """Raises RefusedError `epoch-behind`."""
        # Routers and their instances have their epochs in common.
        self.forget_states()
        rights.apply(self._db, commit)

    def write(self) -> None:
        """Write all that was put off: the last thing in a transaction."""
        self.write_routers()
        self.write_runs()
        self._write_events()
        self._pending.write_all()

    def _write_events(self) -> None:
        count = self._pending.write(schema.events)
        if not count:
            return
        last = self._db.execute(_LAST_EVENT).scalar_one()
        if last % FORGET_EVERY < count:
            old = schema.events.c.id <= last - last % FORGET_EVERY - KEPT_EVENTS
            self._db.execute(delete(schema.events).where(old))

    def _upsert(self, table: Table, where: ColumnElement[bool], values: dict[str, Any]) -> None:
        if not self._db.execute(update(table).where(where).values(values)).rowcount:
            self._db.execute(insert(table).values(values))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
