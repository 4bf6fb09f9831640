"""What is remembered of nodes that fell silent, as rows and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, select

from vrha.model.health import NodeHealth
from vrha.store import schema


class NodeHealths:
    """Reads and writes of one transaction; `Tx.node_health`."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def put(self, health: NodeHealth) -> None:
        """Keep it; it replaces what was kept of that node."""
        table = schema.node_health
        self._db.execute(delete(table).where(table.c.node == health.node))
        self._db.execute(insert(table).values(asdict(health)))

    def all(self) -> Mapping[str, NodeHealth]:
        """By node; those that never fell silent are missing."""
        found = self._db.execute(select(schema.node_health))
        return {row.node: NodeHealth(**row._mapping) for row in found}
