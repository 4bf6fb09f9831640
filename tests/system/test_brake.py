"""Half of the nodes fall silent at once; one node falls silent again and again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime

import pytest
import yaml

from tests.sim.nemesis import Loss
from tests.system.labnemesis import LabNemesis, is_calm
from tests.system.zonekit import Zone, wait_for, zone
from vrha.lab.scenario import Scenario, parse_scenario
from vrha.model.runs import RunKind

pytestmark = [pytest.mark.root, pytest.mark.system]

LONG_MS = 60_000.0
NODES = ("n1", "n2", "n3", "n4")


def four_nodes() -> Scenario:
    """Four routers, so that placement puts one on each node."""
    networks = [
        {
            "name": f"net{i}",
            "bridge": f"br-t{i}",
            "subnets": [{"cidr": f"10.{i}.0.0/24", "gateway": f"10.{i}.0.1"}],
            "hosts": [
                {"name": f"vm{i}", "mac": f"02:00:00:01:00:0{i}", "addresses": [f"10.{i}.0.10"]}
            ],
        }
        for i in range(1, 5)
    ]
    routers = [
        {
            "name": f"r{i}",
            "networks": [f"net{i}"],
            "uplink": {
                "bridge": "br-public",
                "addresses": [f"203.0.113.1{i}/24"],
                "gateways": ["203.0.113.1"],
            },
            "source_nat": [f"203.0.113.1{i}"],
        }
        for i in range(1, 5)
    ]
    nodes = [{"name": name, "zone": f"z{name[-1]}"} for name in NODES]
    outside = {"name": "outside", "bridge": "br-public", "addresses": ["203.0.113.1/24"]}
    document = {
        "zone": {"networks": networks, "routers": routers, "nodes": nodes},
        "lab": {"outside": [outside]},
    }
    return parse_scenario("four-nodes", yaml.safe_dump(document).encode())


@pytest.fixture
def four() -> Iterator[Zone]:
    with zone(four_nodes(), f"four-{os.getpid()}", watched=True) as made:
        wait_for(lambda: is_calm(made), 20, "a calm zone")
        yield made


def places(zone: Zone) -> dict[str, str]:
    return {router.name: router.node for router in zone.client.routers()}


def test_half_of_the_nodes_at_once_move_no_more_than_the_budget(four: Zone) -> None:
    before = places(four)
    # Two that are not both voters: with those gone nobody could decide anything.
    lost = {"n3", "n4"}
    assert lost & set(before.values()) == lost
    with LabNemesis(four.lab) as nemesis:
        began = datetime.now().astimezone()
        for name in sorted(lost):
            nemesis.strike(Loss(name, LONG_MS))
        wait_for(lambda: alarms(four), 10, "the alarm")
        alarm = alarms(four)[0]
        assert (datetime.fromisoformat(alarm.at) - began).total_seconds() < 2.5
        status = four.client.status()
        assert status.brake is not None
        assert status.brake.on
        # What had been decided before the second node was missed goes on, and nothing more.
        moved = {router for router, node in places(four).items() if node != before[router]}
        assert len({before[router] for router in moved}) <= 1
        nemesis.heal()
    wait_for(lambda: is_calm(four), 40, "a calm zone")
    wait_for(lambda: not four.client.runs(open_only=True), 40, "the end of all runs")
    from_nodes = {before[run.router] for run in four.client.runs() if run.kind is RunKind.FAILOVER}
    assert len(from_nodes) <= 1


def alarms(zone: Zone) -> list:
    return [event for event in zone.client.events(0, 1000) if event.kind == "brake-on"]


@pytest.mark.long
def test_a_node_that_flaps_loses_its_routers_and_gets_no_others(four: Zone) -> None:
    victim = places(four)["r1"]
    with LabNemesis(four.lab) as nemesis:
        for _ in range(3):
            nemesis.strike(Loss(victim, LONG_MS))
            wait_for(lambda: victim not in places(four).values(), 20, "others that serve")
            wait_for(lambda: condition(four, victim) == "silent", 20, "its silence")
            nemesis.heal()
            wait_for(lambda: condition(four, victim) != "silent", 20, "its return")
        assert condition(four, victim) == "suppressed"
        other = places(four)["r1"]
        count = list(places(four).values()).count(other)
        wait_for(lambda: not four.client.status().brake.on, 30, "the brake to come off")
        nemesis.strike(Loss(other, LONG_MS))
        wait_for(lambda: other not in places(four).values(), 30, "others that serve")
        assert victim not in places(four).values()
        assert count
    wait_for(lambda: is_calm(four), 40, "a calm zone")


def condition(zone: Zone, name: str) -> str:
    status = zone.client.status()
    return str(next(node.condition for node in status.nodes if node.name == name))
