"""Tables of the store, and the version of their layout.

SQL that SQLite (3.34 or newer) and PostgreSQL both understand; what differs stands in
`vrha.store.engine`. Values that are only read as a whole are kept as JSON of `vrha.codec`.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.types import TypeEngine

from vrha.errors import PreconditionError

SCHEMA_VERSION = 4
"""1: without `evidence`, `begins`, `measurements`, rollouts and cordons. 2: without `leader`.
3: without `claims`, `standbys`, `pauses`, `node_health` and `leases`."""


class Words(TypeDecorator[str]):
    """Text of people and nodes, about `length` characters long.

    As it is in SQLite, which bounds no length and takes every character, so that no message of a
    node is poison for PostgreSQL alone. That one takes no NUL: it and its escape are escaped.
    """

    impl = String
    cache_ok = True
    _ESCAPE = "\x1a"

    def __init__(self, length: int | None = None) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        bounded = self.length is not None and dialect.name != "postgresql"
        return dialect.type_descriptor(String(self.length) if bounded else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        # Half of a surrogate pair has no UTF-8.
        value = value.encode(errors="replace").decode()
        if dialect.name != "postgresql":
            return value
        escape = self._ESCAPE
        return value.replace(escape, f"{escape}1").replace("\0", f"{escape}0")

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or dialect.name != "postgresql":
            return value
        escape = self._ESCAPE
        return value.replace(f"{escape}0", "\0").replace(f"{escape}1", escape)


_INT = Integer().with_variant(BigInteger(), "postgresql")
"""SQLite's are of 8 bytes, and its ids must have this very name."""

metadata = MetaData()

schema_version = Table("vrha_schema", metadata, Column("version", _INT, primary_key=True))

desired = Table(
    "desired",
    metadata,
    Column("version", _INT, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("applied_at", Words(32), nullable=False),
)

routers = Table(
    "routers",
    metadata,
    Column("router", Words(64), primary_key=True),
    Column("epoch", _INT, nullable=False),
    Column("generation", _INT, nullable=False),
    Column("node", Words(64), nullable=False),
    Column("active", _INT),
    Column("applied", Text),
    Column("failed", Words(), nullable=False),
    # The row of a removed router stays: epochs are never handed out twice (I6).
    Column("dropped", Boolean, nullable=False),
)

standbys = Table(
    "standbys",
    metadata,
    Column("router", Words(64), primary_key=True),
    Column("standby", _INT, nullable=False),
    Column("standby_node", Words(64), nullable=False),
    Column("standby_spec", Text, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("number", _INT, primary_key=True, autoincrement=True),
    Column("id", Words(64), nullable=False, unique=True),
    Column("router", Words(64), nullable=False),
    Column("terminal", Boolean, nullable=False),
    # The earliest deadline of its started steps: time passes without reading steps.
    Column("deadline", Float(53)),
    Column("builds_on", Words(64), nullable=False),
    # Everything of the run but its steps.
    Column("body", Text, nullable=False),
    Column("started_at", Words(32), nullable=False),
    Column("ended_at", Words(32), nullable=False),
    sqlite_autoincrement=True,
)

ONE_OPEN_RUN = Index(
    "one_open_run_per_router",
    runs.c.router,
    unique=True,
    sqlite_where=text("terminal = 0"),
    postgresql_where=text("NOT terminal"),
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", Words(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", _INT, primary_key=True, autoincrement=False),
    # The step itself: large (a build carries its whole instance) and hardly ever rewritten.
    Column("step", Text, nullable=False),
    # The rest of the record: small and rewritten at every change of its status.
    Column("progress", Text, nullable=False),
)

timings = Table(
    "timings",
    metadata,
    Column("run_id", Words(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", _INT, primary_key=True, autoincrement=False),
    Column("timings", Text, nullable=False),
)

evidence = Table(
    "evidence",
    metadata,
    Column("run_id", Words(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", _INT, primary_key=True, autoincrement=False),
    Column("evidence", Text, nullable=False),
)

begins = Table(
    "begins",
    metadata,
    Column("run_id", Words(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", _INT, primary_key=True, autoincrement=False),
    # On the wall clock of the step's node.
    Column("began", Float(53), nullable=False),
)

measurements = Table(
    "measurements",
    metadata,
    Column("run_id", Words(64), primary_key=True),
    Column("body", Text, nullable=False),
)

check_ins = Table(
    "check_ins",
    metadata,
    Column("run_id", Words(64), primary_key=True),
    Column("token_hash", Words(128), nullable=False),
    Column("used", Boolean, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", Words(64), primary_key=True),
    Column("inventory", Text, nullable=False),
    Column("seen_at", Float(53), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _INT, primary_key=True, autoincrement=True),
    Column("node", Words(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    # On the monotonic clock of the orchestrator that wrote it; null: never.
    Column("expires", Float(53)),
    # An id names a message for ever (it is its message id), so it is never given out again.
    sqlite_autoincrement=True,
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("number", _INT, primary_key=True, autoincrement=True),
    Column("id", Words(64), nullable=False, unique=True),
    Column("open", Boolean, nullable=False),
    # Everything of the rollout but its members.
    Column("body", Text, nullable=False),
    Column("started_at", Words(32), nullable=False),
    Column("ended_at", Words(32), nullable=False),
    sqlite_autoincrement=True,
)

members = Table(
    "rollout_members",
    metadata,
    Column("rollout", Words(64), primary_key=True),
    # In the order of their turns.
    Column("place", _INT, primary_key=True, autoincrement=False),
    Column("router", Words(64), nullable=False),
    Column("status", Words(32), nullable=False),
    Column("round", _INT, nullable=False),
    Column("run", Words(64), nullable=False),
    Column("strategy", Words(32)),
    Column("from_node", Words(64), nullable=False),
    Column("to_node", Words(64), nullable=False),
    Column("old", Words(96), nullable=False),
    Column("new", Words(96), nullable=False),
    Column("lost", _INT),
    Column("reason", Words(128), nullable=False),
    Column("detail", Words(), nullable=False),
    Column("started_at", Words(32), nullable=False),
    Column("ended_at", Words(32), nullable=False),
)

cordons = Table(
    "cordons",
    metadata,
    Column("node", Words(64), primary_key=True),
    Column("since", Words(32), nullable=False),
)

pauses = Table(
    "pauses",
    metadata,
    Column("scope", Words(16), primary_key=True),
    # Of the zone, node or router; empty where all of them are meant.
    Column("name", Words(100), primary_key=True),
    Column("since", Words(32), nullable=False),
    Column("by", Words(), nullable=False),
    Column("reason", Words(), nullable=False),
)

node_health = Table(
    "node_health",
    metadata,
    Column("node", Words(64), primary_key=True),
    Column("penalty", Float(53), nullable=False),
    # Unix seconds, as all that follow.
    Column("penalised_at", Float(53), nullable=False),
    Column("suppressed_until", Float(53), nullable=False),
    Column("failed_over_at", Float(53), nullable=False),
    Column("fail_back_until", Float(53), nullable=False),
    Column("away", Boolean, nullable=False),
)

leader = Table(
    "leader",
    metadata,
    # The table has one row.
    Column("one", _INT, primary_key=True, autoincrement=False),
    Column("holder", Words(128), nullable=False),
    Column("epoch", _INT, nullable=False),
    Column("beat", _INT, nullable=False),
)

rights = Table(
    "rights",
    metadata,
    # An instance, as ROUTER/GENERATION.
    Column("router", Words(96), primary_key=True),
    Column("node", Words(64), nullable=False),
    Column("epoch", _INT, nullable=False),
    Column("leaving", Boolean, nullable=False),
)

claims = Table(
    "claims",
    metadata,
    Column("run_id", Words(64), primary_key=True),
    Column("router", Words(64), nullable=False),
    Column("generation", _INT, nullable=False),
    Column("node", Words(64), nullable=False),
    Column("claim", Words(16), nullable=False),
)

incarnations = Table(
    "incarnations",
    metadata,
    Column("node", Words(64), primary_key=True),
    # As text: it has more bits than a signed integer of 64 may come to.
    Column("incarnation", Words(32), nullable=False),
)

electorates = Table(
    "electorates",
    metadata,
    Column("version", _INT, primary_key=True, autoincrement=False),
    Column("voters", Words(), nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("router", Words(64), primary_key=True),
    Column("generation", _INT, primary_key=True, autoincrement=False),
    # In the order in which the instances of the router were heard last.
    Column("place", _INT, nullable=False),
    Column("epoch", _INT, nullable=False),
    Column("agent", Words(128), nullable=False),
    Column("number", _INT, nullable=False),
    Column("body", Words(), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", _INT, primary_key=True, autoincrement=True),
    Column("at", Words(32), nullable=False),
    Column("kind", Words(64), nullable=False),
    Column("reason", Words(128), nullable=False),
    Column("run", Words(64), nullable=False),
    Column("router", Words(64), nullable=False),
    Column("node", Words(64), nullable=False),
    Column("detail", Words(), nullable=False),
    sqlite_autoincrement=True,
)


def prepare(connection: Connection, where: str) -> None:
    """Create the tables in an empty database, or check that they are ours, and bring them to
    this version: what older ones lack are whole tables.

    Raises PreconditionError: `store-version`, `store-foreign`.
    """
    names = set(inspect(connection).get_table_names())
    if not names:
        _create(connection)
        connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
        return
    if schema_version.name not in names:
        raise PreconditionError(
            "store-foreign",
            f"{where} is a database of another program (no table {schema_version.name})",
            "Give vrha a state folder of its own.",
        )
    found = connection.execute(select(schema_version.c.version)).scalar()
    if found is not None and 0 < found < SCHEMA_VERSION:
        _create(connection)
        connection.execute(update(schema_version).values(version=SCHEMA_VERSION))
    elif found != SCHEMA_VERSION:
        raise PreconditionError(
            "store-version",
            f"{where} has layout version {found}; this vrha reads version {SCHEMA_VERSION}",
            "Run the vrha that wrote it, or restore a backup of the matching version.",
        )


def _create(connection: Connection) -> None:
    """The tables that are missing, and the row of the leader: nobody ever led."""
    metadata.create_all(connection)
    if connection.execute(select(leader.c.one)).first() is None:
        connection.execute(insert(leader).values(one=1, holder="", epoch=0, beat=0))
