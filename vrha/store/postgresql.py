"""PostgreSQL: several orchestrators on one store, by psycopg 3.

A writing transaction takes one advisory lock first, so there is one at a time, as with SQLite:
what was read is still true when it is written, nothing has to be repeated, and no deadlock is
possible. Transactions that find nothing to do cost no disk access: unlike a row lock, this one is
not logged. See https://www.postgresql.org/docs/current/explicit-locking.html, 13.3.5.

Whatever hangs, nobody waits for ever: the server ends statements, waits for locks and sessions
that stopped in the middle of a transaction (a frozen leader must not keep the lock), and the
connection is dropped when the server itself does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from vrha.errors import InputError, PreconditionError

CONNECT_TIMEOUT_S = 3
LOCK_TIMEOUT_S = 8.0
"""How long a transaction waits for that of another orchestrator; above IDLE_TIMEOUT_S."""
STATEMENT_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 5.0
"""How long a client may say nothing in the middle of a transaction; then the server ends it."""
ANSWER_TIMEOUT_S = 12.0
"""How long the server may say nothing to a statement; above its own timeouts."""

_WRITERS = 0x76726861
"""Number of the advisory lock: "vrha"."""

REASONS = {
    "53100": ("store-full", "the server's disk is full", "Free space; nothing was lost."),
    "55P03": ("store-locked", "another transaction does not end", "Is another program on it?"),
    "57014": ("store-slow", "a statement took too long", "Look at the server's load and disk."),
    "25P03": ("store-unavailable", "this process stood still in a transaction", "Is it starved?"),
    "25006": ("store-read-only", "it is read-only", "Name the primary server, not a standby."),
    "28": ("store-refused", "user or password was refused", "See pg_hba.conf on the server."),
    "42501": ("store-refused", "the user lacks rights", "Make it the owner of the database."),
    "58": ("store-io", "the server's reading or writing failed", "Check the server's disk."),
    "XX": ("store-damaged", "it is damaged", "Look at the server's log; restore a backup."),
}
"""Code, reason and hint by the beginning of the SQLSTATE (appendix A of the manual)."""

T = TypeVar("T")


def make_engine(url: URL) -> Engine:
    """An engine on `postgresql://..`; connects at its first transaction.

    Raises PreconditionError (`no-driver`), InputError (`store-url`).
    """
    try:
        import psycopg
    except ImportError as error:
        raise PreconditionError(
            "no-driver",
            f"a store on PostgreSQL needs psycopg 3, which cannot be used: {error}",
            "Install it: pip install 'vrha[postgresql]'.",
        ) from error

    class Bounded(psycopg.Connection[Any]):
        """Drops the connection to a server that is there and does not answer."""

        def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
            def silent() -> psycopg.OperationalError:
                self.pgconn.finish()
                return psycopg.OperationalError("the server does not answer")

            return super().wait(_until(gen, silent), *arguments, **named)

    if not url.database:
        raise InputError(
            "store-url", "no database is named", "Use postgresql://USER@HOST/DATABASE."
        )
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        # A server that was restarted costs no transaction.
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "vrha"},
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, arguments: Any, named: Any) -> Any:
        return Bounded.connect(*arguments, **named)

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        for name, seconds in (
            ("lock_timeout", LOCK_TIMEOUT_S),
            ("statement_timeout", STATEMENT_TIMEOUT_S),
            ("idle_in_transaction_session_timeout", IDLE_TIMEOUT_S),
        ):
            connection.execute("SELECT set_config(%s, %s, false)", (name, f"{seconds * 1000:.0f}"))
        # What was told to an agent must not be forgotten; a stricter setting stays.
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
        )
        connection.commit()

    return engine


def begin(connection: Connection, writes: bool) -> None:
    """Start the transaction; one that only reads sees one moment and waits for nobody."""
    if writes:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _until(gen: Generator[Any, Any, T], silent: Callable[[], Exception]) -> Generator[Any, Any, T]:
    """Pass through what psycopg waits for; raise `silent()` once that took too long."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise silent()
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result
