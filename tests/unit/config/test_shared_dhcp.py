"""Two DHCP servers in the desired state: what is read, and what cannot be."""

from __future__ import annotations

import pytest

from vrha.config.desired import parse, to_document, to_yaml
from vrha.errors import SpecError

GOOD = """\
networks:
  - name: web
    bridge: br-web
    subnets:
      - {cidr: 10.1.0.0/24, gateway: 10.1.0.1, dhcp: {first: 10.1.0.100, last: 10.1.0.200}}
      - {cidr: 10.3.0.0/24, gateway: 10.3.0.1}
      - {cidr: "fd00:1::/64", gateway: "fd00:1::1"}
    hosts:
      - {name: vm1, mac: "52:54:00:00:00:01", addresses: [10.1.0.11]}
      - {name: vm2, mac: "52:54:00:00:00:02", addresses: [10.1.0.12]}
    dhcp_per_network: 2
    dhcp_peer_address: 10.1.0.2
routers:
  - name: r1
    networks: [web]
    uplink: {bridge: br-ext, addresses: [203.0.113.10/24]}
    port_forwards:
      - {public: 203.0.113.10, protocol: tcp, ports: 80, private: 10.1.0.11}
    backend: iptables
    zone: a
    labels: {rack: b}
"""
PEER = "dhcp_peer_address: 10.1.0.2"
AT, NETWORK = "networks[0].dhcp_peer_address", "networks[0]"


def test_the_second_server_is_kept_as_a_router_where_the_network_s_may_be() -> None:
    desired = parse(GOOD, "zone.yaml")
    router, second = desired.routers
    assert (second.name, second.dhcp_of, second.networks) == ("dhcp-web", "web", ("web",))
    assert (second.zone, second.labels, second.backend) == (
        router.zone,
        router.labels,
        router.backend,
    )
    assert desired.router_of("web") == router
    assert parse(to_yaml(desired), "again") == desired
    assert [found["name"] for found in to_document(desired)["routers"]] == ["r1"]


def test_one_is_the_default_and_left_out() -> None:
    alone = GOOD.replace(f"    dhcp_per_network: 2\n    {PEER}\n", "")
    desired = parse(alone, "zone.yaml")
    assert [router.name for router in desired.routers] == ["r1"]
    assert "dhcp_per_network" not in to_document(desired)["networks"][0]


@pytest.mark.parametrize(
    ("old", "new", "path", "what"),
    [
        ("dhcp_per_network: 2", "dhcp_per_network: 3", f"{NETWORK}.dhcp_per_network", "1 to 2"),
        ("dhcp_per_network: 2", "dhcp_per_network: 1", AT, "with dhcp_per_network: 2 only"),
        (PEER, "lease_seconds: 600", NETWORK, "needs dhcp_peer_address"),
        (PEER, "dhcp_peer_address: x", AT, "must be an IPv4 or IPv6 address"),
        (PEER, "dhcp_peer_address: fd00:1::2", AT, "must be an IPv4 address"),
        (PEER, "dhcp_peer_address: 10.9.0.2", AT, "in no subnet"),
        (PEER, "dhcp_peer_address: 10.1.0.1", AT, "is the gateway's"),
        (PEER, "dhcp_peer_address: 10.1.0.255", AT, "network or broadcast"),
        (PEER, "dhcp_peer_address: 10.1.0.100", AT, "in the DHCP range"),
        (PEER, "dhcp_peer_address: 10.1.0.12", AT, "the address of a host"),
        (PEER, "dhcp_peer_address: 10.3.0.2", AT, "needs a DHCP range of two"),
        (", last: 10.1.0.200", ", last: 10.1.0.100", AT, "needs a DHCP range of two"),
        (
            "gateway: 10.3.0.1",
            "gateway: 10.3.0.1, dhcp: {first: 10.3.0.5, last: 10.3.0.9}",
            AT,
            "10.3.0.0/24 has a DHCP range as well",
        ),
        ("name: r1", "name: dhcp-web", "routers[0]", "the second DHCP server of web"),
        ("private: 10.1.0.11", "private: 10.1.0.2", "routers[0].port_forwards[0]", "second DHCP"),
    ],
)
def test_one_thing_wrong_is_told_at_its_place(old: str, new: str, path: str, what: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(SpecError) as caught:
        parse(GOOD.replace(old, new), "zone.yaml")
    assert len(caught.value.problems) == 1, caught.value.problems
    assert f" {path}: " in caught.value.problems[0]
    assert what in caught.value.problems[0]


def test_it_needs_a_router_and_a_short_name() -> None:
    alone = GOOD[: GOOD.index("routers:")].replace("name: web", "name: much-too-long")
    with pytest.raises(SpecError) as caught:
        parse(alone, "zone.yaml")
    first, second = caught.value.problems
    assert "needs a name of at most 10 characters" in first
    assert "needs a router" in second
