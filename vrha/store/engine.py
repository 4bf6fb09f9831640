"""The database engine: connection settings, and SQL errors in the words of vrha.

SQLite pragmas: https://www.sqlite.org/pragma.html; result codes:
https://www.sqlite.org/rescode.html.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from vrha.errors import InputError, UnreachableError

BUSY_TIMEOUT_S = 5.0
"""How long a transaction waits for another process to finish its own."""

_REASONS = {
    "SQLITE_FULL": ("store-full", "the disk is full", "Free space; nothing was lost."),
    "SQLITE_BUSY": ("store-locked", "it is locked by another process", "Is a second one running?"),
    "SQLITE_LOCKED": ("store-locked", "it is locked", "Is a second orchestrator running?"),
    "SQLITE_READONLY": ("store-read-only", "it is read-only", "Make the folder writable."),
    "SQLITE_NOTADB": ("store-damaged", "it is not a database", "Restore a backup."),
    "SQLITE_CORRUPT": ("store-damaged", "it is damaged", "Restore a backup."),
    "SQLITE_CANTOPEN": ("store-unavailable", "it cannot be opened", "Check folder and rights."),
    "SQLITE_IOERR": ("store-io", "reading or writing it failed", "Check the disk."),
}


def sqlite_path(url: str) -> Path:
    """The file behind `sqlite:////path`. Raises InputError (`store-url`)."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() != "sqlite":
        raise InputError("store-url", "not the URL of a store", "Use sqlite:////absolute/path.")
    if not parsed.database or parsed.database == ":memory:":
        raise InputError(
            "store-url", "a store needs a file", "A store in memory would forget epochs."
        )
    return Path(parsed.database)


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

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A deferred transaction that reads first and writes later can fail half-way with BUSY.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def unreachable(error: SQLAlchemyError | sqlite3.Error, where: str) -> UnreachableError:
    """The error in the words of vrha; `where` names the database."""
    original = getattr(error, "orig", None) or error
    name = getattr(original, "sqlite_errorname", "") or ""
    for prefix, (code, reason, hint) in _REASONS.items():
        if name.startswith(prefix):
            return UnreachableError(code, f"store {where}: {reason}", hint)
    return UnreachableError(
        "store-failed", f"store {where}: {type(original).__name__}: {original}"[:500]
    )
