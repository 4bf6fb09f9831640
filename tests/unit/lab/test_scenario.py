"""Scenario files: what they say, what is refused."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
import yaml

from vrha.errors import InputError, NotFoundError
from vrha.lab.scenario import load_scenario, parse_scenario, scenario_names

SMALL = """
zone:
  networks:
    - name: blue
      bridge: br-blue
      subnets:
        - {cidr: 10.1.1.0/24, gateway: 10.1.1.1}
        - {cidr: "2001:db8:1::/64", gateway: "2001:db8:1::1"}
      hosts: [{name: vm1, mac: "02:00:00:01:00:01", addresses: [10.1.1.11, "2001:db8:1::11"]}]
  routers:
    - {name: r1, networks: [blue], uplink: {bridge: br-public, addresses: [203.0.113.10/24]}}
  nodes: [{name: n1}]
"""


def test_shipped_scenarios_are_listed_and_load() -> None:
    assert scenario_names() == ("dais-54", "seed-10x10")
    for name in scenario_names():
        assert load_scenario(name).name == name


def test_seed_is_the_cloudstack_network() -> None:
    seed = load_scenario("seed-10x10")
    router = seed.zone["routers"][0]

    assert seed.segments == ("br-blue", "br-public")
    assert seed.nodes == ("n1", "n2", "n3")
    assert [m.name for m in seed.machines] == [*(f"vm{i}" for i in range(1, 12)), "outside"]
    public = {nat["public"]: nat["private"] for nat in router["static_nat"]}
    assert public == {f"203.0.113.{n}": f"10.1.1.{n}" for n in range(11, 21)}
    assert router["source_nat"] == ["203.0.113.10"]
    hidden = {str(a.ip) for m in seed.machines for a in m.addresses if m.name == "vm11"}
    assert hidden == {"10.1.1.21", "2001:db8:1::21"}
    open_to = {entry["address"] for entry in router["ingress"]}
    assert set(public) <= open_to
    carried = {str(ip_interface(text).ip) for text in router["uplink"]["addresses"]}
    assert {*public, "203.0.113.10"} <= carried
    outside = seed.machines[-1]
    assert ip_interface("203.0.113.1/24") in outside.addresses


def test_dais_has_54_machines_on_six_networks_behind_three_routers() -> None:
    dais = load_scenario("dais-54")

    per_segment = Counter(m.segment for m in dais.machines)
    assert per_segment.pop("br-public") == 1
    assert sorted(per_segment.values()) == [9] * 6
    assert [len(r["networks"]) for r in dais.zone["routers"]] == [2, 2, 2]
    assert len({n["zone"] for n in dais.zone["nodes"]}) == 3
    addresses = [address.ip for m in dais.machines for address in m.addresses]
    assert len(addresses) == len(set(addresses))
    assert len({m.mac for m in dais.machines}) == len(dais.machines)


@pytest.mark.parametrize("name", ["dais-54", "seed-10x10"])
def test_every_translated_address_is_a_machines(name: str) -> None:
    scenario = load_scenario(name)
    private = {address.ip for m in scenario.machines for address in m.addresses}
    for router in scenario.zone["routers"]:
        assert {ip_address(nat["private"]) for nat in router["static_nat"]} <= private


def test_hosts_default_to_those_of_the_zone_with_prefix_and_gateways() -> None:
    machine = parse_scenario("small", SMALL.encode()).machines[0]

    assert machine.segment == "br-blue"
    assert machine.mac == "02:00:00:01:00:01"
    assert machine.addresses == (ip_interface("10.1.1.11/24"), ip_interface("2001:db8:1::11/64"))
    assert machine.gateways == (ip_address("10.1.1.1"), ip_address("2001:db8:1::1"))


def test_dhcp_machine_has_no_addresses() -> None:
    lab = "lab: {hosts: [{name: vm1, network: blue, dhcp: true}]}"
    machine = parse_scenario("small", (SMALL + lab).encode()).machines[0]

    assert machine.dhcp
    assert machine.addresses == machine.gateways == ()
    assert machine.mac == "02:00:00:01:00:01"


def test_file_is_found_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL)
    assert load_scenario(path).name == "mine"
    assert load_scenario(str(path)).nodes == ("n1",)


def test_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(NotFoundError) as caught:
        load_scenario("seed")
    assert caught.value.code == "no-scenario"
    assert "seed-10x10" in caught.value.hint
    with pytest.raises(NotFoundError):
        load_scenario("./nowhere.yaml")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.pop("zone"), "zone is missing"),
        (lambda d: d["zone"].pop("nodes"), "nodes is missing"),
        (lambda d: d["zone"]["networks"][0].update(bridge="b" * 16), "no name for a bridge"),
        (lambda d: d["zone"]["nodes"].append({"name": "vm1"}), "named vm1"),
        (lambda d: d["zone"]["nodes"].append({"name": "../x"}), "no name for a machine"),
        (lambda d: d["zone"]["nodes"].append({"name": ".."}), "no name for a machine"),
        (
            lambda d: d.update(lab={"hosts": [{"name": "a", "network": "red"}]}),
            "red is missing",
        ),
        (
            lambda d: d.update(
                lab={"hosts": [{"name": "a", "network": "blue", "addresses": ["10.9.9.9"]}]}
            ),
            "in no subnet",
        ),
        (lambda d: d.update(zone=[]), "scenario small"),
    ],
)
def test_bad_scenario_is_refused(change, problem: str) -> None:
    document = yaml.safe_load(SMALL)
    change(document)
    with pytest.raises(InputError) as caught:
        parse_scenario("small", yaml.safe_dump(document).encode())
    assert caught.value.code == "scenario-invalid"
    assert problem in caught.value.message


def test_broken_yaml_and_giants_are_refused() -> None:
    for data in (b"a: [", b"- 1", b"\xff\xfe\x00", b"#" * (5 << 20)):
        with pytest.raises(InputError) as caught:
            parse_scenario("x", data)
        assert caught.value.code == "scenario-invalid"
