"""The leader's thread on a real store and real datagrams; nodes are holders in the test's hands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vrha.config.settings import OwnershipSettings
from vrha.core import plan
from vrha.core.happenings import Limits
from vrha.core.ownership.commands import Commit
from vrha.core.ownership.holder import Holder
from vrha.core.ownership.timing import PROFILES
from vrha.core.ownership.wanted import Claimant
from vrha.core.plan import Live
from vrha.fencing.clock import clock_ms
from vrha.fencing.endpoint import Endpoint
from vrha.fencing.keys import Keys, make, pairs
from vrha.model.ownership import Ack, Depose, Deposed, Electorate, Grant, Message
from vrha.model.spec import Desired, InstanceRef, InstanceSpec, Router
from vrha.model.spec import Node as Node_
from vrha.model.state import RouterState
from vrha.orchestrator import ownership
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
                if isinstance(message, Depose):
                    self.endpoint.send("o1", self.deposed(message))
                for command in self.holder.receive(message, clock_ms()):
                    if hasattr(command, "message"):
                        self.endpoint.send("o1", command.message)
            time.sleep(0.005)
        return True

    def deposed(self, asked: Depose) -> Deposed:
        """As a voter that has not heard the node for long."""
        name, epoch, attempt = self.holder.node, asked.leader_epoch, asked.attempt
        return Deposed(name, epoch, attempt, asked.node, asked.incarnation, 5000.0, 0)

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
        self.engine = Engine(store, Limits(), Metrics(), lambda: None)
        failovers = Failovers(store, self.engine, lambda: None)
        self.ownership = Ownership(store, "o1", settings, self.engine, failovers)
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


def test_between_two_handovers_nodes_are_heard(
    store: Store, folder: Path, nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those that are to take over would seem silent, and the others get nothing."""
    monkeypatch.setattr(ownership, "AT_ONCE", 1)
    n1, n2 = nodes
    names = [f"r{number}" for number in range(1, 5)]
    with store.transaction() as tx:
        tx.put_desired(Desired((), (), tuple(Node_(f"n{number}") for number in (1, 2, 3))))
        for name in names:
            tx.put_router_state(RouterState(name, 1, 2, "n1", InstanceRef(name, 1)))
    leading = Leading(store, folder, ("n2",))
    order: list[str] = []
    take_over, receive = leading.engine.take_over, Endpoint.receive

    def taking(commit: Commit, claimants: Sequence[Claimant]) -> None:
        if claimants:
            order.append("taken")
        take_over(commit, claimants)

    def receiving(endpoint: Endpoint) -> Iterator[tuple[str, Message]]:
        if endpoint is leading.ownership._endpoint:
            order.append("heard")
        yield from receive(endpoint)

    monkeypatch.setattr(leading.engine, "take_over", taking)
    monkeypatch.setattr(Endpoint, "receive", receiving)
    has_all = n2.has(*(f"{name}/2" for name in names))
    living = threading.Thread(target=n2.live, args=(has_all, 30.0))
    with leading:
        living.start()
        assert n1.live(n1.has(*(f"{name}/1" for name in names)))
        with store.transaction() as tx:
            for name in names:
                spec = InstanceSpec(InstanceRef(name, 2), 2, Router(name, ()), (), ())
                run = plan.promote(f"run-{name}", InstanceRef(name, 1), Live("n2", spec), 2)
                leading.engine.start(tx, run)
        living.join()
    assert has_all()
    taken = [place for place, what in enumerate(order) if what == "taken"]
    assert len(taken) == len(names)
    assert all(order[place + 1] == "heard" for place in taken[:-1])
