"""The store: desired state, journal, outbox and events on one SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from vrha.errors import UnreachableError
from vrha.model.spec import Desired
from vrha.store import engine, rows, schema
from vrha.store.rows import OutboxRow, RunTimes
from vrha.store.tx import Tx

__all__ = ["OutboxRow", "RunTimes", "Store", "Tx"]

LOCK_TIMEOUT_S = 10.0
"""How long a transaction waits for the other threads of this process."""


class Store:
    """The store of one orchestrator. Safe from any thread; one transaction at a time.

    A transaction is durable when `transaction` has returned: it survives kill -9 and loss of
    power (WAL with synchronous=FULL).
    """

    def __init__(self, db: Engine, where: str) -> None:
        self._db = db
        self._where = where
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._memory = rows.Memory()
        self._desired: dict[tuple[int, str], Desired] = {}

    @classmethod
    def open(cls, url: str) -> Store:
        """Open, or create, the store at `url` (`sqlite:////path`).

        Raises UnreachableError (`store-unavailable`, with path and reason), PreconditionError
        (`store-version`, `store-foreign`), InputError (`store-url`).
        """
        path = engine.sqlite_path(url)
        try:
            db = engine.make_engine(path)
        except OSError as error:
            raise UnreachableError(
                "store-unavailable",
                f"store {path}: {error.strerror}",
                f"{path.parent} must be a folder that this user may write to; set another"
                " state_dir, or run it as root.",
            ) from error
        store = cls(db, str(path))
        try:
            with store._connection() as connection:
                schema.prepare(connection, str(path))
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

        Raises UnreachableError: `store-locked`, `store-full`, `store-read-only`,
        `store-damaged`, `store-io`, `store-unavailable`, `store-failed`.
        """
        with self._connection() as connection:
            yield Tx(connection, self._memory, self._desired)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self._holder == threading.get_ident():
            raise RuntimeError("a transaction inside a transaction")
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_S):
            raise UnreachableError(
                "store-locked",
                f"store {self._where}: another transaction has not ended for {LOCK_TIMEOUT_S} s",
                "Try again; if it stays, restart the orchestrator.",
            )
        self._holder = threading.get_ident()
        try:
            with self._db.begin() as connection:
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise engine.unreachable(error, self._where) from error
        finally:
            self._holder = None
            self._lock.release()

    def close(self) -> None:
        """Close the database; a later transaction opens it again."""
        self._db.dispose()
