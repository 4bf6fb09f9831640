"""The leader's row, in the transaction of whoever asks."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from vrha.core.leadership import Lead
from vrha.store import schema

_ROW = schema.leader


def read(connection: Connection) -> Lead:
    """Who leads."""
    row = connection.execute(select(_ROW.c.holder, _ROW.c.epoch, _ROW.c.beat)).one()
    return Lead(row.holder, row.epoch, row.beat)


def take(connection: Connection, holder: str, seen: Lead) -> int | None:
    """Make `holder` the leader if the row still is what was `seen`; the new epoch."""
    unchanged = (_ROW.c.epoch == seen.epoch, _ROW.c.beat == seen.beat)
    epoch = seen.epoch + 1
    # The beat goes on: no two states of the row are ever alike.
    values = {"holder": holder, "epoch": epoch, "beat": seen.beat + 1}
    done = connection.execute(update(_ROW).where(*unchanged).values(values))
    return epoch if done.rowcount == 1 else None


def beat(connection: Connection, epoch: int) -> None:
    """Show that the leader of `epoch` lives."""
    mine = _ROW.c.epoch == epoch
    connection.execute(update(_ROW).where(mine).values(beat=_ROW.c.beat + 1))


def give_up(connection: Connection, epoch: int) -> None:
    """Let the next one take over at once; the epoch stays, so that it will be higher."""
    mine = _ROW.c.epoch == epoch
    connection.execute(update(_ROW).where(mine).values(holder="", beat=_ROW.c.beat + 1))
