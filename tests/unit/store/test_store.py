"""Everything of the store but the journal, and what happens when the disk does not play along."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.store.conftest import execute
from vrha.errors import InputError, PreconditionError, RefusedError, UnreachableError
from vrha.model.messages import Inventory
from vrha.model.spec import Desired, InstanceRef, InstanceSpec, Network, Node, Router
from vrha.model.state import Activity, NodeState, ObservedInstance, RouterState
from vrha.store import Store, repo
from vrha.store import tx as tx_module

REF = InstanceRef("r1", 4)
SPEC = InstanceSpec(REF, 7, Router("r1", ("web",), labels={"rack": "a"}), (), ())


def test_nothing_applied_is_version_zero(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.desired() == (0, Desired())


def test_desired_state_is_replaced_and_numbered(store: Store) -> None:
    one = Desired(networks=(Network("web", "br0", ()),), nodes=(Node("n1", labels={"a": "b"}),))
    with store.transaction() as tx:
        assert tx.put_desired(one) == 1
        assert tx.desired() == (1, one)
        assert tx.put_desired(Desired()) == 2
    with store.transaction() as tx:
        assert tx.desired() == (2, Desired())


def test_a_version_that_was_rolled_back_is_not_remembered(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as tx:
            tx.put_desired(Desired(nodes=(Node("lost"),)))
            tx.desired()
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    with store.transaction() as tx:
        assert tx.put_desired(Desired(nodes=(Node("kept"),))) == 1
        assert tx.desired()[1].nodes[0].name == "kept"


def test_router_state_comes_back_as_it_was(store: Store) -> None:
    states = (
        RouterState("r1", 7, 4, "n1", REF, SPEC, "because"),
        RouterState("r2", 1, 1),
    )
    with store.transaction() as tx:
        for state in states:
            tx.put_router_state(state)
            tx.put_router_state(state)
    with store.transaction() as tx:
        assert tx.router_briefs() == (replace(states[0], applied=None), states[1])
        assert tx.router_state("r1") == states[0]
        assert tx.router_state("r3") is None


def test_epochs_outlive_the_router(store: Store) -> None:
    with store.transaction() as tx:
        tx.put_router_state(RouterState("r1", 7, 4, "n1", REF, SPEC))
        tx.drop_router_state("r1")
        assert tx.router_briefs() == ()
        assert tx.router_state("r1") == RouterState("r1", 7, 4)
        tx.put_router_state(RouterState("r1", 8, 5, "n2"))
        assert tx.router_briefs() == (RouterState("r1", 8, 5, "n2"),)


@pytest.mark.parametrize("state", [RouterState("r1", 6, 9), RouterState("r1", 9, 3)])
def test_epoch_and_generation_never_go_back(store: Store, state: RouterState) -> None:
    with store.transaction() as tx:
        tx.put_router_state(RouterState("r1", 7, 4))
        with pytest.raises(RefusedError) as refused:
            tx.put_router_state(state)
    assert refused.value.code == "epoch-behind"


def test_a_check_in_token_is_good_once(store: Store) -> None:
    with store.transaction() as tx:
        assert not tx.consume_check_in("run-1", "hash-a")
        tx.expect_check_in("run-1", "hash-a")
        assert not tx.consume_check_in("run-1", "hash-b")
        assert not tx.consume_check_in("run-2", "hash-a")
        assert tx.consume_check_in("run-1", "hash-a")
        assert not tx.consume_check_in("run-1", "hash-a")


def test_a_new_token_replaces_the_unused_one(store: Store) -> None:
    with store.transaction() as tx:
        tx.expect_check_in("run-1", "hash-a")
        tx.expect_check_in("run-1", "hash-b")
        assert not tx.consume_check_in("run-1", "hash-a")
        assert tx.consume_check_in("run-1", "hash-b")


def test_of_many_threads_one_uses_the_token(store: Store) -> None:
    with store.transaction() as tx:
        tx.expect_check_in("run-1", "hash-a")
    outcomes: list[bool] = []

    def consume() -> None:
        with store.transaction() as tx:
            outcomes.append(tx.consume_check_in("run-1", "hash-a"))

    threads = [threading.Thread(target=consume) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_the_newest_inventory_of_a_node_is_kept(store: Store) -> None:
    seen = ObservedInstance(REF, 7, Activity.ACTIVE, True)
    with store.transaction() as tx:
        tx.node_seen(Inventory("n1", "boot-1", "0.1", (), ()), 1000.0)
        tx.node_seen(Inventory("n1", "boot-2", "0.1", ("x",), (seen,), (("r1", 7),)), 1700000000.25)
    with store.transaction() as tx:
        assert tx.node_states() == (
            NodeState("n1", "boot-2", "0.1", ("x",), (seen,), 1700000000.25, (("r1", 7),)),
        )


def test_the_outbox_keeps_order_and_never_reuses_an_id(store: Store) -> None:
    with store.transaction() as tx:
        tx.outbox.enqueue("n1", b"one")
        tx.outbox.enqueue("n2", b"\x00two")
        tx.outbox.enqueue("n1", b"three")
        ids = [row.id for row in tx.outbox.unsent()]
        assert ids == sorted(set(ids))
    with store.transaction() as tx:
        assert [(row.node, row.body) for row in tx.outbox.unsent(2)] == [
            ("n1", b"one"),
            ("n2", b"\x00two"),
        ]
        tx.outbox.mark_sent(ids)
        assert tx.outbox.unsent() == ()
        tx.outbox.enqueue("n1", b"four")
        assert tx.outbox.unsent()[0].id > ids[-1]


def test_a_sent_body_is_gone_from_the_file(sqlite_store: Store, tmp_path: Path) -> None:
    canary = b"token-canary-73a1"
    with sqlite_store.transaction() as tx:
        tx.outbox.enqueue("n1", canary)
    with sqlite_store.transaction() as tx:
        tx.outbox.mark_sent([row.id for row in tx.outbox.unsent()])
    sqlite_store.close()
    assert canary not in (tmp_path / "store.db").read_bytes()


def test_events_are_read_in_pages(store: Store) -> None:
    with store.transaction() as tx:
        for i in range(5):
            tx.add_event("run", f"reason-{i}", run="run-1", router="r1", node="n1", detail="d")
    with store.transaction() as tx:
        first = tx.events(0, 2)
        rest = tx.events(first[-1].id, 100)
    assert [e.reason for e in (*first, *rest)] == [f"reason-{i}" for i in range(5)]
    assert first[0].at.endswith("+00:00")


def test_events_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tx_module, "KEPT_EVENTS", 10)
    with store.transaction() as tx:
        for _ in range(1005):
            tx.add_event("x", "y")
        assert len(tx.events(0, 10_000)) == 15


def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.transaction() as tx:
            tx.add_event("x", "y")
            tx.outbox.enqueue("n1", b"z")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    with store.transaction() as tx:
        assert tx.events() == ()
        assert tx.outbox.unsent() == ()


def test_a_transaction_inside_a_transaction_is_a_mistake_and_no_deadlock(store: Store) -> None:
    with store.transaction(), pytest.raises(RuntimeError), store.transaction():
        pass


def test_a_thread_does_not_wait_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repo, "LOCK_TIMEOUT_S", 0.05)
    caught: list[UnreachableError] = []

    def other() -> None:
        try:
            with store.transaction():
                pass
        except UnreachableError as error:
            caught.append(error)

    with store.transaction():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [error.code for error in caught] == ["store-locked"]


def test_another_process_that_holds_the_lock_is_named(
    sqlite_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with sqlite_store._db.connect() as connection:
        connection.connection.driver_connection.execute("PRAGMA busy_timeout = 20")  # type: ignore[union-attr]
        connection.rollback()
    with pytest.raises(UnreachableError) as caught, sqlite_store.transaction():
        pass
    other.close()
    assert caught.value.code == "store-locked"


def test_the_file_is_for_its_owner_only(sqlite_store: Store, tmp_path: Path) -> None:
    with sqlite_store.transaction() as tx:
        tx.add_event("x", "y")
    for name in ("store.db", "store.db-wal", "store.db-shm"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_durability_is_on(sqlite_store: Store) -> None:
    with sqlite_store._db.connect() as connection:
        asked = {
            pragma: connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
            for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert asked == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
    }


def test_open_tells_that_the_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError) as caught:
        Store.open(f"sqlite:///{tmp_path}/no/store.db")
    assert caught.value.code == "store-unavailable"
    assert f"{tmp_path}/no/store.db: No such file or directory" in str(caught.value)


def test_open_tells_that_it_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="Is a directory"):
        Store.open(f"sqlite:///{tmp_path}")


def test_open_tells_that_it_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is a text, and a long one" * 100)
    with pytest.raises(UnreachableError, match="not a database") as caught:
        Store.open(f"sqlite:///{tmp_path}/store.db")
    assert caught.value.code == "store-unavailable"


def test_open_refuses_another_layout(url: str) -> None:
    Store.open(url).close()
    execute(url, "UPDATE vrha_schema SET version = 99")
    with pytest.raises(PreconditionError, match="layout version 99") as caught:
        Store.open(url)
    assert caught.value.code == "store-version"


def test_open_refuses_the_database_of_another_program(url: str) -> None:
    execute(url, "CREATE TABLE cats (name TEXT)")
    with pytest.raises(PreconditionError) as caught:
        Store.open(url)
    assert caught.value.code == "store-foreign"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:canary@h/d",
        "postgresql+psycopg2://u:canary@h/d",
        "postgresql://u:canary@h",
        "postgresql://u:canary@h:port/d",
    ],
)
def test_open_refuses_other_urls(url: str) -> None:
    with pytest.raises(InputError) as caught:
        Store.open(url)
    assert caught.value.code == "store-url"
    assert "canary" not in str(caught.value)


CHILD = textwrap.dedent(
    """
    import sys
    from vrha.store import Store
    from vrha.model.state import RouterState
    store = Store.open(sys.argv[1])
    for i in range(1, 100000):
        with store.transaction() as tx:
            tx.put_router_state(RouterState("r1", i, i))
            tx.outbox.enqueue("n1", str(i).encode())
        print(i, flush=True)
    """
)


@pytest.mark.parametrize("after", [1, 7, 40])
def test_what_was_committed_survives_kill_9(url: str, after: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= after:
            break
    child.send_signal(signal.SIGKILL)
    told = [int(line) for line in child.stdout.read().splitlines()[:-1]] or [after]
    child.wait(10)
    child.stdout.close()
    store = Store.open(url)
    with store.transaction() as tx:
        state = tx.router_state("r1")
        queued = tx.outbox.unsent(100_000)
    store.close()
    assert state is not None
    assert state.epoch >= told[-1]
    assert [int(row.body) for row in queued] == list(range(1, state.epoch + 1))


MOUNTED = textwrap.dedent(
    """
    import ctypes, json, os, subprocess, sys
    from vrha.errors import VrhaError
    from vrha.store import Store
    folder, kind = sys.argv[1:]
    def mount(*options):
        subprocess.run(["mount", *options, folder], check=True, timeout=10)
    def attempt(what):
        try:
            what()
        except VrhaError as error:
            return [type(error).__name__, error.code, error.message]
    def fill(store):
        for i in range(200):
            with store.transaction() as tx:
                tx.outbox.enqueue("n1", b"x" * 50000)
    url = f"sqlite:///{folder}/store.db"
    mount("-t", "tmpfs", "-o", "size=1m", "none")
    if kind == "full":
        store = Store.open(url)
        told = attempt(lambda: fill(store))
        with store.transaction() as tx:
            rows = tx.outbox.unsent(1000)
        with open(f"{folder}/filler", "wb") as file:
            try:
                file.write(b"x" * 2_000_000)
            except OSError:
                pass
        more = attempt(lambda: Store.open(f"sqlite:///{folder}/other.db"))
        mount("-o", "remount,size=4m")
        with store.transaction() as tx:
            tx.outbox.mark_sent([row.id for row in rows])
            left = len(tx.outbox.unsent())
        print(json.dumps([told, len(rows), more, left]))
    else:
        Store.open(url).close()
        store = Store.open(url)
        store.close()
        mount("-o", "remount,ro")
        print(json.dumps([attempt(lambda: fill(store)), attempt(lambda: Store.open(url))]))
    """
)


UNSHARE = ("unshare", "--mount", "--propagation", "private")


def _mounted(folder: Path, kind: str) -> str:
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", MOUNTED, str(folder), kind],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.root
def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    told, rows, more, left = json.loads(_mounted(tmp_path, "full"))
    assert told[:2] == ["UnreachableError", "store-full"]
    assert "the disk is full" in told[2]
    assert rows > 1
    assert left == 0
    assert more[:2] == ["UnreachableError", "store-unavailable"]
    assert "the disk is full" in more[2]


@pytest.mark.root
def test_a_read_only_disk_is_told(tmp_path: Path) -> None:
    told, opened = json.loads(_mounted(tmp_path, "read-only"))
    assert told[0] == opened[0] == "UnreachableError"
    assert opened[1] == "store-unavailable"
    assert "ead-only" in opened[2]
