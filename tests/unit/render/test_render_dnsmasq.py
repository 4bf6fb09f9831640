"""Which subnets get which kind of service from dnsmasq."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface

import pytest

from tests.unit.render.render_specs import small
from vrha.errors import InputError
from vrha.model.spec import DhcpRange, Host, InstanceSpec, Subnet
from vrha.render.dnsmasq import MAX_LEASES, dnsmasq_files


def with_subnet(gateway: str, first: str = "", last: str = "", host: str = "") -> InstanceSpec:
    spec = small()
    interface = ip_interface(gateway)
    dhcp = DhcpRange(ip_address(first), ip_address(last)) if first else None
    hosts = (Host("vm", "02:00:00:00:02:0A", (ip_address(host),)),) if host else ()
    subnets = (Subnet(interface.network, interface.ip, dhcp),)
    network = replace(spec.networks[0], subnets=subnets, hosts=hosts, lease_seconds=60)
    return replace(spec, networks=(network,))


@pytest.mark.parametrize(
    ("subnet", "line"),
    [
        (("10.1.0.1/24", "10.1.0.5", "10.1.0.9"), "10.1.0.5,10.1.0.9,255.255.255.0,60"),
        (("10.1.0.1/24", "", "", "10.1.0.7"), "10.1.0.0,static,255.255.255.0,60"),
        (("fd00::1/64", "fd00::5", "fd00::9"), "fd00::5,fd00::9,64,60"),
        (("fd00::1/64", "", "", "fd00::7"), "fd00::,static,slaac,64,60"),
        (("fd00::1/64",), "fd00::,slaac,ra-names,64,60"),
        (("fd00::1/80", "fd00::5", "fd00::9"), "fd00::5,fd00::9,80,60"),
        (("fd00::1/80", "", "", "fd00::7"), "fd00::,static,80,60"),
    ],
)
def test_kind_of_service(subnet: tuple[str, ...], line: str) -> None:
    conf = dnsmasq_files(with_subnet(*subnet), "/folder").conf
    assert [x for x in conf.splitlines() if x.startswith("dhcp-range")] == [
        f"dhcp-range=set:n0s0,{line}"
    ]


@pytest.mark.parametrize("gateway", ["10.1.0.1/24", "fd00::1/80", "fd00::1/48"])
def test_no_service_asked_for_none_given(gateway: str) -> None:
    conf = dnsmasq_files(with_subnet(gateway), "/folder").conf
    assert "dhcp" not in conf.partition("# DHCP")[2]
    assert "enable-ra" not in conf


def test_a_prefix_that_dnsmasq_cannot_serve_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        dnsmasq_files(with_subnet("fd00::1/48", "fd00::5", "fd00::9"), "/folder")
    assert caught.value.code == "dhcp-prefix"


def test_one_host_with_several_addresses() -> None:
    spec = small()
    addresses = tuple(map(ip_address, ("10.1.0.5", "10.1.0.6", "fd00::5", "fd00::6")))
    network = replace(spec.networks[0], hosts=(Host("vm", "02:00:00:00:02:0A", addresses),))
    files = dnsmasq_files(replace(spec, networks=(network,)), "/folder")
    assert files.hosts.splitlines() == [
        "02:00:00:00:02:0a,10.1.0.5,[fd00::5],[fd00::6],vm",
        "02:00:00:00:02:0a,10.1.0.6,vm",
    ]
    assert files.addn_hosts.splitlines()[0] == "10.1.0.5 vm.a.example vm"


def test_leases_are_bounded() -> None:
    spec = with_subnet("fd00::1/64", "fd00::5", "fd00::ffff:ffff")
    assert f"dhcp-lease-max={MAX_LEASES}\n" in dnsmasq_files(spec, "/folder").conf


def test_no_script_ever_and_nothing_on_the_uplink() -> None:
    conf = dnsmasq_files(small(), "/folder").conf
    assert "script" not in conf
    assert "except-interface=u0\n" in conf
    assert "interface=n0\n" in conf
