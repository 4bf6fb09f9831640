"""Leases of routers in the store."""

from __future__ import annotations

from vrha.model.messages import Leases
from vrha.model.spec import InstanceRef
from vrha.store import Store

FIRST, SECOND = InstanceRef("r1", 1), InstanceRef("r1", 2)


def message(ref: InstanceRef, number: int, body: str, agent: str = "a", epoch: int = 1) -> Leases:
    return Leases("n1", ref, epoch, agent, number, body)


def test_the_newest_of_each_instance_is_kept(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.leases.of("r1", FIRST) == ""
        assert tx.leases.put(message(FIRST, 2, "two\n"))
        assert not tx.leases.put(message(FIRST, 2, "late\n"))
        assert not tx.leases.put(message(FIRST, 1, "late\n"))
        assert not tx.leases.put(message(FIRST, 3, "late\n", epoch=0))
        assert tx.leases.put(message(InstanceRef("r2", 1), 1, "others\n"))
    with store.transaction() as tx:
        assert tx.leases.of("r1", FIRST) == "two\n"
        assert tx.leases.put(message(FIRST, 1, "one\n", agent="b"))
        assert tx.leases.of("r1", FIRST) == "one\n"


def test_without_word_of_the_one_that_serves_the_last_word_counts(store: Store) -> None:
    with store.transaction() as tx:
        assert tx.leases.put(message(SECOND, 1, "second\n"))
        assert tx.leases.put(message(FIRST, 1, "first\n"))
        assert tx.leases.of("r1", SECOND) == "second\n"
        assert tx.leases.of("r1", InstanceRef("r1", 3)) == "first\n"
        assert tx.leases.of("r1", None) == "first\n"
        tx.leases.forget("r1", before=2)
        assert tx.leases.of("r1", FIRST) == "second\n"
        tx.leases.forget("r1")
        assert tx.leases.of("r1", None) == ""


def test_leases_may_be_many(store: Store) -> None:
    body = "1795343968 02:00:00:00:09:01 10.1.1.154 * *\n" * 4000
    with store.transaction() as tx:
        assert tx.leases.put(message(FIRST, 1, body))
    with store.transaction() as tx:
        assert tx.leases.of("r1", FIRST) == body
