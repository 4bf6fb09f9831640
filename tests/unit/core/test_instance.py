"""Instances: MACs, ports, and what counts as a change."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from vrha.core.instance import instance_spec, mac_of, reconfigured, same_service, same_shape
from vrha.model.spec import Desired, InstanceRef, Network, Policy, Router, Subnet, Uplink

BLUE = Network("blue", "br-blue", (Subnet(ip_network("10.1.1.0/24"), ip_address("10.1.1.1")),))
RED = Network("red", "br-red", (Subnet(ip_network("10.1.2.0/24"), ip_address("10.1.2.1")),))
UPLINK = Uplink("br-public", (ip_interface("203.0.113.10/24"),), (ip_address("203.0.113.1"),))
ROUTER = Router("r1", ("blue", "red"), UPLINK)
DESIRED = Desired((BLUE, RED), (ROUTER,))


def test_ports_follow_the_networks_and_the_uplink_comes_last() -> None:
    spec = instance_spec(DESIRED, ROUTER, InstanceRef("r1", 3), 5)
    assert [(p.name, p.network, p.bridge) for p in spec.ports] == [
        ("n0", "blue", "br-blue"),
        ("n1", "red", "br-red"),
        ("u0", "", "br-public"),
    ]
    assert spec.ports[0].addresses == (ip_interface("10.1.1.1/24"),)
    assert spec.uplink is spec.ports[2]


def test_macs_are_local_unicast_stable_and_differ_between_generations() -> None:
    one, two = InstanceRef("r1", 1), InstanceRef("r1", 2)
    assert mac_of(one, "n0") == mac_of(one, "n0")
    assert len({mac_of(one, "n0"), mac_of(one, "u0"), mac_of(two, "n0")}) == 3
    assert int(mac_of(one, "n0")[:2], 16) & 0x03 == 0x02


def test_generation_epoch_macs_and_placement_are_no_change_of_service() -> None:
    one = instance_spec(DESIRED, ROUTER, InstanceRef("r1", 1), 1)
    two = instance_spec(
        DESIRED, replace(ROUTER, zone="z9", policy=Policy.STANDBY), InstanceRef("r1", 2), 2
    )
    assert same_service(one, two)
    routed = replace(ROUTER, source_nat=(ip_address("203.0.113.10"),))
    assert not same_service(one, instance_spec(DESIRED, routed, InstanceRef("r1", 1), 1))


def test_other_rules_are_done_in_place_other_ports_are_not() -> None:
    live = instance_spec(DESIRED, ROUTER, InstanceRef("r1", 1), 1)
    routed = replace(ROUTER, source_nat=(ip_address("203.0.113.10"),))
    wanted = instance_spec(DESIRED, routed, InstanceRef("r1", 2), 2)
    assert same_shape(live, wanted)
    became = reconfigured(live, wanted)
    assert became.ref == live.ref
    assert became.epoch == wanted.epoch
    assert [p.mac for p in became.ports] == [p.mac for p in live.ports]
    assert became.router.source_nat == routed.source_nat
    fewer = instance_spec(DESIRED, replace(ROUTER, networks=("blue",)), InstanceRef("r1", 2), 2)
    assert not same_shape(live, fewer)
