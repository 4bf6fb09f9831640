"""A zone of many small routers: each has a network with one machine, which has a public address."""

from __future__ import annotations

from typing import Any

import yaml

from vrha.lab.scenario import Scenario, parse_scenario
from vrha.lab.zone import Lab
from vrha.model.probing import Stream
from vrha.model.spec import Desired
from vrha.probe.responder import Services

NODES = ("n1", "n2", "n3")
MOST = 120
"""As many as have two addresses each in the uplink's network."""
OUTSIDE = "203.0.113.1"
_UPLINK = "br-public"
_ANSWER, _ECHO, _ = Services().ports


def scenario(number: int) -> Scenario:
    """The zone with its machines; `number` routers, at most `MOST`."""
    zone = {
        "nodes": [{"name": name} for name in NODES],
        "networks": [_network(place) for place in range(number)],
        "routers": [_router(place) for place in range(number)],
    }
    lab = {"outside": [{"name": "outside", "bridge": _UPLINK, "addresses": [f"{OUTSIDE}/24"]}]}
    document = yaml.safe_dump({"zone": zone, "lab": lab})
    return parse_scenario(f"drain-{number}", document.encode())


def streams(lab: Lab, desired: Desired, interval_ms: float) -> tuple[Stream, ...]:
    """Through every router: ICMP and UDP in both directions, and a long connection each way.

    The names end in `@` and the name of the router.
    """
    outer = lab.netns_path("outside")
    found: list[Stream] = []
    for place, router in enumerate(desired.routers):
        inner = lab.netns_path(_machine(place))
        public = str(router.static_nat[0].public)
        ways = (("egress", OUTSIDE, inner), ("ingress", public, outer))
        for way, target, path in ways:
            name = f"{way}_{{}}@{router.name}"
            found += [
                Stream(name.format("icmp"), "icmp", target, _ANSWER, path, interval_ms),
                Stream(name.format("udp"), "udp", target, _ANSWER, path, interval_ms),
                Stream(name.format("tcp"), "tcp-echo", target, _ECHO, path, 5 * interval_ms),
            ]
    return tuple(found)


def _machine(place: int) -> str:
    return f"vm{place + 1}"


def _network(place: int) -> dict[str, Any]:
    near = f"10.10.{place}"
    return {
        "name": f"net{place + 1}",
        "bridge": f"br-t{place + 1}",
        "subnets": [{"cidr": f"{near}.0/24", "gateway": f"{near}.1"}],
        "hosts": [
            {
                "name": _machine(place),
                "mac": f"02:00:00:02:00:{place:02x}",
                "addresses": [f"{near}.11"],
            }
        ],
    }


def _router(place: int) -> dict[str, Any]:
    own, public = f"203.0.113.{2 * place + 10}", f"203.0.113.{2 * place + 11}"
    return {
        "name": f"r{place + 1:03}",
        "networks": [f"net{place + 1}"],
        "uplink": {
            "bridge": _UPLINK,
            "addresses": [f"{own}/24", f"{public}/32"],
            "gateways": [OUTSIDE],
        },
        "source_nat": [own],
        "static_nat": [{"public": public, "private": f"10.10.{place}.11"}],
        "ingress": [
            {
                "address": public,
                "rules": [
                    {"protocol": "tcp", "ports": _ECHO},
                    {"protocol": "udp", "ports": _ANSWER},
                    {"protocol": "icmp", "icmp_type": 8},
                ],
            }
        ],
    }
