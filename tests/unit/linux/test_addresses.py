"""Addresses and routes that follow from a spec."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from tests.netns.nodekit import spec_of
from vrha.linux.addresses import PortRoute, port_addresses, routes
from vrha.model.spec import Route


def test_a_port_with_ipv6_gets_the_fixed_link_local_address_and_the_uplink_its_own() -> None:
    red, blue, uplink = spec_of().ports
    assert port_addresses(red)[0] == ip_interface("fe80::1/64")
    assert port_addresses(blue) == (ip_interface("10.1.2.1/24"),)
    assert port_addresses(uplink)[0] == ip_interface("fe80::76:ff:fe00:102/64")


def test_an_address_given_twice_is_set_once() -> None:
    red = spec_of().ports[0]
    red = replace(red, addresses=(*red.addresses, ip_interface("fe80::1/64")))
    assert port_addresses(red).count(ip_interface("fe80::1/64")) == 1


def test_routes_go_by_the_port_that_covers_their_gateway() -> None:
    spec = spec_of()
    static = (
        Route(ip_network("10.9.0.0/16"), ip_address("10.1.2.9")),
        Route(ip_network("10.8.0.0/16"), ip_address("192.0.2.1")),
    )
    found = routes(replace(spec, router=replace(spec.router, routes=static)))
    assert found == (
        PortRoute(ip_network("0.0.0.0/0"), ip_address("203.0.113.1"), "u0", False),
        PortRoute(ip_network("::/0"), ip_address("2001:db8::1"), "u0", False),
        PortRoute(ip_network("10.9.0.0/16"), ip_address("10.1.2.9"), "n1", False),
        PortRoute(ip_network("10.8.0.0/16"), ip_address("192.0.2.1"), "u0", True),
    )
