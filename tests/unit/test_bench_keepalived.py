"""What the measurements write for the keepalived pair that vrha is compared with."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, ip_interface, ip_network
from pathlib import Path

import pytest
import yaml

from tools.benchmarks import peerconf
from tools.benchmarks.peerconf import Member
from vrha.config.desired import load
from vrha.core.instance import instance_spec
from vrha.errors import InputError
from vrha.lab.scenario import load_scenario
from vrha.model.spec import Desired, Host, InstanceRef, InstanceSpec

FOLDER = Path("/run/pair")

FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 10.1.1.0/24 2 0 2
        |-- 10.1.1.0
           /24 link UNICAST
        |-- 10.1.1.1
           /32 host LOCAL
        |-- 10.1.1.255
           /32 link BROADCAST
     |-- 203.0.113.11
        /32 host LOCAL
"""


@pytest.fixture(scope="module")
def desired(tmp_path_factory: pytest.TempPathFactory) -> Desired:
    path = tmp_path_factory.mktemp("zone") / "zone.yaml"
    path.write_text(yaml.safe_dump(dict(load_scenario("seed-10x10").zone)))
    return load(path)


@pytest.fixture(scope="module")
def spec(desired: Desired) -> InstanceSpec:
    router = desired.routers[0]
    return instance_spec(desired, router, InstanceRef(router.name, 1), 1)


@pytest.fixture(scope="module")
def pair(desired: Desired, spec: InstanceSpec) -> tuple[Member, Member]:
    return peerconf.members(desired, spec, ("n1", "n2", "n3"), FOLDER)


def test_the_pair_is_on_the_first_two_nodes_with_nothing_in_common(
    pair: tuple[Member, Member],
) -> None:
    one, other = pair
    assert (one.node, other.node) == ("n1", "n2")
    assert one.folder != other.folder
    assert one.sync.network == other.sync.network
    addresses = [*one.own.values(), *other.own.values(), one.sync, other.sync]
    assert len({address.ip for address in addresses}) == len(addresses)


def test_a_pair_needs_two_nodes(desired: Desired, spec: InstanceSpec) -> None:
    with pytest.raises(InputError, match="two nodes"):
        peerconf.members(desired, spec, ("n1",), FOLDER)


def test_own_addresses_are_nobodys(desired: Desired, spec: InstanceSpec) -> None:
    uplink = spec.uplink
    assert uplink is not None
    found = peerconf.own_addresses(desired, spec, uplink)
    assert found == (IPv4Interface("203.0.113.254/24"), IPv4Interface("203.0.113.253/24"))
    hosts = (Host("top", "02:00:00:00:00:01", (IPv4Address("203.0.113.254"),)),)
    network = replace(desired.networks[0], hosts=hosts)
    found = peerconf.own_addresses(replace(desired, networks=(network,)), spec, uplink)
    assert [str(a.ip) for a in found] == ["203.0.113.253", "203.0.113.252"]


def test_own_addresses_are_not_in_what_dhcp_hands_out(desired: Desired, spec: InstanceSpec) -> None:
    subnet = desired.networks[0].subnets[0]
    assert subnet.dhcp is not None
    pool = replace(subnet.dhcp, last=IPv4Address("10.1.1.254"))
    network = replace(desired.networks[0], subnets=(replace(subnet, dhcp=pool),))
    found = peerconf.own_addresses(replace(desired, networks=(network,)), spec, spec.ports[0])
    assert [str(a.ip) for a in found] == ["10.1.1.99", "10.1.1.98"]


def test_a_full_prefix_is_refused(desired: Desired, spec: InstanceSpec) -> None:
    narrow = replace(spec.ports[0], addresses=(ip_interface("10.1.1.1/30"),))
    small = replace(spec, ports=(narrow, *spec.ports[1:]))
    assert narrow.addresses[0].network == ip_network("10.1.1.0/30")
    with pytest.raises(InputError, match="no two free addresses"):
        peerconf.own_addresses(desired, small, narrow)


def test_keepalived_carries_every_address_of_the_router(
    spec: InstanceSpec, pair: tuple[Member, Member]
) -> None:
    text = peerconf.keepalived_conf(spec, pair[0], 0.1)
    _, _, rest = text.partition("virtual_ipaddress {\n")
    carried = [line.split() for line in rest.partition("}")[0].splitlines() if line.strip()]
    assert ["10.1.1.1/24", "dev", "n0"] in carried
    assert ["203.0.113.20/32", "dev", "u0"] in carried
    assert len(carried) == 12, "the gateway, the address of source NAT, ten of 1:1 NAT"
    assert not any(":" in word for line in carried for word in line)
    assert "advert_int 0.1\n" in text
    assert "vrrp_version 3\n" in text
    assert "state BACKUP\n    nopreempt\n    interface n0\n" in text
    assert f'notify_master "{FOLDER}/kap1/notify primary"' in text
    assert "advert_int 1\n" in peerconf.keepalived_conf(spec, pair[0], 1.0)


def test_conntrackd_hands_flows_of_guests_over_but_not_its_own(
    spec: InstanceSpec, pair: tuple[Member, Member]
) -> None:
    text = peerconf.conntrackd_conf(spec, pair[1])
    assert "Mode FTFW {\n        DisableExternalCache On\n" in text
    _, _, rest = text.partition("Address Ignore {")
    ignored = {line.split()[1] for line in rest.splitlines() if "IPv4_address" in line}
    assert {"127.0.0.1", "10.1.1.1", "203.0.113.10", str(pair[1].sync.ip)} <= ignored
    assert "10.1.1.11" not in ignored
    assert text.count("{") == text.count("}")


def test_the_state_is_said_after_conntrackd_was_told(pair: tuple[Member, Member]) -> None:
    plain = peerconf.notify_script(pair[0], "")
    assert "conntrackd" not in plain
    told = peerconf.notify_script(pair[0], "/usr/sbin/conntrackd")
    assert told.index("-B") < told.index(str(pair[0].state))
    assert told.index("-n") < told.index(str(pair[0].state))
    assert " -t" not in told


def test_routes_stand_on_addresses_that_stay(
    spec: InstanceSpec, pair: tuple[Member, Member]
) -> None:
    lines = peerconf.inner_lines(spec, pair[0])
    assert lines.index("address add 203.0.113.254/24 dev u0") < lines.index(
        "route add default via 203.0.113.1"
    )
    assert not any("203.0.113.10/" in line for line in lines)


def test_names_of_ports_fit(spec: InstanceSpec, pair: tuple[Member, Member]) -> None:
    lines = peerconf.node_lines(spec, pair[0])
    assert "link set kap1n0 master br-blue up" in lines
    assert "link set kap1u0 master br-public up" in lines
    assert all(len(line.split()[2]) <= 15 for line in lines)


def test_own_addresses_are_read_from_the_kernels_table() -> None:
    assert peerconf.local_addresses(FIB_TRIE) == {"10.1.1.1", "203.0.113.11"}
