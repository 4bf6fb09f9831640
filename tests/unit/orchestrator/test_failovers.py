"""Failovers as journaled runs, by the engine on a real store."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import World
from vrha.core.ownership.commands import Commit, Right
from vrha.core.ownership.wanted import Claim
from vrha.errors import RefusedError
from vrha.model.ownership import Electorate
from vrha.model.runs import RunKind
from vrha.model.spec import Desired, Network, Node, Router, Subnet
from vrha.orchestrator import failover
from vrha.orchestrator.failover import Failovers, Losses

PRIORITIES = {"r1": 0, "r2": 5, "r3": 0, "r4": -1}


def desired() -> Desired:
    names = range(1, 5)
    networks = tuple(
        Network(
            f"b{n}", f"br-{n}", (Subnet(ip_network(f"10.1.{n}.0/24"), ip_address(f"10.1.{n}.1")),)
        )
        for n in names
    )
    routers = tuple(
        Router(name, (f"b{name[1:]}",), zone="z1", priority=priority)
        for name, priority in PRIORITIES.items()
    )
    return Desired(networks, routers, (Node("n1", "z1"), Node("n2", "z2")))


def world_with_a_failover(folder: Path) -> tuple[World, Failovers]:
    """All routers are on n1, which is lost; n2 and n3 are not."""
    world = World(folder)
    world.heard()
    world.service.apply(desired())
    world.settle()
    assert {view.node for view in world.service.routers()} == {"n1"}
    world.add_node("n3")
    world.service.apply(replace(desired(), nodes=(*desired().nodes, Node("n3", "z1"))))
    world.heard()
    failovers = Failovers(world.store, world.engine, lambda: None)
    failovers.tell(Losses({"n1": "node-silent"}, frozenset({"n2", "n3"})))
    return world, failovers


def test_of_many_lost_routers_those_of_higher_priority_begin_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "AT_ONCE", 1)
    world, failovers = world_with_a_failover(tmp_path)
    order = []
    while failovers.turn():
        open_ones = {run.router for run in world.service.runs() if run.kind is RunKind.FAILOVER}
        order += sorted(open_ones - set(order))
    assert order == ["r2", "r1", "r3", "r4"]


def test_what_has_to_be_built_waits_until_there_is_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "BUILDING", 1)
    world, failovers = world_with_a_failover(tmp_path)

    def building() -> set[str]:
        while failovers.turn():
            pass
        with world.store.reading() as tx:
            return {c.instance.router for c in tx.claimants() if c.claim is Claim.LATER}

    assert building() == {"r2", "r1"}, "one for each node that is left"
    world.settle()
    assert building() == {"r3", "r4"}


def test_a_run_that_was_withdrawn_takes_nothing_over(tmp_path: Path) -> None:
    """What is given to it would be given beside the one that serves on."""
    world, failovers = world_with_a_failover(tmp_path)
    while failovers.turn():
        pass
    world.settle()
    with world.store.reading() as tx:
        claims = [each for each in tx.claimants() if each.claim is Claim.NOW]
    assert len(claims) == len(PRIORITIES)
    failovers.tell(Losses({}, frozenset({"n1", "n2", "n3"})))
    assert failovers.turn()
    rights = tuple(Right(each.key, each.node, 99) for each in claims)
    with pytest.raises(RefusedError, match="claims nothing"):
        world.engine.take_over(Commit(rights), claims)
    with world.store.reading() as tx:
        assert tx.book(Electorate(1, ("n1",))).rights == {}
