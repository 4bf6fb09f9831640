"""Tables of the store, and the version of their layout.

SQL that SQLite (3.34 or newer) and PostgreSQL both understand; what differs stands in
`vrha.store.engine`. Values that are only read as a whole are kept as JSON of `vrha.codec`.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
    update,
)

from vrha.errors import PreconditionError

SCHEMA_VERSION = 2
"""1: without `evidence`, `begins`, `measurements`, rollouts and cordons."""

metadata = MetaData()

schema_version = Table("vrha_schema", metadata, Column("version", Integer, primary_key=True))

desired = Table(
    "desired",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False),
    Column("applied_at", String(32), nullable=False),
)

routers = Table(
    "routers",
    metadata,
    Column("router", String(64), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("node", String(64), nullable=False),
    Column("active", Integer),
    Column("applied", Text),
    Column("failed", Text, nullable=False),
    # The row of a removed router stays: epochs are never handed out twice (I6).
    Column("dropped", Boolean, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("router", String(64), nullable=False),
    Column("terminal", Boolean, nullable=False),
    # The earliest deadline of its started steps: time passes without reading steps.
    Column("deadline", Float(53)),
    Column("builds_on", String(64), nullable=False),
    # Everything of the run but its steps.
    Column("body", Text, nullable=False),
    Column("started_at", String(32), nullable=False),
    Column("ended_at", String(32), nullable=False),
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
    Column("run_id", String(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    # The step itself: large (a build carries its whole instance) and hardly ever rewritten.
    Column("step", Text, nullable=False),
    # The rest of the record: small and rewritten at every change of its status.
    Column("progress", Text, nullable=False),
)

timings = Table(
    "timings",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("timings", Text, nullable=False),
)

evidence = Table(
    "evidence",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("evidence", Text, nullable=False),
)

begins = Table(
    "begins",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("undo", Boolean, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    # On the wall clock of the step's node.
    Column("began", Float(53), nullable=False),
)

measurements = Table(
    "measurements",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("body", Text, nullable=False),
)

check_ins = Table(
    "check_ins",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("token_hash", String(128), nullable=False),
    Column("used", Boolean, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("inventory", Text, nullable=False),
    Column("seen_at", Float(53), nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("node", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    # On the monotonic clock of the orchestrator that wrote it; null: never.
    Column("expires", Float(53)),
    # An id names a message for ever (it is its message id), so it is never given out again.
    sqlite_autoincrement=True,
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("open", Boolean, nullable=False),
    # Everything of the rollout but its members.
    Column("body", Text, nullable=False),
    Column("started_at", String(32), nullable=False),
    Column("ended_at", String(32), nullable=False),
    sqlite_autoincrement=True,
)

members = Table(
    "rollout_members",
    metadata,
    Column("rollout", String(64), primary_key=True),
    # In the order of their turns.
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("router", String(64), nullable=False),
    Column("status", String(32), nullable=False),
    Column("round", Integer, nullable=False),
    Column("run", String(64), nullable=False),
    Column("strategy", String(32)),
    Column("from_node", String(64), nullable=False),
    Column("to_node", String(64), nullable=False),
    Column("old", String(96), nullable=False),
    Column("new", String(96), nullable=False),
    Column("lost", Integer),
    Column("reason", String(128), nullable=False),
    Column("detail", Text, nullable=False),
    Column("started_at", String(32), nullable=False),
    Column("ended_at", String(32), nullable=False),
)

cordons = Table(
    "cordons",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("since", String(32), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", String(32), nullable=False),
    Column("kind", String(64), nullable=False),
    Column("reason", String(128), nullable=False),
    Column("run", String(64), nullable=False),
    Column("router", String(64), nullable=False),
    Column("node", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    sqlite_autoincrement=True,
)


def prepare(connection: Connection, where: str) -> None:
    """Create the tables in an empty database, or check that they are ours, and bring them to
    this version: what older ones lack are whole tables.

    Raises PreconditionError: `store-version`, `store-foreign`.
    """
    names = set(inspect(connection).get_table_names())
    if not names:
        metadata.create_all(connection)
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
        metadata.create_all(connection)
        connection.execute(update(schema_version).values(version=SCHEMA_VERSION))
    elif found != SCHEMA_VERSION:
        raise PreconditionError(
            "store-version",
            f"{where} has layout version {found}; this vrha reads version {SCHEMA_VERSION}",
            "Run the vrha that wrote it, or restore a backup of the matching version.",
        )
