"""What rights open runs need: a small row of each, read ten times a second."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, insert, select

from vrha.core.ownership.wanted import Claim, Claimant, claimant_of
from vrha.model.runs import Run
from vrha.model.spec import InstanceRef
from vrha.store import schema

_CLAIMS = schema.claims


def save(connection: Connection, run: Run) -> None:
    """Keep what the run needs now; nothing once it has ended."""
    claimant = None if run.status.terminal else claimant_of(run)
    mine = _CLAIMS.c.run_id == run.id
    row = connection.execute(select(_CLAIMS).where(mine)).first()
    if claimant == (_claimant(row) if row else None):
        return
    connection.execute(delete(_CLAIMS).where(mine))
    if claimant is not None:
        connection.execute(
            insert(_CLAIMS).values(
                run_id=run.id,
                router=claimant.instance.router,
                generation=claimant.instance.generation,
                node=claimant.node,
                claim=claimant.claim.value,
            )
        )


def read(connection: Connection) -> tuple[Claimant, ...]:
    """Of all open runs, by router."""
    found = connection.execute(select(_CLAIMS).order_by(_CLAIMS.c.router))
    return tuple(_claimant(row) for row in found)


def _claimant(row: Any) -> Claimant:
    instance = InstanceRef(row.router, row.generation)
    return Claimant(row.run_id, instance, row.node, Claim(row.claim))
