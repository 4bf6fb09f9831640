"""A zone of hundreds of routers on three nodes; one machine outside hears them all."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import yaml

from vrha.lab.scenario import Scenario, parse_scenario

NODES = ("n1", "n2", "n3")
MOST = 1000
UPLINK = "br-public"
_PUBLIC = IPv4Network("198.18.0.0/20")
_OUTSIDE = _PUBLIC.network_address + 1
_FIRST = 256


def scenario(number: int, policy: str = "") -> Scenario:
    """The zone; each router has two addresses on the uplink, rules and a network with a host."""
    zone = {
        "nodes": [{"name": name, "zone": f"z{name}", "capacity": 2 * MOST} for name in NODES],
        "networks": [_network(place) for place in range(number)],
        "routers": [_router(place, policy) for place in range(number)],
    }
    outside = {"name": "outside", "bridge": UPLINK, "addresses": [f"{_OUTSIDE}/20"]}
    document = yaml.dump({"zone": zone, "lab": {"outside": [outside], "hosts": []}}, Dumper=Fast)
    return parse_scenario(f"mass-{number}", document.encode())


Fast: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def own_address(place: int) -> str:
    """The address on the uplink of the router of that place."""
    return str(_PUBLIC.network_address + _FIRST + 2 * place)


def _near(place: int) -> IPv4Address:
    return IPv4Address("10.0.0.0") + 256 * place


def _network(place: int) -> dict[str, Any]:
    near = _near(place)
    mac = f"02:00:00:03:{place >> 8:02x}:{place & 255:02x}"
    return {
        "name": f"net{place + 1}",
        "bridge": f"br-t{place + 1}",
        "subnets": [{"cidr": f"{near}/24", "gateway": str(near + 1)}],
        "hosts": [{"name": f"vm{place + 1}", "mac": mac, "addresses": [str(near + 11)]}],
    }


def _router(place: int, policy: str) -> dict[str, Any]:
    own, public = own_address(place), str(_PUBLIC.network_address + _FIRST + 2 * place + 1)
    rules: list[dict[str, Any]] = [{"protocol": "tcp", "ports": port} for port in (22, 80, 443)]
    rules.append({"protocol": "icmp", "icmp_type": 8})
    router = {
        "name": f"r{place + 1:04}",
        "networks": [f"net{place + 1}"],
        "uplink": {
            "bridge": UPLINK,
            "addresses": [f"{own}/20", f"{public}/32"],
            "gateways": [str(_OUTSIDE)],
        },
        "source_nat": [own],
        "static_nat": [{"public": public, "private": str(_near(place) + 11)}],
        "ingress": [{"address": public, "rules": rules}],
    }
    return router | ({"policy": policy} if policy else {})
