"""Rollouts, their members, and nodes that take no new instances, as rows and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from vrha import codec
from vrha.model.rollouts import Member, MemberStatus, Rollout
from vrha.model.runs import Strategy
from vrha.store import schema
from vrha.store.rows import RunTimes

KEPT_ROLLOUTS = 100
"""Ended rollouts beyond this number are forgotten, oldest first."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How many members of a rollout are in which status, and what their runs lost in all."""

    counts: Mapping[MemberStatus, int]
    lost: int


class Rollouts:
    """Reads and writes of one transaction; `Tx.rollouts`."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def add(self, rollout: Rollout, members: Sequence[Member]) -> None:
        """Journal a new rollout; its members are kept in this order."""
        table = schema.rollouts
        values = _values(rollout) | {"id": rollout.id, "started_at": _now(), "ended_at": ""}
        self._db.execute(insert(table).values(values))
        rows = [
            {"rollout": rollout.id, "place": place, **asdict(member)}
            for place, member in enumerate(members)
        ]
        if rows:
            self._db.execute(insert(schema.members), rows)
        self._forget()

    def save(self, rollout: Rollout) -> None:
        """Write all of the rollout but its members."""
        table = schema.rollouts
        ended_at = "" if rollout.status.open else _now()
        self._db.execute(
            update(table)
            .where(table.c.id == rollout.id)
            .values(_values(rollout) | {"ended_at": ended_at})
        )

    def save_member(self, rollout_id: str, member: Member) -> None:
        """Write what has become of one router of the rollout."""
        table = schema.members
        where = (table.c.rollout == rollout_id, table.c.router == member.router)
        self._db.execute(update(table).where(*where).values(asdict(member)))

    def get(self, rollout_id: str) -> tuple[Rollout, RunTimes] | None:
        """The rollout, and when it started and ended; None when there is none of that id."""
        table = schema.rollouts
        row = self._db.execute(select(table).where(table.c.id == rollout_id)).first()
        return None if row is None else _rollout(row)

    def open(self) -> tuple[Rollout, ...]:
        """Rollouts that have not ended, oldest first."""
        table = schema.rollouts
        query = select(table).where(table.c.open.is_(True)).order_by(table.c.number)
        return tuple(_rollout(row)[0] for row in self._db.execute(query))

    def newest(self, limit: int) -> tuple[tuple[Rollout, RunTimes], ...]:
        """The newest `limit` rollouts, newest first."""
        table = schema.rollouts
        query = select(table).order_by(table.c.number.desc()).limit(limit)
        return tuple(_rollout(row) for row in self._db.execute(query))

    def members(self, rollout_id: str) -> tuple[Member, ...]:
        """The members in the order of their turns."""
        table = schema.members
        query = select(table).where(table.c.rollout == rollout_id).order_by(table.c.place)
        return tuple(_member(row) for row in self._db.execute(query))

    def tally(self, rollout_id: str) -> Tally:
        """The members counted."""
        table = schema.members
        query = (
            select(table.c.status, func.count(), func.coalesce(func.sum(table.c.lost), 0))
            .where(table.c.rollout == rollout_id)
            .group_by(table.c.status)
        )
        rows = self._db.execute(query).all()
        counts = {MemberStatus(status): int(count) for status, count, _ in rows}
        return Tally(counts, sum(int(lost) for _, _, lost in rows))

    def holding(self, routers: Collection[str]) -> tuple[str, str] | None:
        """An open rollout (its id) with one of `routers` (its name) in it."""
        members, rollouts = schema.members, schema.rollouts
        query = (
            select(members.c.rollout, members.c.router)
            .join(rollouts, rollouts.c.id == members.c.rollout)
            .where(rollouts.c.open.is_(True))
            .order_by(rollouts.c.number, members.c.place)
        )
        wanted = frozenset(routers)
        found = (row for row in self._db.execute(query) if row.router in wanted)
        row = next(found, None)
        return None if row is None else (row.rollout, row.router)

    def _forget(self) -> None:
        table = schema.rollouts
        ended = (
            select(table.c.id)
            .where(table.c.open.is_(False))
            .order_by(table.c.number.desc())
            .offset(KEPT_ROLLOUTS)
            .limit(KEPT_ROLLOUTS)
        )
        old = list(self._db.execute(ended).scalars())
        if old:
            self._db.execute(delete(schema.members).where(schema.members.c.rollout.in_(old)))
            self._db.execute(delete(table).where(table.c.id.in_(old)))

    # Nodes that take no new instances

    def cordon(self, node: str) -> None:
        """From now on the node takes no new instances."""
        if node not in self.cordoned():
            self._db.execute(insert(schema.cordons).values(node=node, since=_now()))

    def uncordon(self, node: str) -> None:
        """From now on the node takes instances again."""
        self._db.execute(delete(schema.cordons).where(schema.cordons.c.node == node))

    def cordoned(self) -> frozenset[str]:
        """Nodes that take no new instances."""
        return frozenset(self._db.execute(select(schema.cordons.c.node)).scalars())


def _values(rollout: Rollout) -> dict[str, Any]:
    return {"open": rollout.status.open, "body": codec.encode(rollout).decode()}


def _rollout(row: Any) -> tuple[Rollout, RunTimes]:
    return codec.decode(Rollout, row.body), RunTimes(row.started_at, row.ended_at)


def _member(row: Any) -> Member:
    # 500 of them are read at every turn: as columns, without a decoder.
    _, _, router, status, round_, run, strategy, *rest = row
    known = None if strategy is None else Strategy(strategy)
    return Member(router, MemberStatus(status), round_, run, known, *rest)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
