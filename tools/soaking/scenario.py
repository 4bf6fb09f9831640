"""The zone of the soak: five nodes, four routers with both kinds of NAT, one with a DHCP client,
one with a standby."""

from __future__ import annotations

import json
from typing import Any

from vrha.lab.scenario import Scenario, parse_scenario
from vrha.model.spec import Policy

ROUTERS = ("r1", "r2", "r3", "r4")
NODES = ("n1", "n2", "n3", "n4", "n5")
OUTSIDE, UPLINK = "203.0.113.1", "br-public"
STANDBY = "r2"
GUEST, GUEST_NETWORK, GUEST_MAC = "guest", "net3", "02:00:00:01:00:f0"
FORGIVING = {"fail_back_s": 0, "flap_suppress": 1e6, "window_s": 0.5}
"""Faults come so fast that no node would be trusted any more after some of them."""


def gateway(number: int) -> str:
    """Of the network of router `number`, from 1."""
    return f"10.{number}.0.1"


def hidden_address(number: int) -> str:
    """The public address behind which a router hides its machines."""
    return f"203.0.113.{10 * number}"


def public_address(number: int) -> str:
    """The public address of the one machine that has its own."""
    return f"203.0.113.{10 * number + 1}"


def scenario() -> Scenario:
    """Machines of router N: `vmN` has a public address of its own, `hidN` none."""
    numbers = range(1, len(ROUTERS) + 1)
    hosts: list[dict[str, Any]] = [
        {"name": host["name"], "network": network["name"]}
        for network in map(_network, numbers)
        for host in network["hosts"]
    ]
    guest = {"name": GUEST, "network": GUEST_NETWORK, "mac": GUEST_MAC, "dhcp": True}
    document = {
        "zone": {
            "networks": [_network(number) for number in numbers],
            "routers": [_router(number) for number in numbers],
            "nodes": [{"name": name, "zone": f"z{name[-1]}"} for name in NODES],
        },
        "lab": {
            "outside": [{"name": "outside", "bridge": UPLINK, "addresses": [f"{OUTSIDE}/24"]}],
            "hosts": [*hosts, guest],
        },
    }
    return parse_scenario("soak", json.dumps(document).encode())


def _network(number: int) -> dict[str, Any]:
    names = (f"vm{number}", f"hid{number}")
    return {
        "name": f"net{number}",
        "bridge": f"br-t{number}",
        "subnets": [
            {
                "cidr": f"10.{number}.0.0/24",
                "gateway": gateway(number),
                "dhcp": {"first": f"10.{number}.0.100", "last": f"10.{number}.0.199"},
            }
        ],
        "hosts": [
            {
                "name": name,
                "mac": f"02:00:00:01:0{number}:0{i}",
                "addresses": [f"10.{number}.0.{i}"],
            }
            for i, name in enumerate(names, 2)
        ],
    }


def _router(number: int) -> dict[str, Any]:
    own, hidden = public_address(number), hidden_address(number)
    rules = [{"protocol": "tcp", "ports": port} for port in (7, 8, 9)]
    rules += [{"protocol": "udp", "ports": port} for port in (7, 8)]
    return {
        "name": f"r{number}",
        "networks": [f"net{number}"],
        "policy": Policy.STANDBY if f"r{number}" == STANDBY else Policy.RESURRECT,
        "uplink": {
            "bridge": UPLINK,
            "addresses": [f"{hidden}/24", f"{own}/32"],
            "gateways": [OUTSIDE],
        },
        "source_nat": [hidden],
        "static_nat": [{"public": own, "private": f"10.{number}.0.2"}],
        "ingress": [{"address": own, "rules": [*rules, {"protocol": "icmp", "icmp_type": 8}]}],
    }
