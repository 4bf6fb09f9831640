"""Who may have which instance active, in the transaction of whoever asks."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Table, bindparam, delete, insert, select, update

from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Commit, Right
from vrha.errors import RefusedError
from vrha.model.ownership import Electorate
from vrha.store import schema
from vrha.store.pending import delete_by

_RIGHTS, _INCARNATIONS, _ELECTORATES = schema.rights, schema.incarnations, schema.electorates
_RAISE = (
    update(schema.routers)
    .where(schema.routers.c.router == bindparam("by_router"))
    .values(epoch=bindparam("epoch"))
)
_AT_ONCE = 500
"""Rights of one statement."""


def read(connection: Connection, first: Electorate) -> Book:
    """All of it; `first` when nobody ever voted here."""
    rights = [
        Right(row.router, row.node, row.epoch, row.leaving)
        for row in connection.execute(select(_RIGHTS))
    ]
    votes = connection.execute(select(_ELECTORATES).order_by(_ELECTORATES.c.version))
    electorates = tuple(Electorate(row.version, tuple(row.voters.split())) for row in votes)
    lives = connection.execute(select(_INCARNATIONS))
    epochs = connection.execute(select(schema.routers.c.router, schema.routers.c.epoch))
    return Book(
        electorates or (first,),
        {right.router: right for right in rights},
        {row.node: int(row.incarnation) for row in lives},
        {row.router: row.epoch for row in epochs},
    )


def apply(connection: Connection, commit: Commit) -> None:
    """Write it. Raises RefusedError `epoch-behind` where an epoch would go back."""
    for start in range(0, len(commit.rights), _AT_ONCE):
        _put(connection, commit.rights[start : start + _AT_ONCE])
    for node, incarnation in commit.incarnations:
        connection.execute(delete(_INCARNATIONS).where(_INCARNATIONS.c.node == node))
        connection.execute(insert(_INCARNATIONS).values(node=node, incarnation=str(incarnation)))
    if commit.electorates:
        connection.execute(delete(_ELECTORATES))
        for each in commit.electorates:
            voters = " ".join(each.voters)
            connection.execute(insert(_ELECTORATES).values(version=each.version, voters=voters))


def _put(connection: Connection, changed: Sequence[Right]) -> None:
    _raise_epochs(connection, changed)
    # Of several for one instance the last one counts.
    last = {right.router: right for right in changed}
    connection.execute(delete_by(_RIGHTS, "router"), [{"by_router": key} for key in last])
    kept = [
        {"router": key, "node": right.node, "epoch": right.epoch, "leaving": right.leaving}
        for key, right in last.items()
        if right.node
    ]
    if kept:
        connection.execute(insert(_RIGHTS), kept)


def _raise_epochs(connection: Connection, changed: Sequence[Right]) -> None:
    """The epochs of a router are of one row, whoever raises them: runs, or changes of owner."""
    last = _epochs(connection, schema.routers, [right.owned for right in changed])
    before = _epochs(connection, _RIGHTS, [right.router for right in changed])
    raised: dict[str, int] = {}
    for right in changed:
        if right.epoch < before.get(right.router, 0):
            raise RefusedError(
                "epoch-behind",
                f"router {right.owned}: epoch {right.epoch} is behind {before[right.router]}, "
                "which was handed out",
            )
        before[right.router] = right.epoch
        if right.epoch > last.get(right.owned, right.epoch):
            raised[right.owned] = last[right.owned] = right.epoch
    if raised:
        rows = [{"by_router": router, "epoch": epoch} for router, epoch in raised.items()]
        connection.execute(_RAISE, rows)


def _epochs(connection: Connection, table: Table, names: Sequence[str]) -> dict[str, int]:
    query = select(table.c.router, table.c.epoch).where(table.c.router.in_(set(names)))
    return {row.router: row.epoch for row in connection.execute(query)}
