"""Failovers as journaled runs, by the engine on a real store."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.unit.orchestrator.world import World
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


def test_of_many_lost_routers_those_of_higher_priority_begin_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "AT_ONCE", 1)
    world = World(tmp_path)
    world.heard()
    world.service.apply(desired())
    world.settle()
    assert {view.node for view in world.service.routers()} == {"n1"}
    world.add_node("n3")
    world.service.apply(replace(desired(), nodes=(*desired().nodes, Node("n3", "z1"))))
    world.heard()
    failovers = Failovers(world.store, world.engine, lambda: None)
    failovers.tell(Losses({"n1": "node-silent"}, frozenset({"n2", "n3"})))
    order = []
    while failovers.turn():
        open_ones = {run.router for run in world.service.runs() if run.kind is RunKind.FAILOVER}
        order += sorted(open_ones - set(order))
    assert order == ["r2", "r1", "r3", "r4"]
