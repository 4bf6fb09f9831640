"""Taking over from another orchestrator, and losing the lead to one; its clocks count nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.orchestrator.test_outbox import FakePublisher, fill, left
from tests.unit.orchestrator.world import DESIRED, World
from vrha import codec
from vrha.config.settings import LeaderSettings, OrchestratorSettings, StoreSettings
from vrha.errors import NotLeaderError, UnreachableError
from vrha.model.messages import Inventory
from vrha.model.runs import RunStatus
from vrha.orchestrator.app import Orchestrator
from vrha.orchestrator.leadership import Leadership
from vrha.store import Store

NOWHERE = ("amqp://nobody:nothing@127.0.0.1:1/none",)
NEVER = threading.Event()
QUICK = LeaderSettings(beat_s=0.05, ttl_s=0.3)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shared.db"


def made(folder: Path, name: str, url: str | None) -> Orchestrator:
    state_dir = folder / name
    state_dir.mkdir(exist_ok=True)
    store = StoreSettings.model_validate({"url": url})
    settings = OrchestratorSettings(state_dir=state_dir, name=name, store=store, leader=QUICK)
    return Orchestrator(settings, NOWHERE)


@pytest.fixture
def two(tmp_path: Path, url: str) -> Iterator[tuple[Orchestrator, Orchestrator]]:
    pair = (made(tmp_path, "o1", url), made(tmp_path, "o2", url))
    yield pair
    for one in pair:
        one._store.close()


def lead(one: Orchestrator) -> None:
    assert one._leadership.await_lead(NEVER)


def test_the_only_one_leads_at_once_after_kill_9(tmp_path: Path) -> None:
    """Who holds the state folder knows that the one before is dead."""
    patience = LeaderSettings(beat_s=1.0, ttl_s=600.0)
    for epoch in (1, 2):
        settings = OrchestratorSettings(state_dir=tmp_path, leader=patience)
        one = Orchestrator(settings, NOWHERE)
        lead(one)
        assert one._store.leader_epoch == epoch
        one._store.close()


def test_a_silent_leader_is_waited_for_and_then_followed(
    two: tuple[Orchestrator, Orchestrator],
) -> None:
    lead(two[0])
    began = time.monotonic()
    lead(two[1])
    assert time.monotonic() - began >= QUICK.ttl_s
    assert two[1].service.health().leader == "o2"
    with pytest.raises(NotLeaderError, match="orchestrator o2 leads"):
        two[0]._engine.tick()


def test_a_leader_that_lives_is_not_followed(two: tuple[Orchestrator, Orchestrator]) -> None:
    lead(two[0])
    over, waited = threading.Event(), threading.Event()
    keeper = threading.Thread(target=two[0]._leadership.keep, args=(over,))
    keeper.start()
    standby = threading.Thread(target=lambda: two[1]._leadership.await_lead(waited))
    standby.start()
    assert not waited.wait(4 * QUICK.ttl_s)
    waited.set()
    over.set()
    standby.join()
    keeper.join()
    assert two[0]._store.leader_epoch == 1


def test_who_gave_up_is_followed_at_once(two: tuple[Orchestrator, Orchestrator]) -> None:
    lead(two[0])
    two[0]._leadership.give_up()
    assert two[0]._store.leader_epoch is None
    patient = Leadership(two[1]._store, "o2", LeaderSettings(beat_s=1.0, ttl_s=600.0), sole=False)
    assert patient.await_lead(NEVER)
    assert two[1]._store.leader_epoch == 2


def test_who_stops_standing_by_does_not_lead(two: tuple[Orchestrator, Orchestrator]) -> None:
    lead(two[0])
    stop = threading.Event()
    stop.set()
    assert not two[1]._leadership.await_lead(stop)
    assert two[1]._store.leader_epoch is None


def test_who_is_not_sure_to_lead_sends_nothing(two: tuple[Orchestrator, Orchestrator]) -> None:
    """The row was read in time; then this process stood still."""
    publisher = FakePublisher()
    two[0]._publisher = publisher  # type: ignore[assignment]
    lead(two[0])
    fill(two[0], ("n1", b"one", None))
    with two[0]._store.transaction() as tx:
        (row,) = tx.outbox.unsent()
    deadline = time.monotonic() + 30
    while two[0]._leadership.sure_for() > 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UnreachableError) as caught:
        two[0]._is_settled(row)
    assert caught.value.code == "lead-unsure"
    # A beat says that nobody took over meanwhile.
    two[0]._leadership._confirmed = two[0]._store.beat()
    assert two[0]._is_settled(row)
    assert [body for _, body, _ in publisher.sent] == [b"one"]


def test_who_lost_the_lead_sends_nothing(two: tuple[Orchestrator, Orchestrator]) -> None:
    publisher = FakePublisher()
    two[0]._publisher = publisher  # type: ignore[assignment]
    lead(two[0])
    fill(two[0], ("n1", b"one", None))
    lead(two[1])
    with pytest.raises(NotLeaderError):
        two[0]._send_all()
    assert publisher.sent == []
    assert two[0]._leadership.sure_for() <= 0
    assert left(two[1]) == [b"one"]


def test_who_takes_over_sends_nothing_by_the_clock_of_the_one_before(
    two: tuple[Orchestrator, Orchestrator],
) -> None:
    """Its monotonic clock began at another moment: `expires` means nothing here."""
    lead(two[0])
    fill(two[0], ("n1", b"forward", 1e12), ("n1", b"back", None))
    with two[0]._store.transaction() as tx:
        assert len(tx.outbox.unsent()) == 2
    lead(two[1])
    assert two[1]._take_up(threading.Event())
    assert left(two[1]) == [b"back"]


def test_a_loser_that_takes_up_runs_gives_way(two: tuple[Orchestrator, Orchestrator]) -> None:
    lead(two[0])
    lead(two[1])
    over = threading.Event()
    assert not two[0]._take_up(over)
    assert over.is_set()


@pytest.mark.parametrize("base", [-1e6, 0.0, 1e6])
def test_an_open_run_ends_on_whatever_clock_it_is_taken_up(tmp_path: Path, base: float) -> None:
    world = World(tmp_path)
    world.serving()
    world.heard()
    world.service.restart_network("blue")
    world.step()
    world.now += base
    world.restart_orchestrator()
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")


def test_a_node_was_not_heard_in_the_future(tmp_path: Path) -> None:
    """The clock of the machine before was ahead: its nodes would look alive for as long."""
    world = World(tmp_path)
    world.heard()
    ahead = time.time() + 3600
    with world.store.transaction() as tx:
        for state in tx.node_states():
            tx.node_seen(_inventory(world, state.name), ahead)
    world.restart_orchestrator()
    with world.store.reading() as tx:
        assert all(state.seen_at <= time.time() for state in tx.node_states())


def _inventory(world: World, name: str) -> Inventory:
    message = codec.decode_message(world.nodes[name].inventory())
    assert isinstance(message, Inventory)
    return message


def test_reads_go_on_and_writes_name_who_leads(two: tuple[Orchestrator, Orchestrator]) -> None:
    lead(two[0])
    service = two[1].service
    health = service.health()
    assert (health.leads, health.leader, health.leader_epoch) == (False, "o1", 1)
    assert service.routers() == service.runs() == service.nodes() == service.events() == ()
    for change in (
        lambda: service.restart_network("blue"),
        lambda: service.apply(DESIRED),
        lambda: service.stop_rollout("x1"),
        lambda: service.undrain("n1"),
    ):
        with pytest.raises(NotLeaderError, match="orchestrator o1 leads"):
            change()


def test_it_stops_while_it_stands_by(two: tuple[Orchestrator, Orchestrator]) -> None:
    lead(two[0])
    stop = threading.Event()
    thread = threading.Thread(target=two[1].run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


def test_it_gives_the_lead_up_at_its_end_and_not_before(tmp_path: Path, url: str) -> None:
    one = made(tmp_path, "o1", url)
    observer = Store.open(url)
    stop = threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 20
    while observer.lead().beat < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert observer.lead().holder == "o1"
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert (observer.lead().holder, observer.lead().epoch) == ("", 1)
    observer.close()
