"""One transaction of the store: what can be read and written, in the words of the model."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, insert, null, select, update
from sqlalchemy.exc import IntegrityError

from vrha import codec
from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Commit
from vrha.core.ownership.wanted import Claimant
from vrha.errors import NotFoundError, RefusedError
from vrha.model.evidence import Evidence
from vrha.model.messages import Inventory
from vrha.model.ownership import Electorate
from vrha.model.runs import Run, RunKind, StepRecord
from vrha.model.spec import Desired
from vrha.model.state import NodeState, RouterState
from vrha.model.views import Event
from vrha.store import claims, rights, rows, schema
from vrha.store.leases import LeaseFiles
from vrha.store.node_health import NodeHealths
from vrha.store.outbox import Outbox
from vrha.store.pauses import Pauses
from vrha.store.reports import Reports
from vrha.store.rollouts import Rollouts
from vrha.store.rows import RunTimes

KEPT_EVENTS = 100_000
KEPT_RUNS = 1_000
"""Ended runs and events beyond these numbers are forgotten, oldest first."""

Timings = tuple[tuple[str, float], ...]

_WITH_STANDBYS = schema.routers.outerjoin(
    schema.standbys, schema.routers.c.router == schema.standbys.c.router
)
_ROUTERS = select(
    schema.routers,
    schema.standbys.c.standby,
    schema.standbys.c.standby_node,
    schema.standbys.c.standby_spec,
).select_from(_WITH_STANDBYS)


class Tx:
    """Reads and writes of one transaction; made by `Store.transaction`."""

    def __init__(
        self,
        connection: Connection,
        memory: rows.Memory,
        desired: dict[tuple[int, str], Desired],
    ) -> None:
        self._db = connection
        self.rollouts = Rollouts(connection)
        self.reports = Reports(connection)
        self.leases = LeaseFiles(connection)
        self.outbox = Outbox(connection)
        self.pauses = Pauses(connection)
        self.node_health = NodeHealths(connection)
        self._memory = memory
        self._desired = desired

    # Desired state

    def desired(self) -> tuple[int, Desired]:
        """Version and content; version 0 and empty when nothing was applied yet."""
        table = schema.desired
        row = self._db.execute(select(table.c.version, table.c.applied_at)).first()
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

    # Routers

    def router_state(self, router: str) -> RouterState | None:
        """State of a router; None when there never was one of that name.

        Of a dropped router only `epoch` and `generation` are left: they go on from there.
        """
        query = _ROUTERS.where(schema.routers.c.router == router)
        row = self._db.execute(query).first()
        return None if row is None else self._memory.router_state(row)

    def router_states(self) -> tuple[RouterState, ...]:
        """States of all routers that were not dropped, by name."""
        table = schema.routers
        query = _ROUTERS.where(table.c.dropped.is_(False)).order_by(table.c.router)
        return tuple(self._memory.router_state(row) for row in self._db.execute(query))

    def router_briefs(self) -> tuple[RouterState, ...]:
        """As `router_states`, without `applied` and `standby_spec`: they may be large."""
        table = schema.routers
        columns = [c for c in table.c if c is not table.c.applied]
        columns += [schema.standbys.c.standby, schema.standbys.c.standby_node]
        query = select(*columns, null().label("applied"), null().label("standby_spec")).select_from(
            _WITH_STANDBYS
        )
        query = query.where(table.c.dropped.is_(False))
        found = self._db.execute(query.order_by(table.c.router))
        return tuple(self._memory.router_state(row) for row in found)

    def put_router_state(self, state: RouterState) -> None:
        """Save `state`. Raises RefusedError (`epoch-behind`) where it would go back (I6)."""
        table = schema.routers
        last = self._db.execute(
            select(table.c.epoch, table.c.generation).where(table.c.router == state.router)
        ).first()
        if last and (state.epoch < last.epoch or state.generation < last.generation):
            raise RefusedError(
                "epoch-behind",
                f"router {state.router}: epoch {state.epoch}, generation {state.generation} are "
                f"behind {last.epoch}, {last.generation}, which were handed out before",
            )
        self._upsert(table, table.c.router == state.router, rows.router_values(state))
        where, standby = schema.standbys.c.router == state.router, rows.standby_values(state)
        if standby is None:
            self._db.execute(delete(schema.standbys).where(where))
        else:
            self._upsert(schema.standbys, where, standby)

    def drop_router_state(self, router: str) -> None:
        """Forget all of a router but its last epoch and generation."""
        table = schema.routers
        self._db.execute(
            update(table)
            .where(table.c.router == router)
            .values(dropped=True, node="", active=None, applied=None, failed="")
        )
        self.leases.forget(router)
        self._db.execute(delete(schema.standbys).where(schema.standbys.c.router == router))

    # Runs

    def add_run(self, run: Run) -> None:
        """Journal a new run.

        Raises RefusedError (`run-in-progress`, naming the open run) when its router has one.
        """
        try:
            with self._db.begin_nested():
                self._db.execute(
                    insert(schema.runs).values(
                        id=run.id,
                        router=run.router,
                        terminal=run.status.terminal,
                        deadline=rows.deadline_of(run),
                        builds_on=rows.build_node_of(run),
                        body=rows.run_text(run),
                        started_at=_now(),
                        ended_at=_now() if run.status.terminal else "",
                    )
                )
        except IntegrityError:
            other = self.open_run_of(run.router)
            if other is None or other.id == run.id:
                raise
            raise RefusedError(
                "run-in-progress",
                f"router {run.router} has run {other.id} ({other.kind.value}) in progress",
                f"Wait for it: vrha run show {other.id}",
            ) from None
        self._save_steps(run)

    def save_run(self, run: Run) -> None:
        """Write the run and those of its steps that changed.

        Raises NotFoundError; RefusedError (`run-ended`) when that would leave a terminal
        status (I3).
        """
        table = schema.runs
        row = self._db.execute(select(table).where(table.c.id == run.id)).first()
        if row is None:
            raise NotFoundError("no-run", f"no run {run.id}")
        was = codec.decode(Run, row.body).status
        if was.terminal and run.status is not was:
            raise RefusedError(
                "run-ended", f"run {run.id} is {was.value} and cannot become {run.status.value}"
            )
        ended_at = row.ended_at or (_now() if run.status.terminal else "")
        self._db.execute(
            update(table)
            .where(table.c.id == run.id)
            .values(
                terminal=run.status.terminal,
                deadline=rows.deadline_of(run),
                body=rows.run_text(run),
                ended_at=ended_at,
            )
        )
        self._save_steps(run)
        if run.status.terminal and not was.terminal:
            self._forget_runs()

    def run(self, run_id: str) -> Run | None:
        found = self._runs(schema.runs.c.id == run_id)
        return found[0][0] if found else None

    def run_times(self, run_id: str) -> RunTimes | None:
        found = self._runs(schema.runs.c.id == run_id)
        return found[0][1] if found else None

    def open_runs(self) -> tuple[Run, ...]:
        """Runs that have not ended, oldest first."""
        found = self._runs(schema.runs.c.terminal.is_(False))
        return tuple(run for run, _ in reversed(found))

    def overdue_runs(self, now: float) -> tuple[Run, ...]:
        """Open runs with a started step whose deadline has come, oldest first."""
        table = schema.runs
        found = self._runs(and_(table.c.terminal.is_(False), table.c.deadline <= now))
        return tuple(run for run, _ in reversed(found))

    def open_run_briefs(self) -> tuple[tuple[Run, RunTimes], ...]:
        """Runs that have not ended without their steps, oldest first."""
        table = schema.runs
        query = select(table).where(table.c.terminal.is_(False)).order_by(table.c.number)
        return tuple(
            (rows.run_of(row.body, (), ()), RunTimes(row.started_at, row.ended_at))
            for row in self._db.execute(query)
        )

    def open_run_ids(self) -> Mapping[str, str]:
        """The id of the open run by router."""
        table = schema.runs
        query = select(table.c.router, table.c.id).where(table.c.terminal.is_(False))
        return {row.router: row.id for row in self._db.execute(query)}

    def busy(self) -> Mapping[str, str]:
        """As `open_run_ids`, without those of standbys: they give way to any other."""
        table = schema.runs
        found = self._db.execute(select(table).where(table.c.terminal.is_(False)))
        runs = (codec.decode(Run, row.body) for row in found)
        return {run.router: run.id for run in runs if run.kind is not RunKind.STANDBY}

    def open_builds(self) -> frozenset[tuple[str, str]]:
        """Routers with an open run that builds an instance, and the node on which it does."""
        table = schema.runs
        query = select(table.c.router, table.c.builds_on).where(
            table.c.terminal.is_(False), table.c.builds_on != ""
        )
        return frozenset((row.router, row.builds_on) for row in self._db.execute(query))

    def open_run_of(self, router: str) -> Run | None:
        found = self._runs(and_(schema.runs.c.terminal.is_(False), schema.runs.c.router == router))
        return found[0][0] if found else None

    def runs(self, limit: int, open_only: bool = False) -> tuple[tuple[Run, RunTimes], ...]:
        """The newest `limit` runs, newest first."""
        return self._runs(schema.runs.c.terminal.is_(False) if open_only else None, limit)

    def _runs(
        self, where: ColumnElement[bool] | None, limit: int | None = None
    ) -> tuple[tuple[Run, RunTimes], ...]:
        query = select(schema.runs).order_by(schema.runs.c.number.desc()).limit(limit)
        if where is not None:
            query = query.where(where)
        return tuple(
            (
                rows.run_of(row.body, self._records(row.id, False), self._records(row.id, True)),
                RunTimes(row.started_at, row.ended_at),
            )
            for row in self._db.execute(query).all()
        )

    def _records(self, run_id: str, undo: bool) -> tuple[StepRecord, ...]:
        table = schema.steps
        query = (
            select(table)
            .where(table.c.run_id == run_id, table.c.undo.is_(undo))
            .order_by(table.c.seq)
        )
        return tuple(
            self._memory.record(row.seq, row.step, row.progress) for row in self._db.execute(query)
        )

    def _save_steps(self, run: Run) -> None:
        claims.save(self._db, run)
        for undo, records in ((False, run.steps), (True, run.undo)):
            saved = {record.seq: record for record in self._records(run.id, undo)}
            for record in records:
                self._save_step(run.id, undo, record, saved.pop(record.seq, None))
            if saved:
                table = schema.steps
                self._db.execute(
                    delete(table).where(
                        table.c.run_id == run.id, table.c.undo.is_(undo), table.c.seq.in_(saved)
                    )
                )

    def _save_step(
        self, run_id: str, undo: bool, record: StepRecord, saved: StepRecord | None
    ) -> None:
        if record == saved:
            return
        table = schema.steps
        values: dict[str, Any] = {"progress": rows.progress_text(record)}
        if saved is None or saved.step != record.step:
            values["step"] = self._memory.step_text(record.step)
        if saved is None:
            values |= {"run_id": run_id, "undo": undo, "seq": record.seq}
            self._db.execute(insert(table).values(values))
            return
        self._db.execute(
            update(table)
            .where(table.c.run_id == run_id, table.c.undo.is_(undo), table.c.seq == record.seq)
            .values(values)
        )

    def _forget_runs(self) -> None:
        table = schema.runs
        ended = (
            select(table.c.number, table.c.id)
            .where(table.c.terminal.is_(True))
            .order_by(table.c.number.desc())
            .offset(KEPT_RUNS)
            .limit(KEPT_RUNS)
        )
        old = [row.id for row in self._db.execute(ended)]
        if not old:
            return
        for part in (schema.steps, schema.timings, schema.evidence, schema.check_ins):
            self._db.execute(delete(part).where(part.c.run_id.in_(old)))
        self.reports.forget(old)
        self._db.execute(delete(table).where(table.c.id.in_(old)))

    def add_step_timings(self, run_id: str, seq: int, undo: bool, timings: Timings) -> None:
        """Keep what a step reported of its phases (ms); a later attempt replaces it."""
        table = schema.timings
        where = and_(table.c.run_id == run_id, table.c.undo.is_(undo), table.c.seq == seq)
        body = codec.encode(timings, Timings).decode()
        self._upsert(table, where, {"run_id": run_id, "undo": undo, "seq": seq, "timings": body})

    def step_timings(self, run_id: str) -> Mapping[tuple[int, bool], Timings]:
        """Phases and milliseconds by (seq, undo)."""
        table = schema.timings
        found = self._db.execute(select(table).where(table.c.run_id == run_id))
        return {(row.seq, row.undo): codec.decode(Timings, row.timings) for row in found}

    def add_step_evidence(self, run_id: str, seq: int, undo: bool, evidence: Evidence) -> None:
        """Keep what a step carried and measured; a later attempt replaces it."""
        table = schema.evidence
        where = and_(table.c.run_id == run_id, table.c.undo.is_(undo), table.c.seq == seq)
        body = codec.encode(evidence).decode()
        self._upsert(table, where, {"run_id": run_id, "undo": undo, "seq": seq, "evidence": body})

    def step_evidence(self, run_id: str) -> Mapping[tuple[int, bool], Evidence]:
        """What steps carried and measured, by (seq, undo)."""
        table = schema.evidence
        found = self._db.execute(select(table).where(table.c.run_id == run_id))
        return {(row.seq, row.undo): codec.decode(Evidence, row.evidence) for row in found}

    # Check-ins

    def expect_check_in(self, run_id: str, token_hash: str) -> None:
        """From now on only the token with this hash is accepted, once."""
        table = schema.check_ins
        self._upsert(
            table,
            table.c.run_id == run_id,
            {"run_id": run_id, "token_hash": token_hash, "used": False},
        )

    def consume_check_in(self, run_id: str, token_hash: str) -> bool:
        """Use the token up. True exactly once, and only for the token expected last."""
        table = schema.check_ins
        expected = self._db.execute(
            select(table.c.token_hash).where(table.c.run_id == run_id)
        ).scalar()
        if expected is None or not hmac.compare_digest(expected.encode(), token_hash.encode()):
            return False
        done = self._db.execute(
            update(table).where(table.c.run_id == run_id, table.c.used.is_(False)).values(used=True)
        )
        return done.rowcount == 1

    # Nodes

    def node_seen(self, inventory: Inventory, at: float) -> None:
        """Keep a node's newest inventory, heard `at` (seconds, Unix time)."""
        table = schema.nodes
        self._upsert(
            table,
            table.c.name == inventory.node,
            {
                "name": inventory.node,
                "inventory": codec.encode(inventory).decode(),
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
        return tuple(_node_state(row) for row in found)

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
        query = insert(schema.events).values(values | {"node": node, "detail": detail})
        new = int(self._db.execute(query.returning(schema.events.c.id)).scalar_one())
        if new % 1000 == 0:
            self._db.execute(delete(schema.events).where(schema.events.c.id <= new - KEPT_EVENTS))

    def events(self, after: int = 0, limit: int = 200) -> tuple[Event, ...]:
        """Events with an id above `after`, oldest first."""
        table = schema.events
        query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
        return tuple(Event(**row._mapping) for row in self._db.execute(query))

    def events_about(self, column: str, name: str, limit: int) -> tuple[Event, ...]:
        """The newest events of a `node` or `router` (the column), newest first."""
        table = schema.events
        query = select(table).where(table.c[column] == name).order_by(table.c.id.desc())
        return tuple(Event(**row._mapping) for row in self._db.execute(query.limit(limit)))

    # Ownership

    def book(self, first: Electorate) -> Book:
        """Who may have what active; `first` votes where nobody ever did."""
        return rights.read(self._db, first)

    def claimants(self) -> tuple[Claimant, ...]:
        """What rights open runs need."""
        return claims.read(self._db)

    def commit_rights(self, commit: Commit) -> None:
        """Raises RefusedError `epoch-behind`."""
        rights.apply(self._db, commit)

    def _upsert(self, table: Table, where: ColumnElement[bool], values: dict[str, Any]) -> None:
        if not self._db.execute(update(table).where(where).values(values)).rowcount:
            self._db.execute(insert(table).values(values))


def _node_state(row: Any) -> NodeState:
    inventory = codec.decode(Inventory, row.inventory)
    return NodeState(
        name=inventory.node,
        agent=inventory.agent,
        version=inventory.version,
        capabilities=inventory.capabilities,
        instances=inventory.instances,
        seen_at=row.seen_at,
        highest_epochs=inventory.highest_epochs,
        sync_address=inventory.sync_address,
        certificate=inventory.certificate,
        uplinks=inventory.uplinks,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
