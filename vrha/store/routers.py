"""States of the routers: read and changed in memory, written when the transaction ends."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, delete, insert, null, select, update

from vrha.errors import RefusedError
from vrha.model.state import RouterState
from vrha.store import rows, schema
from vrha.store.pending import Pending, Row

_ROUTERS, _STANDBYS = schema.routers, schema.standbys
_WITH_STANDBYS = _ROUTERS.outerjoin(_STANDBYS, _ROUTERS.c.router == _STANDBYS.c.router)
_ALL = select(
    _ROUTERS, _STANDBYS.c.standby, _STANDBYS.c.standby_node, _STANDBYS.c.standby_spec
).select_from(_WITH_STANDBYS)
_ONE = _ALL.where(_ROUTERS.c.router == bindparam("router"))
_STATES = _ALL.where(_ROUTERS.c.dropped.is_(False)).order_by(_ROUTERS.c.router)
_BRIEFS = (
    select(
        *(column for column in _ROUTERS.c if column is not _ROUTERS.c.applied),
        _STANDBYS.c.standby,
        _STANDBYS.c.standby_node,
        null().label("applied"),
        null().label("standby_spec"),
    )
    .select_from(_WITH_STANDBYS)
    .where(_ROUTERS.c.dropped.is_(False))
    .order_by(_ROUTERS.c.router)
)
_BRIEF = ("epoch", "generation", "node", "active", "failed", "dropped")
_UPDATE = (
    update(_ROUTERS)
    .where(_ROUTERS.c.router == bindparam("by_router"))
    .values({name: bindparam(name) for name in _BRIEF})
)
_UPDATE_ALL = _UPDATE.values(applied=bindparam("applied"))


class Routers:
    """Reads and writes of one transaction."""

    def __init__(self, connection: Connection, memory: rows.Memory, pending: Pending) -> None:
        self._db = connection
        self._memory = memory
        self._pending = pending
        self._states_read: dict[str, RouterState | None] = {}
        self._states_changed: dict[str, RouterState] = {}

    def router_state(self, router: str) -> RouterState | None:
        """State of a router; None when there never was one of that name.

        Of a dropped router only `epoch` and `generation` are left: they go on from there.
        """
        if router in self._states_changed:
            return self._states_changed[router]
        if router not in self._states_read:
            row = self._db.execute(_ONE, {"router": router}).first()
            self._states_read[router] = None if row is None else self._memory.router_state(row)
        return self._states_read[router]

    def read_states(self, routers: Iterable[str]) -> None:
        """Read all of these at once: `router_state` then asks nobody."""
        known = self._states_changed.keys() | self._states_read.keys()
        missing = [router for router in dict.fromkeys(routers) if router not in known]
        if not missing:
            return
        self._states_read |= dict.fromkeys(missing)
        for row in self._db.execute(_ALL.where(_ROUTERS.c.router.in_(missing))):
            self._states_read[row.router] = self._memory.router_state(row)

    def router_states(self) -> tuple[RouterState, ...]:
        """States of all routers that were not dropped, by name."""
        self.write_routers()
        return tuple(self._memory.router_state(row) for row in self._db.execute(_STATES))

    def router_briefs(self) -> tuple[RouterState, ...]:
        """As `router_states`, without `applied` and `standby_spec`: they may be large."""
        self.write_routers()
        return tuple(self._memory.router_state(row) for row in self._db.execute(_BRIEFS))

    def put_router_state(self, state: RouterState) -> None:
        """Save `state`. Raises RefusedError (`epoch-behind`) where it would go back (I6)."""
        last = self.router_state(state.router)
        if last and (state.epoch < last.epoch or state.generation < last.generation):
            raise RefusedError(
                "epoch-behind",
                f"router {state.router}: epoch {state.epoch}, generation {state.generation} are "
                f"behind {last.epoch}, {last.generation}, which were handed out before",
            )
        self._states_changed[state.router] = state

    def forget_states(self) -> None:
        """Somebody else has written, or will: what is known is written, and read again."""
        self.write_routers()
        self._states_read.clear()

    def drop_router_row(self, router: str) -> None:
        """Leave only the last epoch and generation."""
        self.forget_states()
        self._db.execute(
            update(_ROUTERS)
            .where(_ROUTERS.c.router == router)
            .values(dropped=True, node="", active=None, applied=None, failed="")
        )
        self._db.execute(delete(_STANDBYS).where(_STANDBYS.c.router == router))

    def write_routers(self) -> None:
        """Write what has changed."""
        if not self._states_changed:
            return
        new: list[Row] = []
        brief: list[Row] = []
        whole: list[Row] = []
        for state in self._states_changed.values():
            was = self._states_read[state.router]
            if was is None:
                new.append(rows.router_values(state) | self._applied(state))
            elif was.applied is state.applied:
                brief.append(_by(rows.router_values(state)))
            else:
                whole.append(_by(rows.router_values(state) | self._applied(state)))
            self._put_standby(was, state)
        for statement, parameters in (
            (insert(_ROUTERS), new),
            (_UPDATE, brief),
            (_UPDATE_ALL, whole),
        ):
            if parameters:
                self._db.execute(statement, parameters)
        self._pending.write(_STANDBYS)
        self._states_read |= self._states_changed
        self._states_changed.clear()

    def _put_standby(self, was: RouterState | None, state: RouterState) -> None:
        if was is not None and _stands_by(was) == _stands_by(state):
            return
        values: Row | None = None
        if state.standby is not None and state.standby_spec is not None:
            values = {
                "standby": state.standby.generation,
                "standby_node": state.standby_node,
                "standby_spec": self._memory.spec_text(state.standby_spec),
            }
        self._pending.put(_STANDBYS, {"router": state.router}, values)

    def _applied(self, state: RouterState) -> Row:
        return {"applied": self._memory.spec_text(state.applied) if state.applied else None}


def _stands_by(state: RouterState) -> tuple[object, ...]:
    return state.standby, state.standby_node, state.standby_spec


def _by(values: Row) -> Row:
    router = values.pop("router")
    return values | {"by_router": router}
