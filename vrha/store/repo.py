"""The store: desired state, journal, outbox and events on SQLite or PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from vrha.core.leadership import Lead
from vrha.errors import NotLeaderError, UnreachableError
from vrha.model.spec import Desired
from vrha.store import engine, lead, rows, schema
from vrha.store.rows import OutboxRow, RunTimes
from vrha.store.tx import Tx

__all__ = ["OutboxRow", "RunTimes", "Store", "Tx"]

LOCK_TIMEOUT_S = 10.0
"""How long a transaction waits for the other threads of this process."""
LONG_S = 0.5
"""A transaction that took longer shows by itself that the leader lives: its beat had to wait."""


class Store:
    """The store of one orchestrator. Safe from any thread; one transaction at a time.

    A transaction is durable when `transaction` has returned: it survives kill -9 and loss of
    power (SQLite: WAL with synchronous=FULL; PostgreSQL: synchronous_commit).

    Who writes must lead: every transaction that may write checks, behind the lock that lets no
    other one in, that the store's leader epoch still is `leader_epoch`. A store that nobody ever
    led has epoch 0, and so has a Store that neither leads nor stands by.
    """

    def __init__(self, db: Engine, where: str) -> None:
        self._db = db
        self._where = where
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._memory = rows.Memory()
        self._desired: dict[tuple[int, str], Desired] = {}
        self._epoch: int | None = 0

    @classmethod
    def open(cls, url: str) -> Store:
        """Open, or create, the store at `url`: `sqlite:////path` or `postgresql://..`.

        Raises UnreachableError (`store-unavailable`, with path and reason), PreconditionError
        (`store-version`, `store-foreign`, `no-driver`), InputError (`store-url`).
        """
        parsed = engine.parse(url)
        where = engine.name_of(parsed)
        db = engine.make_engine(parsed)
        store = cls(db, where)
        try:
            with store._connection() as connection:
                schema.prepare(connection, where)
        except UnreachableError as error:
            db.dispose()
            raise UnreachableError("store-unavailable", error.message, error.hint) from error
        except BaseException:
            db.dispose()
            raise
        return store

    @contextmanager
    def transaction(self) -> Iterator[Tx]:
        """All or nothing: committed at the end of the block, undone when it raises.

        Raises NotLeaderError (`not-leader`); UnreachableError: `store-locked`, `store-full`,
        `store-read-only`, `store-damaged`, `store-io`, `store-slow`, `store-refused`,
        `store-unavailable`, `store-failed`.
        """
        with self._connection() as connection:
            began = time.monotonic()
            epoch = self._mine(connection)
            tx = Tx(connection, self._memory, self._desired)
            yield tx
            tx.write()
            if time.monotonic() - began > LONG_S:
                lead.beat(connection, epoch)

    @contextmanager
    def reading(self) -> Iterator[Tx]:
        """A transaction that cannot write; also for who does not lead.

        Raises UnreachableError as `transaction`.
        """
        with self._connection(reads=True) as connection:
            tx = Tx(connection, self._memory, self._desired)
            yield tx
            # Nothing may wait here: the database refuses it.
            tx.write()

    # Leadership

    @property
    def leader_epoch(self) -> int | None:
        """The epoch of our leadership, as far as is known; None while we stand by."""
        return self._epoch

    def stand_by(self) -> None:
        """From now on every `transaction` is refused until `take_lead`."""
        self._epoch = None

    def lead(self) -> Lead:
        """Who leads, by the store. Raises UnreachableError as `transaction`."""
        with self._connection(reads=True) as connection:
            return lead.read(connection)

    def demand_lead(self) -> None:
        """Raises NotLeaderError when we do not lead; UnreachableError as `transaction`."""
        with self._connection(reads=True) as connection:
            self._mine(connection)

    def take_lead(self, holder: str, seen: Lead) -> int:
        """Make us, as `holder`, the leader if the store still says what was `seen`; the epoch.

        Raises NotLeaderError when somebody else was quicker; UnreachableError as `transaction`.
        """
        with self._connection() as connection:
            epoch = lead.take(connection, holder, seen)
            if epoch is None:
                now = lead.read(connection)
                raise NotLeaderError(now.holder, now.epoch)
        # Another leader may have written meanwhile.
        self._desired.clear()
        self._epoch = epoch
        return epoch

    def beat(self) -> float:
        """Show that we live; when that began to be written (seconds, monotonic clock).

        Raises NotLeaderError; UnreachableError as `transaction`.
        """
        with self._connection() as connection:
            epoch = self._mine(connection)
            began = time.monotonic()
            lead.beat(connection, epoch)
        return began

    def give_up_lead(self) -> None:
        """Let the next one lead at once, and stand by. Raises as `beat`."""
        with self._connection() as connection:
            lead.give_up(connection, self._mine(connection))
        self._epoch = None

    def _mine(self, connection: Connection) -> int:
        now = lead.read(connection)
        if self._epoch != now.epoch:
            self._epoch = None
            raise NotLeaderError(now.holder, now.epoch)
        return now.epoch

    @contextmanager
    def _connection(self, reads: bool = False) -> Iterator[Connection]:
        if self._thread == threading.get_ident():
            raise RuntimeError("a transaction inside a transaction")
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise UnreachableError(
                "store-locked",
                f"store {self._where}: another transaction has not ended for {LOCK_TIMEOUT_S} s",
                "Try again; if it stays, restart the orchestrator.",
            )
        self._thread = threading.get_ident()
        options = {engine.READS: True} if reads else {}
        try:
            with (
                self._db.connect().execution_options(**options) as connection,
                connection.begin(),
            ):
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise engine.unreachable(error, self._where) from error
        finally:
            self._thread = None
            self._lock.release()

    def close(self) -> None:
        """Close the database; a later transaction opens it again."""
        self._db.dispose()
