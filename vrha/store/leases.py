"""The DHCP leases of the routers, as the lease files of their instances say."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, delete, func, insert, select

from vrha.model.messages import Leases
from vrha.model.spec import InstanceRef
from vrha.store import schema

_LEASES = schema.leases
_OF = select(_LEASES).where(_LEASES.c.router == bindparam("of")).order_by(_LEASES.c.place.desc())


class LeaseFiles:
    """Reads and writes of one transaction; `Tx.leases`."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    def put(self, message: Leases) -> bool:
        """Keep them instead of older ones of this instance; False when these are the older ones.

        An agent that has started again counts anew.
        """
        ref = message.instance
        mine = (_LEASES.c.router == ref.router, _LEASES.c.generation == ref.generation)
        kept = self._db.execute(select(_LEASES).where(*mine)).first()
        if kept is not None:
            again = kept.agent == message.agent and message.number <= kept.number
            if again or message.epoch < kept.epoch:
                return False
            self._db.execute(delete(_LEASES).where(*mine))
        last = select(func.max(_LEASES.c.place)).where(_LEASES.c.router == ref.router)
        self._db.execute(
            insert(_LEASES).values(
                router=ref.router,
                generation=ref.generation,
                place=(self._db.execute(last).scalar() or 0) + 1,
                epoch=message.epoch,
                agent=message.agent,
                number=message.number,
                body=message.body,
            )
        )
        return True

    def of(self, router: str, active: InstanceRef | None) -> str:
        """Those of the instance that serves, else those told last by another; empty: none."""
        found = self._db.execute(_OF, {"of": router}).all()
        ours = [row for row in found if active and row.generation == active.generation]
        return str((ours or found)[0].body) if found else ""

    def forget(self, router: str, before: int | None = None) -> None:
        """Forget those of instances below generation `before`, else all of the router."""
        older = () if before is None else (_LEASES.c.generation < before,)
        self._db.execute(delete(_LEASES).where(_LEASES.c.router == router, *older))
