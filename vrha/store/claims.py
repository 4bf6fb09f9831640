"""What rights open runs need: a small row of each, read ten times a second."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from vrha.core.ownership.wanted import Claim, Claimant, claimant_of
from vrha.model.runs import Run
from vrha.model.spec import InstanceRef
from vrha.store import schema

_CLAIMS = schema.claims


def save(connection: Connection, run: Run) -> None:
    """Keep what the run needs now; nothing once it has ended."""
    connection.execute(delete(_CLAIMS).where(_CLAIMS.c.run_id == run.id))
    claimant = None if run.status.terminal else claimant_of(run)
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
    return tuple(
        Claimant(row.run_id, InstanceRef(row.router, row.generation), row.node, Claim(row.claim))
        for row in found
    )
