"""What the report of a run needs beyond its journal: when steps began, how long their phases took,
what they carried, and what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import Connection, delete, insert, select

from vrha import codec
from vrha.model.evidence import NO_EVIDENCE, Evidence, Measurement
from vrha.model.messages import StepReport
from vrha.store import schema
from vrha.store.pending import Pending

Timings = tuple[tuple[str, float], ...]
_TABLES = (schema.begins, schema.timings, schema.evidence, schema.measurements)


class Reports:
    """Reads and writes of one transaction; `Tx.reports`."""

    def __init__(self, connection: Connection, pending: Pending) -> None:
        self._db = connection
        self._pending = pending

    def keep(self, report: StepReport) -> None:
        """Keep all of it; a later attempt replaces it."""
        place = (report.run, report.seq, report.undo)
        self.put_timings(*place, report.timings_ms)
        if report.began is not None:
            self.step_began(*place, report.began)
        if report.evidence != NO_EVIDENCE:
            self.put_evidence(*place, report.evidence)

    def step_began(self, run_id: str, seq: int, undo: bool, began: float) -> None:
        """Keep when a step began (Unix time, s); a later attempt replaces it."""
        self._pending.put(schema.begins, _key(run_id, seq, undo), {"began": began})

    def put_timings(self, run_id: str, seq: int, undo: bool, timings: Timings) -> None:
        """Keep what a step reported of its phases (ms); a later attempt replaces it."""
        body = codec.encode(timings, Timings).decode()
        self._pending.put(schema.timings, _key(run_id, seq, undo), {"timings": body})

    def put_evidence(self, run_id: str, seq: int, undo: bool, evidence: Evidence) -> None:
        """Keep what a step carried and measured; a later attempt replaces it."""
        body = codec.encode(evidence).decode()
        self._pending.put(schema.evidence, _key(run_id, seq, undo), {"evidence": body})

    def begins(self, run_id: str) -> Mapping[tuple[int, bool], float]:
        """When steps began (Unix time, s), by (seq, undo)."""
        table = schema.begins
        self._pending.write(table)
        found = self._db.execute(select(table).where(table.c.run_id == run_id))
        return {(row.seq, row.undo): row.began for row in found}

    def timings(self, run_id: str) -> Mapping[tuple[int, bool], Timings]:
        """Phases and milliseconds by (seq, undo)."""
        table = schema.timings
        self._pending.write(table)
        found = self._db.execute(select(table).where(table.c.run_id == run_id))
        return {(row.seq, row.undo): codec.decode(Timings, row.timings) for row in found}

    def evidence(self, run_id: str) -> Mapping[tuple[int, bool], Evidence]:
        """What steps carried and measured, by (seq, undo)."""
        table = schema.evidence
        self._pending.write(table)
        found = self._db.execute(select(table).where(table.c.run_id == run_id))
        return {(row.seq, row.undo): codec.decode(Evidence, row.evidence) for row in found}

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
        for table in _TABLES:
            self._pending.write(table)
            self._db.execute(delete(table).where(table.c.run_id.in_(run_ids)))


def _key(run_id: str, seq: int, undo: bool) -> dict[str, object]:
    return {"run_id": run_id, "seq": seq, "undo": undo}
