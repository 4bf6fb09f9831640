"""Who may have which instance active, in the transaction of whoever asks."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from vrha.core.ownership.book import Book
from vrha.core.ownership.commands import Commit, Right
from vrha.errors import RefusedError
from vrha.model.ownership import Electorate
from vrha.store import schema

_RIGHTS, _INCARNATIONS, _ELECTORATES = schema.rights, schema.incarnations, schema.electorates


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
    for right in commit.rights:
        _raise_epoch(connection, right)
        connection.execute(delete(_RIGHTS).where(_RIGHTS.c.router == right.router))
        if right.node:
            values = {"router": right.router, "node": right.node, "epoch": right.epoch}
            connection.execute(insert(_RIGHTS).values({**values, "leaving": right.leaving}))
    for node, incarnation in commit.incarnations:
        connection.execute(delete(_INCARNATIONS).where(_INCARNATIONS.c.node == node))
        connection.execute(insert(_INCARNATIONS).values(node=node, incarnation=str(incarnation)))
    if commit.electorates:
        connection.execute(delete(_ELECTORATES))
        for each in commit.electorates:
            voters = " ".join(each.voters)
            connection.execute(insert(_ELECTORATES).values(version=each.version, voters=voters))


def _raise_epoch(connection: Connection, right: Right) -> None:
    """The epochs of a router are of one row, whoever raises them: runs, or changes of owner."""
    table = schema.routers
    last = connection.execute(select(table.c.epoch).where(table.c.router == right.owned)).scalar()
    before = connection.execute(
        select(_RIGHTS.c.epoch).where(_RIGHTS.c.router == right.router)
    ).scalar()
    if right.epoch < (before or 0):
        raise RefusedError(
            "epoch-behind",
            f"router {right.owned}: epoch {right.epoch} is behind {before}, which was handed out",
        )
    if last is not None and right.epoch > last:
        connection.execute(
            update(table).where(table.c.router == right.owned).values(epoch=right.epoch)
        )
