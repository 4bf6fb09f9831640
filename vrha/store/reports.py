"""What the report of a run needs beyond its journal: when steps began, and what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, delete, insert, select

from vrha import codec
from vrha.model.evidence import Measurement
from vrha.store import schema


class Reports:
    """Reads and writes of one transaction; `Tx.reports`."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def step_began(self, run_id: str, seq: int, undo: bool, began: float) -> None:
        """Keep when a step began (Unix time, s); a later attempt replaces it."""
        table = schema.begins
        where = (table.c.run_id == run_id, table.c.undo.is_(undo), table.c.seq == seq)
        self._db.execute(delete(table).where(*where))
        values = {"run_id": run_id, "undo": undo, "seq": seq, "began": began}
        self._db.execute(insert(table).values(values))

    def begins(self, run_id: str) -> Mapping[tuple[int, bool], float]:
        """When steps began (Unix time, s), by (seq, undo)."""
        table = schema.begins
        found = self._db.execute(select(table).where(table.c.run_id == run_id))
        return {(row.seq, row.undo): row.began for row in found}

    def put_measurement(self, run_id: str, measurement: Measurement) -> None:
        """Keep what was measured during a run; it replaces what was kept before."""
        table = schema.measurements
        self._db.execute(delete(table).where(table.c.run_id == run_id))
        body = codec.encode(measurement).decode()
        self._db.execute(insert(table).values(run_id=run_id, body=body))

    def measurement(self, run_id: str) -> Measurement | None:
        """What was measured during a run; None when nothing was kept."""
        table = schema.measurements
        body = self._db.execute(select(table.c.body).where(table.c.run_id == run_id)).scalar()
        return None if body is None else codec.decode(Measurement, body)

    def forget(self, run_ids: Collection[str]) -> None:
        """Forget all about these runs."""
        for table in (schema.begins, schema.measurements):
            self._db.execute(delete(table).where(table.c.run_id.in_(run_ids)))
