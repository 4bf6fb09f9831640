"""SQLite: one file, one machine.

A writing transaction begins as BEGIN IMMEDIATE, so there is one at a time, also among processes.
Pragmas: https://www.sqlite.org/pragma.html; result codes: https://www.sqlite.org/rescode.html.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import QueuePool

from vrha.errors import InputError

BUSY_TIMEOUT_S = 5.0
"""How long a transaction waits for another process to finish its own."""

REASONS = {
    "SQLITE_FULL": ("store-full", "the disk is full", "Free space; nothing was lost."),
    "SQLITE_BUSY": ("store-locked", "it is locked by another process", "Is a second one running?"),
    "SQLITE_LOCKED": ("store-locked", "it is locked", "Is a second orchestrator running?"),
    "SQLITE_READONLY": ("store-read-only", "it is read-only", "Make the folder writable."),
    "SQLITE_NOTADB": ("store-damaged", "it is not a database", "Restore a backup."),
    "SQLITE_CORRUPT": ("store-damaged", "it is damaged", "Restore a backup."),
    "SQLITE_CANTOPEN": ("store-unavailable", "it cannot be opened", "Check folder and rights."),
    "SQLITE_IOERR": ("store-io", "reading or writing it failed", "Check the disk."),
}
"""Code, reason and hint by the beginning of the result code's name."""


def path_of(url: URL) -> Path:
    """The file behind `sqlite:////path`. Raises InputError (`store-url`)."""
    if not url.database or url.database == ":memory:":
        raise InputError(
            "store-url", "a store needs a file", "A store in memory would forget epochs."
        )
    return Path(url.database)


def make_engine(path: Path) -> Engine:
    """An engine on the SQLite file `path`, created with mode 0600 if it is missing.

    Raises OSError when the file cannot be created.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: Any) -> None:
        # sqlite3 would start transactions by itself, late and deferred; we say BEGIN ourselves.
        connection.isolation_level = None
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",  # deleted outbox bodies held check-in tokens
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def begin(connection: Connection, writes: bool) -> None:
    """Start the transaction; one that only reads waits for nobody."""
    if connection.info.get("writes", True) is not writes:
        connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        connection.info["writes"] = writes
    # A deferred transaction that reads first and writes later can fail half-way with BUSY.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
