"""One view of a router's leases: whose word counts, and who is given it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import DESIRED, World
from vrha import codec
from vrha.bus.topology import MAX_DOWN
from vrha.core.steps import outline
from vrha.model.messages import Leases, PutLeases
from vrha.model.runs import RestartOptions, RunStatus, Strategy
from vrha.model.spec import InstanceRef
from vrha.model.steps import Build
from vrha.orchestrator.leases import APART_S, Copies

ONE = "1795343968 02:00:00:00:09:01 10.1.1.154 * *\n"
TWO = ONE + "1795343968 02:00:00:00:09:02 10.1.1.155 * *\n"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.serving()
    yield made
    made.store.close()


def told(world: World, body: str = ONE, number: int = 1) -> Leases:
    """As the node of the instance that serves would tell it."""
    owner = world.owner()
    return Leases(world.home_of(owner).name, owner, 1, "life", number, body)


def say(world: World, message: Leases) -> bool:
    """Whether the orchestrator believed it."""
    before = world.metrics.text()
    world.receive(codec.encode(message))
    return world.metrics.text() == before


def kept(world: World) -> str:
    owner = world.owner()
    with world.store.transaction() as tx:
        return tx.leases.of(owner.router, owner)


def test_the_newest_of_the_one_that_serves_is_kept(world: World) -> None:
    assert kept(world) == ""
    assert say(world, told(world, ONE, 1))
    assert say(world, told(world, TWO, 2))
    assert kept(world) == TWO
    # A message that was delivered again.
    assert not say(world, told(world, ONE, 1))
    assert kept(world) == TWO
    # The agent has started again: it counts anew.
    assert say(world, replace(told(world, ONE, 1), agent="next life"))
    assert kept(world) == ONE


def test_nobody_else_is_believed(world: World) -> None:
    assert say(world, told(world, TWO))
    good = told(world, ONE, 9)
    older = InstanceRef(good.instance.router, good.instance.generation - 1)
    stranger = InstanceRef("nobody", 1)
    for bad in (
        replace(good, node="n2" if good.node == "n1" else "n1"),
        replace(good, instance=older),
        replace(good, instance=replace(older, generation=99)),
        replace(good, instance=stranger),
        replace(good, epoch=0),
    ):
        assert not say(world, bad), bad
    assert kept(world) == TWO


def test_what_no_dnsmasq_writes_is_left_out(world: World) -> None:
    assert say(world, told(world, "dhcp-script=/bin/sh\n" + ONE + "\0\n"))
    assert kept(world) == ONE


@pytest.mark.parametrize("strategy", [Strategy.SERIAL, Strategy.PARALLEL, Strategy.HANDOVER])
def test_what_is_built_elsewhere_gets_them(world: World, strategy: Strategy) -> None:
    assert say(world, told(world, TWO))
    home = world.home_of(world.owner()).name
    other = "n2" if home == "n1" else "n1"
    run = world.service.restart_network("blue", RestartOptions(strategy, node=other))
    world.settle()
    assert world.last_run() == (RunStatus.DONE, "")
    owner = world.owner()
    assert world.home_of(owner).name == other
    assert world.nodes[other].instances[owner].leases == TWO
    # Only what was sent has them, neither the journal nor what is shown.
    with world.store.transaction() as tx:
        journaled = tx.run(run.id)
    assert journaled is not None
    builds = [r.step for r in journaled.steps if isinstance(r.step, Build)]
    assert [step.leases for step in builds] == [""]
    assert outline(builds[0]) == builds[0]
    # Until the new one is heard, what the old one said is all that is known.
    assert kept(world) == TWO
    assert say(world, told(world, ONE))
    assert kept(world) == ONE


def test_beside_the_old_one_they_are_copied_there(world: World) -> None:
    assert say(world, told(world, TWO))
    home = world.home_of(world.owner()).name
    world.service.restart_network("blue", RestartOptions(Strategy.PARALLEL, node=home))
    world.settle()
    assert world.nodes[home].instances[world.owner()].leases == ""


def test_the_one_that_is_being_built_is_heard_before_it_serves(world: World) -> None:
    home = world.home_of(world.owner()).name
    assert say(world, told(world, ONE))
    other = "n2" if home == "n1" else "n1"
    world.service.restart_network("blue", RestartOptions(Strategy.PARALLEL, node=other))
    new = InstanceRef("r1", world.owner().generation + 1)
    assert say(world, Leases(other, new, 2, "life", 1, TWO))
    assert not say(world, Leases(home, new, 2, "life", 2, TWO))
    assert kept(world) == ONE
    world.settle()
    assert world.owner() == new
    assert kept(world) == TWO


def test_a_removed_router_leaves_no_leases(world: World) -> None:
    assert say(world, told(world))
    world.service.apply(replace(DESIRED, routers=()))
    world.settle()
    world.service.apply(replace(DESIRED, routers=()))
    with world.store.transaction() as tx:
        assert tx.leases.of("r1", None) == ""


def test_a_standby_is_given_every_change_but_not_too_often(world: World) -> None:
    now = 100.0
    copies = Copies(lambda: now)
    standby = InstanceRef("r1", 9)

    def pushed() -> list[str]:
        sent = copies.turn(world.store, lambda tx, router: ("n2", standby))
        with world.store.transaction() as tx:
            rows = tx.outbox.unsent()
            tx.outbox.mark_sent([row.id for row in rows])
        messages = [codec.decode_message(row.body, MAX_DOWN) for row in rows]
        assert all(isinstance(m, PutLeases) and m.instance == standby for m in messages)
        assert sent is bool(messages)
        return [m.body for m in messages if isinstance(m, PutLeases)]

    copies.changed("r1")
    assert pushed() == []
    assert say(world, told(world, ONE, 1))
    copies.changed("r1")
    assert pushed() == [ONE]
    assert say(world, told(world, TWO, 2))
    copies.changed("r1")
    assert pushed() == []
    now += APART_S
    assert pushed() == [TWO]
    now += APART_S
    copies.changed("r1")
    assert pushed() == []
