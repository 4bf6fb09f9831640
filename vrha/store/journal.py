"""Runs with their steps: read and changed in memory, written when the transaction ends.

A run that begins is added, started and saved within one transaction; in one that begins thirty
there are as many rows of a kind, and one statement for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from vrha.core.ownership.wanted import Claimant
from vrha.errors import NotFoundError, RefusedError
from vrha.model.runs import Run, RunKind, StepRecord
from vrha.store import claims, rows, schema
from vrha.store.pending import Pending, Row, delete_by
from vrha.store.reports import Reports
from vrha.store.rows import RunTimes

KEPT_RUNS = 1_000
"""Ended runs beyond this number are forgotten, oldest first."""

_RUNS, _STEPS = schema.runs, schema.steps
_RUN = select(_RUNS).where(_RUNS.c.id == bindparam("id"))
_STEPS_OF = select(_STEPS).where(_STEPS.c.run_id == bindparam("run")).order_by(_STEPS.c.seq)
_OPEN_OF = select(_RUNS.c.id).where(
    _RUNS.c.router == bindparam("router"), _RUNS.c.terminal.is_(False)
)
_OPEN = select(_RUNS).where(_RUNS.c.terminal.is_(False)).order_by(_RUNS.c.number)
_UPDATE_RUN = (
    update(_RUNS)
    .where(_RUNS.c.id == bindparam("by_id"))
    .values({name: bindparam(name) for name in ("terminal", "deadline", "body", "ended_at")})
)
_THIS_STEP = and_(
    _STEPS.c.run_id == bindparam("by_run_id"),
    _STEPS.c.undo == bindparam("by_undo"),
    _STEPS.c.seq == bindparam("by_seq"),
)
_PROGRESS = update(_STEPS).where(_THIS_STEP).values(progress=bindparam("progress"))
_STEP = _PROGRESS.values(step=bindparam("step"))


@dataclass(slots=True)
class _Known:
    """A run as it is now, and as the tables have it; None: they do not have it yet."""

    run: Run
    saved: Run | None
    times: RunTimes


class Journal:
    """Reads and writes of one transaction."""

    def __init__(self, connection: Connection, memory: rows.Memory, pending: Pending) -> None:
        self._db = connection
        self._memory = memory
        self._pending = pending
        self.reports = Reports(connection, pending)
        self._runs_known: dict[str, _Known] = {}
        self._runs_changed: dict[str, None] = {}
        self._open_of: dict[str, str | None] = {}
        """The open run by router, where that is known."""

    def add_run(self, run: Run) -> None:
        """Journal a new run.

        Raises RefusedError (`run-in-progress`, naming the open run) when its router has one.
        """
        if not run.status.terminal:
            other = self.open_run_of(run.router)
            if other is not None and other.id != run.id:
                raise RefusedError(
                    "run-in-progress",
                    f"router {run.router} has run {other.id} ({other.kind.value}) in progress",
                    f"Wait for it: vrha run show {other.id}",
                )
            self._open_of[run.router] = run.id
        times = RunTimes(_now(), _now() if run.status.terminal else "")
        self._runs_known[run.id] = _Known(run, None, times)
        self._runs_changed[run.id] = None

    def save_run(self, run: Run) -> None:
        """Write the run and those of its steps that changed.

        Raises NotFoundError; RefusedError (`run-ended`) when that would leave a terminal
        status (I3).
        """
        known = self._find(run.id)
        if known is None:
            raise NotFoundError("no-run", f"no run {run.id}")
        was = known.run.status
        if was.terminal and run.status is not was:
            raise RefusedError(
                "run-ended", f"run {run.id} is {was.value} and cannot become {run.status.value}"
            )
        if run.status.terminal and not was.terminal:
            known.times = RunTimes(known.times.started_at, known.times.ended_at or _now())
            self._open_of[run.router] = None
        known.run = run
        self._runs_changed[run.id] = None

    def read_runs(self, run_ids: Iterable[str]) -> None:
        """Read all of these at once: `run` then asks nobody."""
        missing = [run_id for run_id in dict.fromkeys(run_ids) if run_id not in self._runs_known]
        if not missing:
            return
        steps: dict[str, list[Any]] = {run_id: [] for run_id in missing}
        wanted = _STEPS.c.run_id.in_(missing)
        for row in self._db.execute(select(_STEPS).where(wanted).order_by(_STEPS.c.seq)):
            steps[row.run_id].append(row)
        for row in self._db.execute(select(_RUNS).where(_RUNS.c.id.in_(missing))):
            self._remember(row, steps[row.id])

    def run(self, run_id: str) -> Run | None:
        known = self._find(run_id)
        return known.run if known else None

    def run_times(self, run_id: str) -> RunTimes | None:
        known = self._find(run_id)
        return known.times if known else None

    def open_runs(self) -> tuple[Run, ...]:
        """Runs that have not ended, oldest first."""
        found = self._runs(_RUNS.c.terminal.is_(False))
        return tuple(run for run, _ in reversed(found))

    def overdue_runs(self, now: float) -> tuple[Run, ...]:
        """Open runs with a started step whose deadline has come, oldest first."""
        found = self._runs(and_(_RUNS.c.terminal.is_(False), _RUNS.c.deadline <= now))
        return tuple(run for run, _ in reversed(found))

    def open_run_briefs(self) -> tuple[tuple[Run, RunTimes], ...]:
        """Runs that have not ended without their steps, oldest first."""
        self.write_runs()
        return tuple(
            (self._memory.run(row.body), RunTimes(row.started_at, row.ended_at))
            for row in self._db.execute(_OPEN)
        )

    def open_run_ids(self) -> Mapping[str, str]:
        """The id of the open run by router."""
        self.write_runs()
        query = select(_RUNS.c.router, _RUNS.c.id).where(_RUNS.c.terminal.is_(False))
        return {row.router: row.id for row in self._db.execute(query)}

    def busy(self) -> Mapping[str, str]:
        """As `open_run_ids`, without those of standbys: they give way to any other."""
        runs = (run for run, _ in self.open_run_briefs())
        return {run.router: run.id for run in runs if run.kind is not RunKind.STANDBY}

    def open_builds(self) -> frozenset[tuple[str, str]]:
        """Routers with an open run that builds an instance, and the node on which it does."""
        self.write_runs()
        query = select(_RUNS.c.router, _RUNS.c.builds_on).where(
            _RUNS.c.terminal.is_(False), _RUNS.c.builds_on != ""
        )
        return frozenset((row.router, row.builds_on) for row in self._db.execute(query))

    def read_open_runs(self, routers: Iterable[str]) -> None:
        """Read of all these at once which run is open: `open_run_of` then asks nobody."""
        missing = [router for router in routers if router not in self._open_of]
        found = self.open_run_ids() if missing else {}
        self._open_of |= {router: found.get(router) for router in missing}

    def open_run_of(self, router: str) -> Run | None:
        if router not in self._open_of:
            self._open_of[router] = self._db.execute(_OPEN_OF, {"router": router}).scalar()
        run_id = self._open_of[router]
        return None if run_id is None else self.run(run_id)

    def runs(self, limit: int, open_only: bool = False) -> tuple[tuple[Run, RunTimes], ...]:
        """The newest `limit` runs, newest first."""
        return self._runs(_RUNS.c.terminal.is_(False) if open_only else None, limit)

    def claimants(self) -> tuple[Claimant, ...]:
        """What rights open runs need."""
        self.write_runs()
        return claims.read(self._db)

    def write_runs(self) -> None:
        """Write what has changed, with what follows from it."""
        if not self._runs_changed:
            return
        changed = [self._runs_known[run_id] for run_id in self._runs_changed]
        self._runs_changed.clear()
        there = [known for known in changed if known.saved is not None]
        new = [known for known in changed if known.saved is None]
        # Those that ended first: a router has one open run.
        self._execute(_UPDATE_RUN, [_run_row(known, new=False) for known in there])
        self._execute(insert(_RUNS), [_run_row(known, new=True) for known in new])
        self._write_steps(changed)
        for known in changed:
            claims.save(self._pending, known.saved, known.run)
        self._pending.write(schema.claims)
        ended = any(
            known.run.status.terminal and not (known.saved and known.saved.status.terminal)
            for known in changed
        )
        for known in changed:
            known.saved = known.run
        if ended:
            self._forget_runs()

    def _find(self, run_id: str) -> _Known | None:
        known = self._runs_known.get(run_id)
        if known is None:
            row = self._db.execute(_RUN, {"id": run_id}).first()
            known = None if row is None else self._remember(row)
        return known

    def _remember(self, row: Any, steps: Iterable[Any] | None = None) -> _Known:
        if row.id not in self._runs_known:
            if steps is None:
                steps = self._db.execute(_STEPS_OF, {"run": row.id})
            run = rows.with_steps(self._memory.run(row.body), *self._records(steps))
            self._runs_known[row.id] = _Known(run, run, RunTimes(row.started_at, row.ended_at))
        return self._runs_known[row.id]

    def _runs(
        self, where: ColumnElement[bool] | None, limit: int | None = None
    ) -> tuple[tuple[Run, RunTimes], ...]:
        self.write_runs()
        query = select(_RUNS).order_by(_RUNS.c.number.desc()).limit(limit)
        if where is not None:
            query = query.where(where)
        found = [self._remember(row) for row in self._db.execute(query).all()]
        return tuple((known.run, known.times) for known in found)

    def _records(
        self, found: Iterable[Any]
    ) -> tuple[tuple[StepRecord, ...], tuple[StepRecord, ...]]:
        """The steps forward, and those of the roll-back."""
        forward: list[StepRecord] = []
        undo: list[StepRecord] = []
        for row in found:
            record = self._memory.record(row.seq, row.step, row.progress)
            (undo if row.undo else forward).append(record)
        return tuple(forward), tuple(undo)

    def _write_steps(self, changed: list[_Known]) -> None:
        gone: list[Row] = []
        new: list[Row] = []
        others: list[Row] = []
        moved: list[Row] = []
        for known in changed:
            for undo, records, before in _sides(known):
                saved = {record.seq: record for record in before}
                for record in records:
                    was = saved.pop(record.seq, None)
                    if was is record or was == record:
                        continue
                    row: Row = {"progress": rows.progress_text(record)}
                    by = {"by_run_id": known.run.id, "by_undo": undo, "by_seq": record.seq}
                    if was is not None and was.step == record.step:
                        moved.append(row | by)
                        continue
                    row["step"] = self._memory.step_text(record.step)
                    if was is None:
                        new.append(row | {"run_id": known.run.id, "undo": undo, "seq": record.seq})
                    else:
                        others.append(row | by)
                gone += [
                    {"by_run_id": known.run.id, "by_undo": undo, "by_seq": seq} for seq in saved
                ]
        self._execute(delete_by(_STEPS, "run_id", "undo", "seq"), gone)
        self._execute(insert(_STEPS), new)
        self._execute(_STEP, others)
        self._execute(_PROGRESS, moved)

    def _execute(self, statement: Any, parameters: list[Row]) -> None:
        if parameters:
            self._db.execute(statement, parameters)

    def _forget_runs(self) -> None:
        ended = (
            select(_RUNS.c.number, _RUNS.c.id)
            .where(_RUNS.c.terminal.is_(True))
            .order_by(_RUNS.c.number.desc())
            .offset(KEPT_RUNS)
            .limit(KEPT_RUNS)
        )
        old = [row.id for row in self._db.execute(ended)]
        if not old:
            return
        for part in (schema.steps, schema.check_ins):
            self._db.execute(delete(part).where(part.c.run_id.in_(old)))
        self.reports.forget(old)
        self._db.execute(delete(_RUNS).where(_RUNS.c.id.in_(old)))
        for run_id in old:
            self._runs_known.pop(run_id, None)


def _sides(known: _Known) -> Iterator[tuple[bool, tuple[StepRecord, ...], tuple[StepRecord, ...]]]:
    """Steps forward and of the roll-back: whether it is that, as they are now, as they were."""
    saved = known.saved
    yield False, known.run.steps, saved.steps if saved else ()
    yield True, known.run.undo, saved.undo if saved else ()


def _run_row(known: _Known, new: bool) -> Row:
    run = known.run
    row = {
        "terminal": run.status.terminal,
        "deadline": rows.deadline_of(run),
        "body": rows.run_text(run),
        "ended_at": known.times.ended_at,
    }
    if not new:
        return row | {"by_id": run.id}
    return row | {
        "id": run.id,
        "router": run.router,
        "builds_on": rows.build_node_of(run),
        "started_at": known.times.started_at,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
