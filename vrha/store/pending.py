"""Rows that a transaction writes at its end: many by one statement, and not each by its own.

What is read meanwhile must see them: whoever reads a table has its rows written first.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, Delete, Table, and_, bindparam, delete, insert

Row = dict[str, Any]


@cache
def delete_by(table: Table, *columns: str) -> Delete:
    """Deletes the rows whose columns equal the parameters `by_COLUMN`."""
    return delete(table).where(
        and_(*(table.c[name] == bindparam(f"by_{name}") for name in columns))
    )


class Pending:
    """Of one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection
        self._added: dict[Table, list[Row]] = {}
        self._put: dict[Table, dict[Hashable, tuple[Row, Row | None]]] = {}

    def add(self, table: Table, row: Row) -> None:
        """One row more; rows of a table are written in the order in which they were added."""
        self._added.setdefault(table, []).append(row)

    def put(self, table: Table, key: Mapping[str, Any], values: Row | None) -> None:
        """The row with this key in place of the one there is, if any; None: no row any more."""
        by = {f"by_{name}": value for name, value in key.items()}
        row = None if values is None else {**key, **values}
        self._put.setdefault(table, {})[tuple(key.values())] = (by, row)

    def write(self, table: Table) -> int:
        """Write what waits for that table; how many rows were added."""
        put = list(self._put.pop(table, {}).values())
        if put:
            columns = [name.removeprefix("by_") for name in put[0][0]]
            self._db.execute(delete_by(table, *columns), [by for by, _ in put])
        added = self._added.pop(table, [])
        rows = [row for _, row in put if row is not None] + added
        if rows:
            self._db.execute(insert(table), rows)
        return len(added)

    def write_all(self) -> None:
        """Write all that waits."""
        for table in [*self._put, *self._added]:
            self.write(table)
