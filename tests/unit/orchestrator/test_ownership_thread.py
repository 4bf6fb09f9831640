"""The leader's thread on a real store and real datagrams; nodes are holders in the test's hands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vrha.config.settings import OwnershipSettings
from vrha.core.happenings import Limits
from vrha.core.ownership.holder import Holder
from vrha.core.ownership.timing import PROFILES
from vrha.fencing.clock import clock_ms
from vrha.fencing.endpoint import Endpoint
from vrha.fencing.keys import Keys, make, pairs
from vrha.model.ownership import Ack, Electorate, Grant, Message
from vrha.model.spec import InstanceRef
from vrha.model.state import RouterState
from vrha.orchestrator.engine import Engine
from vrha.orchestrator.failover import Failovers
from vrha.orchestrator.metrics import Metrics
from vrha.orchestrator.ownership import Ownership
from vrha.store import Store

VOTERS = ("n1",)
LEADER = "127.0.0.1:17460"


class Node:
    """A holder with a socket; it does what it is told, and answers."""

    def __init__(self, name: str, port: int, folder: Path) -> None:
        self.endpoint = Endpoint(name, f"127.0.0.1:{port}", {"o1": LEADER}, Keys(folder / name))
        timing = PROFILES["default"]
        self.holder = Holder(name, timing, Electorate(1, VOTERS), 1 << 32, {}, clock_ms())
        self.heard: list[Message] = []

    def live(self, until: Callable[[], bool], seconds: float = 10.0) -> bool:
        """Renew, be acknowledged and answer until the condition holds; whether it did."""
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                return False
            for command in self.holder.tick(clock_ms()):
                message = getattr(command, "message", None)
                if message is not None:
                    self.endpoint.send("o1", message)
                    for voter in self.holder.electorate.voters:
                        ack = Ack(voter, self.holder.node, message.incarnation, message.seq)
                        self.holder.receive(ack, clock_ms())
            for _, message in self.endpoint.receive():
                self.heard.append(message)
                for command in self.holder.receive(message, clock_ms()):
                    if hasattr(command, "message"):
                        self.endpoint.send("o1", command.message)
            time.sleep(0.005)
        return True

    def has(self, *keys: str) -> Callable[[], bool]:
        return lambda: set(self.holder.routers) == set(keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    list(make(tmp_path / "keys", pairs(["n1", "n2"], ["n1", "o1"], ["o1"])))
    return tmp_path / "keys"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(f"sqlite:///{tmp_path}/x.db")
    yield made
    made.close()


@pytest.fixture
def nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    made = Node("n1", 17461, folder), Node("n2", 17462, folder)
    yield made
    for node in made:
        node.endpoint.close()


class Leading:
    """The thread under test."""

    def __init__(self, store: Store, folder: Path, voters: tuple[str, ...] = VOTERS) -> None:
        settings = OwnershipSettings(
            listen=LEADER,
            voters=voters,
            peers={"n1": "127.0.0.1:17461", "n2": "127.0.0.1:17462"},
            keys=folder / "o1",
        )
        engine = Engine(store, Limits(), Metrics(), lambda: None)
        failovers = Failovers(store, engine, lambda: None)
        self.ownership = Ownership(store, "o1", settings, engine, failovers)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.ownership.run, args=(self.stop,))

    def __enter__(self) -> Ownership:
        self.thread.start()
        return self.ownership

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(10)
        self.ownership.close()


def serve(store: Store, node: str, generation: int) -> None:
    with store.transaction() as tx:
        epoch = (tx.router_state("r1") or RouterState("r1")).epoch + 1
        ref = InstanceRef("r1", generation)
        tx.put_router_state(RouterState("r1", epoch, generation, node, ref))


def book_rights(store: Store) -> dict[str, str]:
    with store.reading() as tx:
        book = tx.book(Electorate(1, VOTERS))
    return {key: right.node for key, right in book.rights.items()}


def test_what_serves_is_granted_and_what_does_not_is_taken_back(
    store: Store, folder: Path, nodes: tuple[Node, Node]
) -> None:
    n1, _ = nodes
    serve(store, "n1", 1)
    with Leading(store, folder):
        assert n1.live(n1.has("r1/1"))
        assert book_rights(store) == {"r1/1": "n1"}
        serve(store, "n1", 2)
        assert n1.live(n1.has("r1/2"))
        assert n1.live(lambda: book_rights(store) == {"r1/2": "n1"})
        with store.transaction() as tx:
            tx.drop_router_state("r1")
        assert n1.live(n1.has())
        assert n1.live(lambda: book_rights(store) == {})


def test_a_node_keeps_its_right_until_it_has_proved_to_have_let_go(
    store: Store, folder: Path, nodes: tuple[Node, Node]
) -> None:
    n1, n2 = nodes
    serve(store, "n1", 1)
    with Leading(store, folder):
        assert n1.live(n1.has("r1/1"))
        serve(store, "n2", 2)
        assert n2.live(n2.has("r1/2"))
        assert book_rights(store) == {"r1/1": "n1", "r1/2": "n2"}, "n1 was not heard since"
        assert n1.live(n1.has())
        assert n1.live(lambda: book_rights(store) == {"r1/2": "n2"})
        with store.reading() as tx:
            state = tx.router_state("r1")
        assert state is not None
        assert state.epoch > 2, "every change of owner raised the epoch of the router"


def test_the_next_leader_goes_on_from_the_store(
    store: Store, folder: Path, nodes: tuple[Node, Node]
) -> None:
    n1, _ = nodes
    serve(store, "n1", 1)
    with Leading(store, folder):
        assert n1.live(n1.has("r1/1"))
    store.take_lead("o1", store.lead())
    life = n1.holder.incarnation
    with Leading(store, folder):
        assert n1.live(lambda: n1.holder.leader_epoch == 1)
        assert n1.has("r1/1")()
    assert n1.holder.incarnation == life, "nothing lapsed"


def test_who_does_not_lead_grants_nothing(
    store: Store, folder: Path, nodes: tuple[Node, Node]
) -> None:
    n1, _ = nodes
    serve(store, "n1", 1)
    store.stand_by()
    with Leading(store, folder):
        assert not n1.live(n1.has("r1/1"), 0.5)
    assert not any(isinstance(message, Grant) for message in n1.heard)


def test_voters_follow_the_settings_one_by_one(
    store: Store, folder: Path, nodes: tuple[Node, Node]
) -> None:
    n1, _ = nodes
    serve(store, "n1", 1)
    with Leading(store, folder):
        assert n1.live(n1.has("r1/1"))
    store.take_lead("o1", store.lead())
    with Leading(store, folder, ("n1", "n2", "o1")):
        wanted = ("n1", "n2", "o1")
        assert n1.live(lambda: n1.holder.electorate.voters == wanted)
    seen = {m.electorate.voters for m in n1.heard if isinstance(m, Grant)}
    assert ("n1", "n2") in seen, "never two at once"
    with store.reading() as tx:
        assert tx.book(Electorate(1, VOTERS)).electorates[-1].voters == wanted
