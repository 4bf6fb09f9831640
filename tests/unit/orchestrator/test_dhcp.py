"""Two DHCP servers of one network: where they go, and what each hears of the other's leases."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import BLUE, DESIRED, ROUTER, World
from vrha import codec
from vrha.bus.topology import MAX_DOWN
from vrha.core.dhcp import seconds
from vrha.model.health import NodeHealth
from vrha.model.messages import Leases, PutLeases
from vrha.model.runs import RestartOptions, RunStatus
from vrha.model.spec import Desired, DhcpRange, Network, Node, Subnet
from vrha.model.state import RouterState
from vrha.model.steps import Build
from vrha.orchestrator.dhcp import AGAIN_S, APART_S, LOOK_S, Exchange, Spread
from vrha.orchestrator.failover import Failovers, Losses

ONE = "1795343968 02:00:00:00:09:01 10.1.1.154 * *\n"
TWO = "1795343969 02:00:00:00:09:02 10.1.1.105 * *\n"
RANGE = DhcpRange(ip_address("10.1.1.100"), ip_address("10.1.1.199"))
SUBNET = Subnet(ip_network("10.1.1.0/24"), ip_address("10.1.1.1"), RANGE)
SHARED: Network = replace(
    BLUE, subnets=(SUBNET,), dhcp_per_network=2, dhcp_peer_address=ip_address("10.1.1.2")
)
BOTH = Desired((SHARED,), (ROUTER, *seconds((SHARED,), (ROUTER,))), DESIRED.nodes)
SECOND = "dhcp-blue"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.serving()
    made.service.apply(BOTH)
    made.settle()
    yield made
    made.store.close()


def state(world: World, name: str) -> RouterState:
    with world.store.transaction() as tx:
        found = tx.router_state(name)
    assert found is not None
    return found


def say(world: World, name: str, body: str, number: int = 1) -> None:
    """What the agent of the instance that serves tells of its leases."""
    found = state(world, name)
    assert found.active is not None
    message = Leases(found.node, found.active, found.epoch, "life", number, body)
    world.receive(codec.encode(message))


def other_node(node: str) -> str:
    return "n2" if node == "n1" else "n1"


def test_the_second_is_placed_elsewhere_and_shown(world: World) -> None:
    assert state(world, SECOND).node == other_node(state(world, "r1").node)
    (network,) = world.service.networks()
    assert network.router == "r1"
    assert network.second_dhcp == f"10.1.1.2 on {state(world, SECOND).node}"


def test_it_goes_with_the_setting(world: World) -> None:
    world.service.apply(DESIRED)
    world.settle()
    assert state(world, SECOND).active is None
    assert [router.name for router in world.service.routers()] == ["r1"]
    assert world.service.networks()[0].second_dhcp == ""


def test_with_one_node_they_share_it_until_there_is_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.serving()
    home = state(world, "r1").node
    only = tuple(node for node in BOTH.nodes if node.name == home)
    world.service.apply(replace(BOTH, nodes=only))
    world.settle()
    assert state(world, SECOND).node == home
    now = 100.0
    spread = Spread(lambda: now)
    assert not spread.look(world.store, world.engine.start)
    now += LOOK_S
    world.service.apply(replace(BOTH, nodes=(Node("n1", "z1"), Node("n2", "z2"))))
    world.settle()
    assert spread.look(world.store, world.engine.start)
    # Not while that is going on, and not once they are apart.
    now += AGAIN_S
    assert not spread.look(world.store, world.engine.start)
    world.settle()
    assert state(world, SECOND).node == other_node(home)
    now += AGAIN_S
    assert not spread.look(world.store, world.engine.start)
    world.store.close()


@pytest.mark.parametrize("lost", ["r1", SECOND])
def test_a_failover_keeps_them_apart(world: World, lost: str) -> None:
    world.add_node("n9")
    world.heard()
    world.service.apply(replace(BOTH, nodes=(*BOTH.nodes, Node("n9", "z3"))))
    node = state(world, lost).node
    other = other_node(node)
    with world.store.transaction() as tx:
        # But for the other server, any node would be better than this one.
        tx.node_health.put(NodeHealth("n9", fail_back_until=time.time() + 900))
    failovers = Failovers(world.store, world.engine, lambda: None)
    failovers.tell(Losses({node: "node-silent"}, frozenset({"n9", other})))
    assert failovers.turn()
    with world.store.transaction() as tx:
        run = tx.open_run_of(lost)
    assert run is not None
    assert [r.step.node for r in run.steps if isinstance(r.step, Build)] == ["n9"]


def test_what_is_built_gets_the_leases_of_both(world: World) -> None:
    say(world, "r1", ONE)
    say(world, SECOND, TWO)
    for name in (SECOND, "r1"):
        node = other_node(state(world, name).node)
        run = world.service.move_router(name, RestartOptions(node=node))
        world.settle()
        assert world.service.run(run.id).status is RunStatus.DONE
        found = state(world, name)
        assert found.node == node
        assert found.active is not None
        assert world.nodes[node].instances[found.active].leases == TWO + ONE


def test_each_is_told_of_the_other_s_leases(world: World) -> None:
    now = 100.0
    exchange = Exchange(lambda: now)

    def told() -> dict[str, str]:
        sent = exchange.turn(world.store)
        with world.store.transaction() as tx:
            rows = tx.outbox.unsent()
            tx.outbox.mark_sent([row.id for row in rows])
        found = {}
        for message in (codec.decode_message(row.body, MAX_DOWN) for row in rows):
            assert isinstance(message, PutLeases)
            assert message.beside
            place = state(world, message.instance.router)
            assert (message.node, message.instance) == (place.node, place.active)
            found[message.instance.router] = message.body
        assert sent is bool(found)
        return found

    # One that leads anew tells everybody.
    assert told() == {"r1": "", SECOND: ""}
    say(world, "r1", ONE)
    exchange.changed("r1")
    # Not too often; it is not forgotten.
    assert told() == {}
    now += APART_S
    assert told() == {SECOND: ONE}
    now += APART_S
    exchange.changed("r1")
    assert told() == {}
    say(world, SECOND, TWO)
    exchange.changed(SECOND)
    assert told() == {"r1": TWO}
    # A new instance has heard nothing.
    world.service.restart_network("blue")
    world.settle()
    now += APART_S
    exchange.changed("r1")
    assert told() == {"r1": TWO}
    now += AGAIN_S
    assert told() == {"r1": TWO, SECOND: ONE}
