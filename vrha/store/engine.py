"""Which database, and SQL errors in the words of vrha."""

from __future__ import annotations

import sqlite3

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from vrha.errors import InputError, UnreachableError
from vrha.store import postgresql, sqlite

READS = "vrha_reads"
"""Execution option of a connection whose transactions only read."""
POSTGRESQL, SQLITE = "postgresql", "sqlite"


def parse(url: str) -> URL:
    """The parts of a store's URL. Raises InputError (`store-url`) without showing it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or parsed.drivername not in (POSTGRESQL, SQLITE):
        raise InputError(
            "store-url",
            "not the URL of a store",
            "Use sqlite:////absolute/path or postgresql://USER@HOST/DATABASE.",
        )
    return parsed


def name_of(url: URL) -> str:
    """What the database is called in messages; shows neither user nor password."""
    if url.drivername == SQLITE:
        return str(sqlite.path_of(url))
    host = url.host or url.query.get("host") or url.query.get("service") or "local"
    return f"postgresql {host}/{url.database}"


def make_engine(url: URL) -> Engine:
    """An engine for the URL.

    Raises InputError (`store-url`), PreconditionError (`no-driver`), UnreachableError
    (`store-unavailable`, with path and reason).
    """
    if url.drivername == POSTGRESQL:
        engine, begin = postgresql.make_engine(url), postgresql.begin
    else:
        path = sqlite.path_of(url)
        try:
            engine, begin = sqlite.make_engine(path), sqlite.begin
        except OSError as error:
            raise UnreachableError(
                "store-unavailable",
                f"store {path}: {error.strerror}",
                f"{path.parent} must be a folder that this user may write to; set another"
                " state_dir, or run it as root.",
            ) from error

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        begin(connection, writes=READS not in connection.get_execution_options())

    return engine


def unreachable(error: SQLAlchemyError | sqlite3.Error, where: str) -> UnreachableError:
    """The error in the words of vrha; `where` names the database."""
    original = getattr(error, "orig", None) or error
    is_sqlite = isinstance(original, sqlite3.Error)
    name = getattr(original, "sqlite_errorname" if is_sqlite else "sqlstate", None) or ""
    reasons = sqlite.REASONS if is_sqlite else postgresql.REASONS
    for prefix, (code, reason, hint) in reasons.items():
        if name.startswith(prefix):
            return UnreachableError(code, f"store {where}: {reason}", hint)
    # Further lines quote statements, and statements hold tokens.
    (line, *_) = str(original).splitlines() or [""]
    text = f"store {where}: {type(original).__name__}: {line}"[:500]
    if isinstance(error, OperationalError) and not is_sqlite:
        hint = "Does the server run, and let this machine in? Nothing is lost; it is tried again."
        return UnreachableError("store-unavailable", text, hint)
    return UnreachableError("store-failed", text)
