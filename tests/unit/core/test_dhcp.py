"""Two DHCP servers of one network: who gives what, and what each is told of the other."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from tests.golden.golden_specs import shared
from vrha.core.dhcp import (
    halves,
    merged,
    nodes_of_partners,
    of_second,
    partners,
    reservations,
    superseded,
)
from vrha.model.spec import Desired, DhcpRange

ROUTER, SECOND = shared()
(NETWORK,) = ROUTER.networks
CIDRS = (ip_network("10.1.0.0/24"),)
BOTH = Desired((NETWORK,), (ROUTER.router, SECOND.router))


def lease(end: int, mac: int, address: str, client: str = "*") -> str:
    return f"{end} 02:00:00:00:09:{mac:02x} {address} * {client}\n"


@pytest.mark.parametrize(
    ("last", "expected"),
    [(11, (10, 10, 11, 11)), (12, (10, 11, 12, 12)), (13, (10, 11, 12, 13))],
)
def test_the_range_is_given_by_one_of_them_each_address(
    last: int, expected: tuple[int, ...]
) -> None:
    whole = DhcpRange(ip_address("10.1.0.10"), ip_address(f"10.1.0.{last}"))
    found = [end for half in halves(whole) for end in (half.first, half.last)]
    assert [int(end) & 255 for end in found] == list(expected)


def test_the_second_serves_ipv4_with_an_address_of_its_own_and_forwards_nothing() -> None:
    served, address = of_second(NETWORK)
    assert str(address) == "10.1.0.2/24"
    assert [str(subnet.cidr) for subnet in served.subnets] == ["10.1.0.0/24"]
    assert [str(a) for host in served.hosts for a in host.addresses] == ["10.1.0.5"]
    assert SECOND.ports[0].addresses == (address,)
    assert SECOND.uplink is None
    assert SECOND.networks[0].egress.default == "deny"


def test_a_pair_knows_each_other_and_where_it_is() -> None:
    assert partners(BOTH, ROUTER.router) == ("dhcp-net-a",)
    assert partners(BOTH, SECOND.router) == ("shared",)
    assert BOTH.router_of("net-a") == ROUTER.router
    hosted = {("shared", "n1"), ("other", "n2"), ("dhcp-net-a", "n3")}
    assert nodes_of_partners(BOTH, SECOND.router, hosted) == {"n1"}
    assert nodes_of_partners(BOTH, ROUTER.router, hosted) == {"n3"}
    assert nodes_of_partners(BOTH, replace(ROUTER.router, networks=()), hosted) == set()


def test_of_two_leases_the_one_that_ends_last_is_true() -> None:
    elsewhere = lease(50, 1, "10.9.0.5") + "duid 00:01\n" + "70 1 fd00::5 * 00:03\n"
    own = elsewhere + lease(100, 1, "10.1.0.10") + lease(100, 2, "10.1.0.11")
    other = lease(200, 1, "10.1.0.20") + lease(90, 3, "10.1.0.11") + "duid 00:02\n"
    expected = elsewhere + lease(200, 1, "10.1.0.20") + lease(100, 2, "10.1.0.11")
    assert merged(own, other, CIDRS) == expected
    assert merged(own, other + lease(99, 4, "10.9.0.6"), CIDRS) == expected
    # Two operating systems of one machine are two clients.
    two = lease(100, 1, "10.1.0.10", "01:aa") + lease(90, 1, "10.1.0.11", "01:bb")
    assert merged(two, "", CIDRS) == two


def test_what_the_other_one_has_granted_is_reserved() -> None:
    other = lease(200, 1, "10.1.0.20") + lease(200, 2, "10.1.0.21") + lease(9, 3, "10.9.0.1")
    assert reservations(ROUTER, other, "") == (
        "02:00:00:00:09:01,10.1.0.20\n02:00:00:00:09:02,10.1.0.21\n"
    )
    # dnsmasq would refuse a client that has another address than the one reserved for it.
    newer = lease(210, 1, "10.1.0.10") + lease(150, 2, "10.1.0.11")
    assert reservations(ROUTER, other, newer) == "02:00:00:00:09:02,10.1.0.21\n"
    # The same address, renewed with either.
    assert reservations(ROUTER, lease(5, 1, "10.1.0.20"), lease(9, 1, "10.1.0.20")) != ""


def test_what_the_other_one_gave_away_since_is_not_true_any_more() -> None:
    own = lease(100, 1, "10.1.0.10") + lease(100, 2, "10.1.0.11") + lease(100, 3, "10.1.0.12")
    own += lease(100, 4, "10.9.0.10") + "duid 00:01\n"
    same = lease(200, 1, "10.1.0.10") + lease(90, 9, "10.1.0.11") + lease(90, 3, "10.1.0.13")
    assert superseded(own, same + lease(200, 4, "10.1.0.14"), CIDRS) == set()
    given_away = lease(200, 9, "10.1.0.10")
    assert superseded(own, given_away, CIDRS) == {lease(100, 1, "10.1.0.10").strip()}
    moved = lease(200, 3, "10.1.0.13")
    assert superseded(own, moved, CIDRS) == {lease(100, 3, "10.1.0.12").strip()}


def test_fixed_addresses_are_reserved_already() -> None:
    host = NETWORK.hosts[0]
    other = f"200 {host.mac} 10.1.0.12 * *\n" + lease(200, 1, "10.1.0.5")
    assert reservations(SECOND, other, "") == ""
    # One line for a machine, whatever it calls itself.
    two = lease(100, 1, "10.1.0.10", "01:aa") + lease(90, 1, "10.1.0.11", "01:bb")
    assert reservations(SECOND, two, "") == "02:00:00:00:09:01,10.1.0.10\n"
