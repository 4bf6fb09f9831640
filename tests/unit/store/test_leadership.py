"""One leads, and nobody else writes; on both databases."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vrha.core.leadership import Lead
from vrha.errors import NotLeaderError, UnreachableError
from vrha.model.state import RouterState
from vrha.store import Store, repo


@pytest.fixture
def two(url: str) -> Iterator[tuple[Store, Store]]:
    stores = (Store.open(url), Store.open(url))
    for store in stores:
        store.stand_by()
    yield stores
    for store in stores:
        store.close()


def take(store: Store, name: str) -> int:
    return store.take_lead(name, store.lead())


def note(store: Store, kind: str = "x") -> None:
    with store.transaction() as tx:
        tx.add_event(kind, "y")


def notes(store: Store) -> list[str]:
    with store.reading() as tx:
        return [event.kind for event in tx.events()]


def test_nobody_leads_a_new_store(two: tuple[Store, Store]) -> None:
    assert two[0].lead() == Lead("", 0, 0)


def test_who_stands_by_writes_nothing_and_reads_on(two: tuple[Store, Store]) -> None:
    leader, standby = two
    take(leader, "o1")
    note(leader)
    with pytest.raises(NotLeaderError) as caught:
        note(standby)
    assert (caught.value.holder, caught.value.epoch, caught.value.code) == ("o1", 1, "not-leader")
    assert notes(standby) == ["x"]
    assert standby.leader_epoch is None


def test_every_leadership_has_a_higher_epoch(two: tuple[Store, Store]) -> None:
    assert [take(two[i % 2], f"o{i % 2}") for i in range(6)] == [1, 2, 3, 4, 5, 6]
    two[1].give_up_lead()
    assert take(two[0], "o0") == 7
    assert two[0].leader_epoch == 7


def test_a_stale_leader_is_refused_and_told_who_leads(two: tuple[Store, Store]) -> None:
    old, new = two
    take(old, "o1")
    take(new, "o2")
    for attempt in (lambda: note(old), old.beat, old.give_up_lead, old.demand_lead):
        with pytest.raises(NotLeaderError, match="orchestrator o2 leads"):
            attempt()
    assert old.leader_epoch is None
    assert notes(new) == []
    note(new)


def test_a_stale_leader_stays_refused_when_it_has_forgotten_nothing(
    two: tuple[Store, Store],
) -> None:
    """Its epoch decides, not its name."""
    old, new = two
    take(old, "same")
    take(new, "same")
    with pytest.raises(NotLeaderError):
        note(old)


def test_the_lead_is_taken_only_as_it_was_seen(two: tuple[Store, Store]) -> None:
    leader, standby = two
    take(leader, "o1")
    seen = standby.lead()
    leader.beat()
    with pytest.raises(NotLeaderError, match="orchestrator o1 leads"):
        standby.take_lead("o2", seen)
    note(leader)
    assert standby.take_lead("o2", standby.lead()) == 2


def test_of_many_one_takes_it(url: str) -> None:
    stores = [Store.open(url) for _ in range(6)]
    seen = stores[0].lead()
    won: list[int] = []

    def attempt(store: Store, name: str) -> None:
        store.stand_by()
        try:
            won.append(store.take_lead(name, seen))
        except NotLeaderError:
            return

    threads = [
        threading.Thread(target=attempt, args=(store, f"o{i}")) for i, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [1]
    assert [store.leader_epoch for store in stores].count(1) == 1
    for store in stores:
        store.close()


def test_a_beat_says_when_it_began(two: tuple[Store, Store]) -> None:
    take(two[0], "o1")
    before = time.monotonic()
    assert before <= two[0].beat() <= time.monotonic()
    assert two[1].lead() == Lead("o1", 1, 2)


def test_a_lead_that_was_given_up_names_nobody(two: tuple[Store, Store]) -> None:
    take(two[0], "o1")
    two[0].give_up_lead()
    assert two[1].lead() == Lead("", 1, 2)
    with pytest.raises(NotLeaderError, match="no orchestrator leads"):
        note(two[0])


def test_a_long_transaction_is_a_sign_of_life(
    two: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, standby = two
    take(leader, "o1")
    seen = standby.lead()
    note(leader)
    assert standby.lead() == seen
    monkeypatch.setattr(repo, "LONG_S", -1.0)
    note(leader)
    with pytest.raises(NotLeaderError):
        standby.take_lead("o2", seen)


def test_nobody_takes_over_in_the_middle_of_a_transaction(two: tuple[Store, Store]) -> None:
    """Either all of it was written by the leader of then, or nothing."""
    old, new = two
    take(old, "o1")
    seen = new.lead()
    taken = threading.Event()

    def take_over() -> None:
        new.take_lead("o2", seen)
        taken.set()

    thread = threading.Thread(target=take_over)
    with old.transaction() as tx:
        tx.put_router_state(RouterState("r1", 1, 1))
        thread.start()
        assert not taken.wait(0.2)
        tx.put_router_state(RouterState("r1", 2, 2))
    thread.join()
    with new.transaction() as tx:
        assert tx.router_state("r1") == RouterState("r1", 2, 2)
    with pytest.raises(NotLeaderError):
        note(old)


def test_a_new_leader_remembers_nothing_of_before(two: tuple[Store, Store]) -> None:
    first, second = two
    take(first, "o1")
    with first.transaction() as tx:
        tx.outbox.enqueue("n1", b"one")
    take(second, "o2")
    with second.transaction() as tx:
        assert [row.body for row in tx.outbox.unsent()] == [b"one"]


def test_who_only_reads_cannot_write(store: Store) -> None:
    with pytest.raises(UnreachableError) as caught, store.reading() as tx:
        tx.add_event("x", "y")
    assert caught.value.code == "store-read-only"
    note(store)
    assert notes(store) == ["x"]


def test_who_reads_waits_for_no_writer(two: tuple[Store, Store]) -> None:
    leader, standby = two
    take(leader, "o1")
    with leader.transaction() as tx:
        tx.add_event("x", "y")
        assert notes(standby) == []
        assert standby.lead().holder == "o1"
    assert notes(standby) == ["x"]
