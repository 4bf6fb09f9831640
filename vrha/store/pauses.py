"""What must not be moved automatically, as rows and back."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select

from vrha.model.pauses import Pause, PauseScope, PauseTarget
from vrha.store import schema


class Pauses:
    """Reads and writes of one transaction; `Tx.pauses`."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def put(self, target: PauseTarget, by: str, reason: str) -> Pause:
        """Pause `target` from now on; it replaces an earlier pause of the same."""
        self.remove(target)
        since = datetime.now(UTC).isoformat(timespec="milliseconds")
        values = {"scope": target.scope.value, "name": target.name, "since": since}
        self._db.execute(insert(schema.pauses).values(values | {"by": by, "reason": reason}))
        return Pause(target, since, by, reason)

    def remove(self, target: PauseTarget) -> bool:
        """End the pause of `target`; False when there was none."""
        table = schema.pauses
        where = (table.c.scope == target.scope.value, table.c.name == target.name)
        return self._db.execute(delete(table).where(*where)).rowcount > 0

    def all(self) -> tuple[Pause, ...]:
        """All pauses, oldest first."""
        table = schema.pauses
        query = select(table).order_by(table.c.since, table.c.scope, table.c.name)
        return tuple(
            Pause(PauseTarget(PauseScope(r.scope), r.name), r.since, r.by, r.reason)
            for r in self._db.execute(query)
        )
