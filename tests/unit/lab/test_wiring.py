"""Lines for `ip -batch`."""

from __future__ import annotations

from vrha.lab.scenario import load_scenario
from vrha.lab.wiring import (
    MGMT_ADDRESS,
    fabric_lines,
    machine_lines,
    machine_settings,
    node_address,
    node_lines,
)

SEED = load_scenario("seed-10x10")


def test_every_machine_hangs_on_the_switch_of_its_segment() -> None:
    lines = fabric_lines(SEED)
    for index, machine in enumerate(SEED.machines):
        (add,) = [line for line in lines if line.startswith(f"link add h{index} ")]
        assert f"netns {machine.name}" in add
        assert f"address {machine.mac}" in add
        assert f"link set h{index} master {machine.segment} up" in lines


def test_every_node_reaches_every_segment_and_the_management_network() -> None:
    lines = fabric_lines(SEED)
    for index, node in enumerate(SEED.nodes):
        assert len([line for line in lines if line.endswith(f"netns {node}")]) == 3
        assert f"link set n{index}m master lab-mgmt up" in lines
        own = node_lines(SEED, index)
        for segment in SEED.segments:
            assert any(line.startswith(f"link add {segment} type bridge") for line in own)
            assert f"link set {segment} up" in own


def test_switches_have_no_spanning_tree_and_no_snooping() -> None:
    bridges = [line for line in fabric_lines(SEED) if "type bridge" in line]
    assert len(bridges) == 3
    for line in bridges:
        assert "stp_state 0 forward_delay 0 mcast_snooping 0" in line


def test_interface_names_fit_and_are_unique() -> None:
    names = [line.split()[2] for line in fabric_lines(load_scenario("dais-54")) if " add " in line]
    assert all(len(name) <= 15 for name in names if not name[0].isdigit())
    added = [
        line.split()[2]
        for line in fabric_lines(load_scenario("dais-54"))
        if line.startswith("link add")
    ]
    assert len(added) == len(set(added))


def test_machine_gets_both_default_routes_and_the_outside_its_own() -> None:
    vm1 = machine_lines(SEED.machines[0])
    assert "route add 0.0.0.0/0 via 10.1.1.1 dev eth0" in vm1
    assert "route add ::/0 via 2001:db8:1::1 dev eth0" in vm1
    assert "address add 2001:db8:1::11/64 dev eth0 nodad" in vm1
    outside = machine_lines(SEED.machines[-1])
    assert "route add 2001:db8:1::/64 via 2001:db8:ffff::10 dev eth0" in outside


def test_fixed_machines_ignore_router_advertisements() -> None:
    assert machine_settings(SEED.machines[0]) == {"net/ipv6/conf/default/accept_ra": "0"}


def test_node_addresses_are_apart_from_the_lab_s_own() -> None:
    addresses = {node_address(index).ip for index in range(200)}
    assert len(addresses) == 200
    assert MGMT_ADDRESS.ip not in addresses
    assert all(address in MGMT_ADDRESS.network for address in addresses)
