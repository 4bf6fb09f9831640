"""Which `ip -batch` lines wire a lab: one switch per segment, cables to machines and nodes.

Pure text; `vrha.lab.zone` runs it. Interfaces in process 1's network: the switches carry the
bridges' own names, `h3` is the cable to machine 3, `n0s1` that of node 0 into segment 1, `n0m` its
management cable.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Interface

from vrha.lab.scenario import Machine, Scenario

MGMT = "lab-mgmt"
MGMT_ADDRESS = IPv4Interface("172.31.255.1/24")
"""Where broker and orchestrator listen."""
_MGMT_MAC = "02:fe:00:00:00:01"
"""Of its own: a bridge takes that of one of its ports otherwise (net/bridge/br_stp_if.c), and what
comes in by that cable would reach this machine even when it is plugged into no switch."""
CARD = "eth0"
_EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
_SWITCH = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"


def node_address(index: int) -> IPv4Interface:
    """Management address of node number `index`, from 0."""
    return IPv4Interface((MGMT_ADDRESS.ip + 10 + index, MGMT_ADDRESS.network.prefixlen))


def fabric_lines(scenario: Scenario) -> list[str]:
    """For the network of process 1: switches and all cables."""
    lines = ["link set lo up", f"link add {MGMT} address {_MGMT_MAC} {_SWITCH}"]
    lines += [f"link add {segment} {_SWITCH}" for segment in scenario.segments]
    for index, machine in enumerate(scenario.machines):
        far = f"peer name {CARD} address {machine.mac} netns {machine.name}"
        lines += _cable(f"h{index}", far, machine.segment)
    for index, node in enumerate(scenario.nodes):
        lines += _cable(f"n{index}m", f"peer name mgmt0 netns {node}", MGMT)
        for number, segment in enumerate(scenario.segments):
            lines += _cable(f"n{index}s{number}", f"peer name eth{number} netns {node}", segment)
    lines += [f"link set {segment} up" for segment in scenario.segments]
    return [*lines, f"address add {MGMT_ADDRESS} dev {MGMT}", f"link set {MGMT} up"]


def _cable(near: str, far: str, switch: str) -> list[str]:
    return [f"link add {near} type veth {far}", f"link set {near} master {switch} up"]


def machine_settings(machine: Machine) -> Mapping[str, str]:
    """Sysctls of a machine; one with fixed addresses ignores router advertisements."""
    if machine.dhcp:
        return {}
    return {"net/ipv6/conf/default/accept_ra": "0"}


def machine_lines(machine: Machine) -> list[str]:
    """For a machine's own network: addresses and routes."""
    lines = ["link set lo up"]
    lines += [f"address add {address} dev lo" for address in machine.loopback]
    lines += [
        f"address add {address} dev {CARD}" + (" nodad" if address.version == 6 else "")
        for address in machine.addresses
    ]
    lines.append(f"link set {CARD} up")
    for gateway in machine.gateways:
        lines.append(f"route add {_EVERYTHING[gateway.version]} via {gateway} dev {CARD}")
    return lines + [f"route add {cidr} via {via} dev {CARD}" for cidr, via in machine.routes]


def node_lines(scenario: Scenario, index: int) -> list[str]:
    """For a node's own network: one bridge per segment with the cable into the fabric."""
    lines = ["link set lo up"]
    for number, segment in enumerate(scenario.segments):
        lines += [
            f"link add {segment} {_SWITCH}",
            f"link set eth{number} master {segment} up",
            f"link set {segment} up",
        ]
    return [*lines, f"address add {node_address(index)} dev mgmt0", "link set mgmt0 up"]
