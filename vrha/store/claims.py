"""What rights open runs need: a small row of each, read ten times a second."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from vrha.core.ownership.wanted import Claim, Claimant, claimant_of
from vrha.model.runs import Run
from vrha.model.spec import InstanceRef
from vrha.store import schema
from vrha.store.pending import Pending

_CLAIMS = schema.claims
_ALL = select(_CLAIMS).order_by(_CLAIMS.c.router)


def save(pending: Pending, saved: Run | None, run: Run) -> None:
    """Keep what the run needs now; nothing once it has ended. `saved`: as it was kept before."""
    claimant = _of(run)
    if claimant == _of(saved):
        return
    values = None
    if claimant is not None:
        values = {
            "router": claimant.instance.router,
            "generation": claimant.instance.generation,
            "node": claimant.node,
            "claim": claimant.claim.value,
        }
    pending.put(_CLAIMS, {"run_id": run.id}, values)


def _of(run: Run | None) -> Claimant | None:
    return None if run is None or run.status.terminal else claimant_of(run)


def read(connection: Connection) -> tuple[Claimant, ...]:
    """Of all open runs, by router."""
    return tuple(_claimant(row) for row in connection.execute(_ALL))


def _claimant(row: Any) -> Claimant:
    run, router, generation, node, claim = row
    return Claimant(run, InstanceRef(router, generation), node, Claim(claim))
