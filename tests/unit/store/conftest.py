"""Every test that takes `store` or `url` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.postgres import Server
from vrha.store import Store, engine


def execute(url: str, statement: str) -> None:
    """One statement of somebody who knows nothing of stores."""
    db = engine.make_engine(engine.parse(url))
    with db.begin() as connection:
        connection.exec_driver_sql(statement)
    db.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Each call gives the URL of an empty database."""
    if request.param == "sqlite":
        numbers = count()
        return lambda: f"sqlite:///{tmp_path}/store-{next(numbers)}.db"
    server: Server = request.getfixturevalue("postgresql")
    return server.database


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """Of an empty database."""
    return new_url()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    one = Store.open(url)
    yield one
    one.close()


@pytest.fixture
def sqlite_store(sqlite_url: str) -> Iterator[Store]:
    one = Store.open(sqlite_url)
    yield one
    one.close()
