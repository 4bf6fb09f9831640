"""A server that is gone, hangs or refuses, and a client that stopped in the middle."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.postgres import Server, binaries
from vrha.errors import InputError, PreconditionError, UnreachableError
from vrha.store import Store, postgresql

CANARY = "s3cret-canary"


@pytest.fixture
def store(postgresql: Server) -> Iterator[Store]:
    one = Store.open(postgresql.database())
    yield one
    one.close()


@pytest.fixture
def own_server() -> Iterator[Server]:
    """One that a test may hurt."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (tools/setup installs it)")
    server = Server(programs)
    yield server
    server.close()


def note(store: Store) -> None:
    with store.transaction() as tx:
        tx.add_event("x", "y")


def trouble(attempt: Callable[[], object]) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        attempt()
    return caught.value


def test_a_session_that_the_server_ended_costs_no_transaction(
    postgresql: Server, store: Store
) -> None:
    note(store)
    postgresql.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <>"
        " pg_backend_pid() AND application_name = 'vrha'"
    )
    note(store)


def test_a_session_that_ends_in_the_middle_leaves_nothing(postgresql: Server, store: Store) -> None:
    def attempt() -> None:
        with store.transaction() as tx:
            tx.add_event("lost", "y")
            postgresql.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'vrha' AND state LIKE 'idle in%'"
            )
            tx.add_event("lost", "y")

    assert trouble(attempt).code == "store-unavailable"
    with store.transaction() as tx:
        assert tx.events() == ()


def test_a_server_that_hangs_keeps_nobody_for_ever(
    own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(postgresql, "CONNECT_TIMEOUT_S", 2)
    store = Store.open(own_server.database())
    note(store)
    own_server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert trouble(lambda: note(store)).code == "store-unavailable"
        assert trouble(store.beat).code == "store-unavailable"
        assert time.monotonic() - began < 30
    finally:
        own_server.signal(signal.SIGCONT)
    note(store)
    store.close()


def test_a_server_that_is_gone_is_named(own_server: Server) -> None:
    store = Store.open(own_server.database())
    own_server.close()
    error = trouble(lambda: note(store))
    assert error.code == "store-unavailable"
    assert f"postgresql {own_server.folder}/vrha0" in error.message
    assert not own_server.folder.exists()
    store.close()


def test_who_stopped_in_the_middle_keeps_the_lock_for_a_while_only(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen leader must not keep others from taking over."""
    monkeypatch.setattr("vrha.store.postgresql.IDLE_TIMEOUT_S", 0.3)
    url = postgresql.database()
    frozen, other = Store.open(url), Store.open(url)
    stopped, go_on, caught = threading.Event(), threading.Event(), []

    def freeze() -> None:
        try:
            with frozen.transaction() as tx:
                tx.add_event("frozen", "y")
                stopped.set()
                go_on.wait(30)
                tx.add_event("frozen", "y")
        except UnreachableError as error:
            caught.append(error.code)

    thread = threading.Thread(target=freeze)
    thread.start()
    stopped.wait(30)
    other.take_lead("o2", other.lead())
    go_on.set()
    thread.join()
    assert caught == ["store-unavailable"]
    with other.transaction() as tx:
        assert tx.events() == ()
    frozen.close()
    other.close()


def test_a_transaction_of_another_program_is_waited_for_and_named(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vrha.store.postgresql.LOCK_TIMEOUT_S", 0.2)
    url = postgresql.database()
    holder, waiter = Store.open(url), Store.open(url)
    with holder.transaction():
        assert trouble(lambda: note(waiter)).code == "store-locked"
    note(waiter)
    holder.close()
    waiter.close()


def test_a_statement_that_takes_too_long_is_ended(
    postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vrha.store.postgresql.STATEMENT_TIMEOUT_S", 0.2)
    store = Store.open(postgresql.database())

    def attempt() -> None:
        with store._connection() as connection:
            connection.exec_driver_sql("SELECT pg_sleep(30)")

    assert trouble(attempt).code == "store-slow"
    note(store)
    store.close()


def test_commits_wait_for_the_disk_whatever_the_server_says(postgresql: Server) -> None:
    url = postgresql.database()
    name = url.partition("@/")[2].partition("?")[0]
    postgresql.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    postgresql.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    store = Store.open(url)
    with store._connection() as connection:
        for setting, value in (
            ("synchronous_commit", "on"),
            ("transaction_isolation", "read committed"),
        ):
            assert connection.exec_driver_sql(f"SHOW {setting}").scalar() == value
    store.close()


def test_a_read_only_server_is_told(postgresql: Server) -> None:
    url = postgresql.database()
    store = Store.open(url)
    store.close()
    name = url.partition("@/")[2].partition("?")[0]
    postgresql.sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert trouble(lambda: note(store)).code == "store-read-only"
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{CANARY}@127.0.0.1:1/d",
        f"postgresql://u:{CANARY}@vrha.invalid/d",
        f"postgresql://127.0.0.1:1/d?password={CANARY}",
        f"postgresql://u:{CANARY}@127.0.0.1:1/d?no-such-option=1",
    ],
)
def test_passwords_are_never_shown(url: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("psycopg")
    caplog.set_level(logging.DEBUG)
    error = trouble(lambda: Store.open(url))
    assert CANARY not in str(error)
    assert CANARY not in caplog.text


def test_a_password_may_lie_in_a_file(postgresql: Server, tmp_path: Path) -> None:
    """As libpq reads it: `passfile` in the URL, or PGPASSFILE."""
    url = postgresql.database()
    postgresql.sql(f"CREATE ROLE secretive LOGIN SUPERUSER PASSWORD '{CANARY}'")
    control = postgresql.folder / "data" / "pg_hba.conf"
    before = control.read_text()
    passfile = tmp_path / "pass"
    passfile.write_text(f"*:*:*:secretive:{CANARY}\n")
    passfile.chmod(0o600)
    secretive = url.replace("vrha@", "secretive@")
    try:
        control.write_text("local all secretive scram-sha-256\n" + before)
        postgresql.sql("SELECT pg_reload_conf()")
        refused = trouble(lambda: Store.open(secretive))
        assert "password" in refused.message
        Store.open(f"{secretive}&passfile={passfile}").close()
    finally:
        control.write_text(before)
        postgresql.sql("SELECT pg_reload_conf()")


def test_without_its_driver_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.sys.modules, "psycopg", None)  # type: ignore[attr-defined]
    with pytest.raises(PreconditionError, match=r"psycopg 3") as caught:
        Store.open("postgresql://h/d")
    assert caught.value.code == "no-driver"
    assert "vrha[postgresql]" in caught.value.hint


def test_a_database_must_be_named() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(InputError):
        Store.open("postgresql://h")
