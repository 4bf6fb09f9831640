"""Desired state from YAML: what is read, and every way in which it can be wrong."""

from __future__ import annotations

import time
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vrha.config.desired import load, parse, to_document, to_yaml
from vrha.errors import InputError, SpecError
from vrha.model.spec import Desired, Network, Policy, PortRange, Protocol, Router, Subnet

GOOD = """\
networks:
  - name: web
    bridge: br-web
    subnets:
      - cidr: 10.1.0.0/24
        gateway: 10.1.0.1
        dhcp: {first: 10.1.0.100, last: 10.1.0.200}
      - cidr: fd00:1::/64
        gateway: fd00:1::1
    hosts:
      - {name: vm1, mac: 52:54:00:00:00:01, addresses: [10.1.0.11, "fd00:1::11"]}
      - {name: vm2, mac: 52:54:00:00:00:02, addresses: [10.1.0.12]}
    domain: web.example
    dns: [192.0.2.53]
    egress:
      default: deny
      rules:
        - {protocol: tcp, ports: 80}
        - {protocol: udp, ports: 8000-8100, remote: 198.51.100.0/24}
        - {protocol: icmp, icmp_type: 8}
  - name: db
    bridge: br-db
    subnets:
      - {cidr: 10.2.0.0/24, gateway: 10.2.0.1}
routers:
  - name: r1
    networks: [web, db]
    uplink:
      bridge: br-ext
      addresses: [203.0.113.10/24, 203.0.113.11/24, "2001:db8::10/64"]
      gateways: [203.0.113.1, "2001:db8::1"]
    source_nat: [203.0.113.10]
    static_nat:
      - {public: 203.0.113.11, private: 10.1.0.11}
    port_forwards:
      - {public: 203.0.113.10, protocol: tcp, ports: 8000-8001, private: 10.2.0.5,
         private_ports: 80-81}
    ingress:
      - address: 203.0.113.11
        rules:
          - {protocol: tcp, ports: 443}
      - address: fd00:1::11
        rules:
          - {protocol: tcp, ports: 22, remote: "2001:db8:1::/48"}
    routes:
      - {cidr: 10.99.0.0/16, via: 10.2.0.254}
    labels: {rack: no}
nodes:
  - name: n1
  - {name: n2, zone: b, capacity: 5, labels: {rack: "no"}}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(text, "zone.yaml")
    assert caught.value.code == "spec-invalid"
    return list(caught.value.problems)


def test_a_good_document() -> None:
    desired = parse(GOOD, "zone.yaml")
    web = desired.network("web")
    router = desired.router("r1")
    assert web is not None
    assert router is not None
    assert web.egress.rules[0].ports == PortRange(80, 80)
    assert web.egress.rules[1].ports == PortRange(8000, 8100)
    assert web.hosts[0].mac == "52:54:00:00:00:01"
    assert router.port_forwards[0].private_ports == PortRange(80, 81)
    assert router.port_forwards[0].protocol is Protocol.TCP
    assert router.labels == {"rack": "no"}
    assert [n.zone for n in desired.nodes] == ["default", "b"]
    assert desired.router_of("db") is router


def test_nothing_is_a_desired_state() -> None:
    assert parse("", "x") == parse("networks:\nrouters: []\n", "x") == Desired()


def test_a_document_comes_back_as_it_was() -> None:
    desired = parse(GOOD, "zone.yaml")
    assert parse(to_yaml(desired), "again") == desired
    assert yaml.safe_load(to_yaml(desired)) == to_document(desired)


def test_load_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "zone.yaml").write_text(GOOD)
    assert load(tmp_path / "zone.yaml") == parse(GOOD, "x")
    with pytest.raises(InputError, match="No such file") as caught:
        load(tmp_path / "none.yaml")
    assert caught.value.code == "spec-unreadable"
    (tmp_path / "bad.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(SpecError, match=r"bad\.yaml:2: not UTF-8"):
        load(tmp_path / "bad.yaml")


def line_of(text: str, fragment: str) -> int:
    return text[: text.index(fragment)].count("\n") + 1


R1 = "routers[0]"
WEB = "networks[0]"
WRONG = [
    # (what is replaced, by what, path, what the problem says)
    ("name: web", "name: Web", f"{WEB}.name", "must be 1 to 15 of a-z"),
    ("name: web", 'name: "web\\n"', f"{WEB}.name", "must be 1 to 15 of a-z"),
    ("name: web", "name: web-", f"{WEB}.name", "must be 1 to 15 of a-z"),
    ("name: web", "name: [web]", f"{WEB}.name", "must be a single value"),
    ("name: web\n", "name:\n", f"{WEB}.name", "is missing"),
    ("bridge: br-web", "bridge: br web", f"{WEB}.bridge", "must be 1 to 15 of A-Z"),
    ("bridge: br-web", "bridge: b2345678901234567", f"{WEB}.bridge", "must be 1 to 15 of A-Z"),
    ("bridge: br-web", "bridge: vrh0123abcd-x", f"{WEB}.bridge", "reserved"),
    ("bridge: br-web", "bridge: lo", f"{WEB}.bridge", "reserved"),
    ("bridge: br-web", "brigde: br-web", f"{WEB}.brigde", "did you mean bridge?"),
    ("bridge: br-db", "bridge: br-web", "networks[1].bridge", "already used by networks[0].bridge"),
    ("10.1.0.0/24", "10.1.0.5/24", f"{WEB}.subnets[0].cidr", "did you mean 10.1.0.0/24?"),
    ("10.1.0.0/24", "10.1.0.0", f"{WEB}.subnets[0].cidr", "must be a prefix"),
    ("10.1.0.0/24", "10.1.0.0/255.255.255.0", f"{WEB}.subnets[0].cidr", "must be a prefix"),
    ("10.1.0.0/24", "224.0.0.0/24", f"{WEB}.subnets[0].cidr", "no prefix for machines"),
    ("10.2.0.0/24", "10.2.0.0/31", "networks[1].subnets[0].cidr", "no room"),
    ("gateway: 10.1.0.1\n", "gateway: 10.9.0.1\n", f"{WEB}.subnets[0].gateway", "host address in"),
    ("gateway: 10.1.0.1\n", "gateway: 10.1.0.0\n", f"{WEB}.subnets[0].gateway", "host address in"),
    (
        "gateway: 10.1.0.1\n",
        "gateway: 10.1.0.255\n",
        f"{WEB}.subnets[0].gateway",
        "host address in",
    ),
    ("gateway: 10.1.0.1\n", "gateway: fd00::1\n", f"{WEB}.subnets[0].gateway", "host address in"),
    ("first: 10.1.0.100", "first: 10.1.0.1", f"{WEB}.subnets[0].dhcp", "contains the gateway"),
    ("first: 10.1.0.100", "first: 10.1.0.250", f"{WEB}.subnets[0].dhcp", "before it begins"),
    ("first: 10.1.0.100", "first: fd00:1::1", f"{WEB}.subnets[0].dhcp", "no host address in"),
    ("last: 10.1.0.200", "last: 10.1.0.255", f"{WEB}.subnets[0].dhcp", "no host address in"),
    (", last: 10.1.0.200", "", f"{WEB}.subnets[0].dhcp.last", "is missing"),
    ("fd00:1::/64\n", "10.1.0.128/25\n", f"{WEB}.subnets[1]", "overlaps 10.1.0.0/24"),
    ("cidr: 10.2.0.0/24", "cidr: 10.1.0.0/16", f"{R1}.networks[1]", "overlaps 10.1.0.0/24"),
    ("name: vm1", "name: vm.1", f"{WEB}.hosts[0].name", "must be 1 to 63"),
    ("name: vm1", "name: 45m", f"{WEB}.hosts[0].name", "lease time"),
    ("name: vm1", "name: VM2", f"{WEB}.hosts[1]", "name vm2 is already used"),
    ("52:54:00:00:00:01", "53:54:00:00:00:01", f"{WEB}.hosts[0].mac", "not multicast"),
    ("52:54:00:00:00:01", "52-54-00-00-00-01", f"{WEB}.hosts[0].mac", "must be a MAC"),
    ("52:54:00:00:00:01", "52:54:00:00:00:02", f"{WEB}.hosts[1]", "MAC address 52:54"),
    ("[10.1.0.12]", "[10.1.0.11]", f"{WEB}.hosts[1]", "address 10.1.0.11 is already used"),
    ("[10.1.0.12]", "[10.1.0.1]", f"{WEB}.hosts[1]", "is the gateway's"),
    ("[10.1.0.12]", "[10.1.0.255]", f"{WEB}.hosts[1]", "broadcast"),
    ("[10.1.0.12]", "[10.2.0.12]", f"{WEB}.hosts[1]", "is in no subnet of the network"),
    ("[10.1.0.12]", "[10.1.0.256]", f"{WEB}.hosts[1].addresses[0]", "must be an IPv4 or IPv6"),
    ("[10.1.0.12]", "[010.1.0.12]", f"{WEB}.hosts[1].addresses[0]", "must be an IPv4 or IPv6"),
    ("[10.1.0.12]", "['fe80::1%eth0']", f"{WEB}.hosts[1].addresses[0]", "of one machine"),
    ("web.example", "web..example", f"{WEB}.domain", "must be a domain"),
    ("web.example", '"web\\nport=1"', f"{WEB}.domain", "must be a domain"),
    ("[192.0.2.53]", "[224.0.0.1]", f"{WEB}.dns[0]", "of one machine"),
    ("default: deny", "default: drop", f"{WEB}.egress.default", "one of allow, deny"),
    ("ports: 80}", "ports: 0}", f"{WEB}.egress.rules[0].ports", "within 1 to 65535"),
    ("ports: 80}", "ports: 65536}", f"{WEB}.egress.rules[0].ports", "within 1 to 65535"),
    ("ports: 80}", "ports: 90-80}", f"{WEB}.egress.rules[0].ports", "within 1 to 65535"),
    ("ports: 80}", "ports: ８０}", f"{WEB}.egress.rules[0].ports", "within 1 to 65535"),
    ("tcp, ports: 80}", "icmp, ports: 80}", f"{WEB}.egress.rules[0].ports", "has no ports"),
    ("icmp_type: 8", "icmp_type: 256", f"{WEB}.egress.rules[2].icmp_type", "from 0 to 255"),
    ("icmp, icmp", "tcp, icmp", f"{WEB}.egress.rules[2].icmp_type", "only icmp has"),
    ("[web, db]", "[web, nope]", f"{R1}.networks[1]", "there is no network nope"),
    ("[web, db]", "[web, db, web]", f"{R1}.networks[2]", "already in routers[0].networks[0]"),
    ("[web, db]", "[]", f"{R1}.networks", "needs a network"),
    ("203.0.113.10/24,", "203.0.113.10,", f"{R1}.uplink.addresses[0]", "prefix length"),
    ("203.0.113.11/24", "203.0.113.0/24", f"{R1}.uplink.addresses[1]", "network or broadcast"),
    ("203.0.113.11/24", "203.0.113.10/25", f"{R1}.uplink.addresses[1]", "already used"),
    ("203.0.113.11/24", "10.2.0.7/16", f"{R1}.uplink.addresses[1]", "overlaps 10.2.0.0/24"),
    ("[203.0.113.1,", "[192.0.2.1,", f"{R1}.uplink.gateways[0]", "in no prefix"),
    ("[203.0.113.1,", "[203.0.113.10,", f"{R1}.uplink.gateways[0]", "the router itself"),
    ('"2001:db8::1"]', "203.0.113.2]", f"{R1}.uplink.gateways[1]", "a second IPv4 gateway"),
    ("nat: [203.0.113.10]", "nat: [203.0.113.99]", f"{R1}.source_nat[0]", "no address of the"),
    (
        "nat: [203.0.113.10]",
        "nat: [203.0.113.10, 203.0.113.11]",
        f"{R1}.source_nat[1]",
        "one per family",
    ),
    ("{public: 203.0.113.11", "{public: 203.0.113.10", f"{R1}.static_nat[0]", "source NAT address"),
    ("{public: 203.0.113.11", "{public: 203.0.113.12", f"{R1}.static_nat[0]", "no address of the"),
    ("private: 10.1.0.11", "private: 10.7.0.11", f"{R1}.static_nat[0]", "in no network of the"),
    ("private: 10.1.0.11", 'private: "fd00:1::11"', f"{R1}.static_nat[0]", "different families"),
    ("private: 10.1.0.11", "private: 10.1.0.1", f"{R1}.static_nat[0]", "no host's address"),
    (
        "private_ports: 80-81",
        "private_ports: 80",
        f"{R1}.port_forwards[0].private_ports",
        "as long",
    ),
    (
        "protocol: tcp, ports: 8000",
        "protocol: any, ports: 8000",
        f"{R1}.port_forwards[0]",
        "tcp or",
    ),
    ("10, protocol: tcp", "11, protocol: tcp", f"{R1}.port_forwards[0]", "static NAT"),
    (
        "10, protocol: tcp",
        "12, protocol: tcp",
        f"{R1}.port_forwards[0]",
        "no address of the uplink",
    ),
    ("address: 203.0.113.11", "address: 203.0.113.12", f"{R1}.ingress[0]", "neither an address"),
    ("address: 203.0.113.11", "address: 10.1.0.11", f"{R1}.ingress[0]", "is translated"),
    ("address: fd00:1::11", "address: 203.0.113.11", f"{R1}.ingress[1]", "already used"),
    ('"2001:db8:1::/48"', "10.0.0.0/8", f"{R1}.ingress[1].rules[0]", "not of the family"),
    ("via: 10.2.0.254", "via: 10.3.0.254", f"{R1}.routes[0]", "in no prefix that the router"),
    ("via: 10.2.0.254", "via: 10.2.0.1", f"{R1}.routes[0]", "the router itself"),
    ("via: 10.2.0.254", 'via: "fd00:1::9"', f"{R1}.routes[0].via", "not of the family"),
    ("cidr: 10.99.0.0/16", "cidr: 0.0.0.0/0", f"{R1}.routes[0]", "default route already"),
    ("cidr: 10.99.0.0/16", "cidr: 10.1.0.0/24", f"{R1}.routes[0]", "connected to the router"),
    ("labels: {rack: no}", "labels: {'a b': x}", f"{R1}.labels.a b", "label's key"),
    ("labels: {rack: no}", "labels: {rack: 'a b'}", f"{R1}.labels.rack", "label's value"),
    ("labels: {rack: no}", "backend: ebtables", f"{R1}.backend", "one of nftables, iptables"),
    ("labels: {rack: no}", "priority: 1001", f"{R1}.priority", "1000"),
    ("labels: {rack: no}", "policy: pray", f"{R1}.policy", "one of resurrect, standby"),
    ("name: n1", "name: n2", "nodes[1]", "name n2 is already used by nodes[0]"),
    ("capacity: 5", "capacity: -5", "nodes[1].capacity", "must be a number"),
    ("nodes:", "knots: []\nnodes:", "knots", "unknown key"),
]


@pytest.mark.parametrize(("old", "new", "path", "what"), WRONG, ids=[f"{w[1]}"[:40] for w in WRONG])
def test_one_thing_wrong_is_told_at_its_place(old: str, new: str, path: str, what: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(f": {path}" in problem and what in problem for problem in found), found


def test_the_line_is_that_of_the_value() -> None:
    text = GOOD.replace("remote: 198.51.100.0/24", "remote: 198.51.100.1/24")
    line = line_of(text, "198.51.100.1/24")
    assert problems(text) == [
        f"zone.yaml:{line}: networks[0].egress.rules[1].remote: "
        "has host bits set; did you mean 198.51.100.0/24?"
    ]


def test_everything_wrong_is_told_at_once() -> None:
    text = GOOD
    fragments = ("bridge: br-web", "first: 10.1.0.100", "[10.1.0.12]", "icmp_type: 8", "name: n1")
    for fragment in fragments:
        text = text.replace(
            fragment, fragment.partition(":")[0] + ": '*'" if ":" in fragment else "x", 1
        )
    text = text.replace("private: 10.1.0.11", "private: 10.7.0.11")
    found = problems(text)
    assert len(found) == len(fragments) + 1
    assert [int(p.split(":")[1]) for p in found] == sorted(int(p.split(":")[1]) for p in found)


def test_one_mistake_is_not_told_twice_in_other_words() -> None:
    """A broken subnet must not make its hosts and translations look wrong."""
    assert len(problems(GOOD.replace("10.1.0.0/24", "10.1.0.0/240", 1))) == 1
    assert len(problems(GOOD.replace("name: db", "name: DB", 1))) == 2


def test_a_router_without_uplink_translates_nothing() -> None:
    start, end = GOOD.index("    uplink:"), GOOD.index("    source_nat:")
    found = problems(GOOD[:start] + GOOD[end:])
    assert [p.split(": ")[1] for p in found] == [
        f"{R1}.source_nat[0]",
        f"{R1}.static_nat[0]",
        f"{R1}.port_forwards[0]",
        f"{R1}.ingress[0]",
    ]


SECOND = """\
  - name: r2
    networks: [db]
    uplink: {bridge: BRIDGE, addresses: [203.0.113.11/24]}
"""


def test_two_routers_share_no_network_and_no_public_address_of_a_bridge() -> None:
    text = GOOD.replace("nodes:", SECOND + "nodes:")
    assert len(problems(text.replace("BRIDGE", "br-ext"))) == 2
    (problem,) = problems(text.replace("BRIDGE", "br-other"))
    assert "network db is already in routers[0].networks[1]" in problem


def test_overlapping_port_forwards_are_found_wherever_they_stand() -> None:
    forward = "- {public: 203.0.113.10, protocol: PROTO, ports: PORTS, private: 10.2.0.6}\n      "
    start = "- {public: 203.0.113.10, protocol: tcp"
    text = GOOD.replace(start, forward + start)
    assert parse(text.replace("PROTO", "udp").replace("PORTS", "8000"), "x")
    assert parse(text.replace("PROTO", "tcp").replace("PORTS", "8002"), "x")
    (problem,) = problems(text.replace("PROTO", "tcp").replace("PORTS", "7000-9000"))
    assert "overlap" in problem
    wide = (forward * 3).replace("PROTO", "tcp")
    for ports in ("1-7000", "2", "6000"):
        wide = wide.replace("PORTS", ports, 1)
    assert len(problems(GOOD.replace(start, wide + start))) == 2


def test_a_router_forwards_so_many_ports_of_each_family() -> None:
    start = "- {public: 203.0.113.10, protocol: tcp"
    wide = '- {public: "PUBLIC", protocol: udp, ports: 1-LAST, private: "PRIVATE"}\n      '
    v4 = wide.replace("PUBLIC", "203.0.113.10").replace("PRIVATE", "10.2.0.6")
    v6 = wide.replace("PUBLIC", "2001:db8::10").replace("PRIVATE", "fd00:1::6")
    most = v6.replace("LAST", "65535") + v4.replace("LAST", "65533")
    assert parse(GOOD.replace(start, most + start), "x")
    (problem,) = problems(GOOD.replace(start, most.replace("65533", "65534") + start))
    assert "routers[0].port_forwards[2]: more than 65535 IPv4 ports" in problem
    another = v6.replace("udp", "tcp").replace("1-LAST", "1")
    (problem,) = problems(GOOD.replace(start, most + another + start))
    assert "routers[0].port_forwards[2]: more than 65535 IPv6 ports" in problem


def test_no_dhcp_in_ipv6_prefixes_that_dnsmasq_does_not_serve() -> None:
    short = GOOD.replace("cidr: fd00:1::/64", "cidr: fd00:1::/56")
    (problem,) = problems(short)
    assert "networks[0].hosts[0]: address fd00:1::11: no DHCPv6 in fd00:1::/56" in problem
    short = short.replace(', "fd00:1::11"', "")
    assert parse(short, "x")
    dhcp = "gateway: fd00:1::1\n        dhcp: {first: fd00:1::100, last: fd00:1::200}\n"
    (problem,) = problems(short.replace("gateway: fd00:1::1\n", dhcp))
    assert "networks[0].subnets[1]: no DHCPv6 in fd00:1::/56" in problem


def test_a_router_has_a_bounded_number_of_rules() -> None:
    lists = [f"      - {{address: fd00:1::{n}, rules: [RULES]}}\n" for n in (21, 22, 23)]
    text = GOOD.replace("    ingress:\n", "    ingress:\n" + "".join(lists))
    # Two in the file, three by the network.
    assert parse(text.replace("RULES", "{}, " * 16_665), "x")
    (problem,) = problems(text.replace("RULES", "{}, " * 16_666))
    assert "routers[0]: 50003 rules with those of its networks" in problem


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("networks: [\n", "zone.yaml:2: not YAML"),
        ("networks: []\nnetworks: []\n", "zone.yaml:2: key 'networks' is given twice"),
        ("- a\n", "must be a mapping with"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not accepted"),
        ("networks: []\n---\nrouters: []\n", "zone.yaml:2: a second document"),
        ("? [a, b]\n: c\n", "a key must be a plain text"),
        ("a: *b\n", "alias *b names nothing complete"),
        ("a: &b [*b]\n", "alias *b names nothing complete"),
        ("a: \x07\n", "not YAML: control characters"),
        ("a: \udc80\n", "not YAML"),
        ("[" * 100_000, "nested deeper"),
        ("- " * 100_000, "nested deeper"),
        ("x" * (4 * 1024 * 1024 + 1), "larger than 4 MiB"),
        ("é" * (2 * 1024 * 1024 + 1), "larger than 4 MiB"),
        ("a: [" + "1," * 1_000_001 + "]", "more than 1000000 values"),
        ("networks: " + str([{}] * 1001), "the limit is 1000"),
        ("networks: {}\nrouters: 5\n", "networks: must be a list"),
    ],
    ids=lambda text: text[:20],
)
def test_hostile_documents_are_refused_quickly(text: str, what: str) -> None:
    began = time.monotonic()
    found = problems(text)
    assert any(what in problem for problem in found), found[:3]
    assert time.monotonic() - began < 10


def test_aliases_are_fine_and_explosions_are_not() -> None:
    rules = "[{protocol: tcp, ports: 1}, {protocol: tcp, ports: 2}]"
    text = GOOD.replace("default: deny\n", "default: deny\n" + "", 1).replace(
        "        rules:\n          - {protocol: tcp, ports: 443}\n", f"        rules: &r {rules}\n"
    )
    text = text.replace(
        '        rules:\n          - {protocol: tcp, ports: 22, remote: "2001:db8:1::/48"}\n',
        "        rules: *r\n",
    )
    router = parse(text, "x").router("r1")
    assert router is not None
    assert router.ingress[0].rules == router.ingress[1].rules != ()
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 12)]
    assert "more than 1000000 values" in problems("\n".join(lines))[0]


def test_problems_are_bounded() -> None:
    found = problems("networks: " + "[" + "{}, " * 1000 + "]")
    assert len(found) == 1001
    assert found[-1] == "... and 2000 more"


def test_twenty_thousand_rules_take_seconds() -> None:
    rules = "".join(
        f"          - {{protocol: tcp, ports: {i + 1}, remote: 10.0.{i % 256}.0/24}}\n"
        for i in range(20_000)
    )
    text = GOOD.replace("          - {protocol: tcp, ports: 443}\n", rules)
    began = time.monotonic()
    router = parse(text, "x").router("r1")
    assert time.monotonic() - began < 10
    assert router is not None
    assert len(router.ingress[0].rules) == 20_000
    assert (
        "the limit is 20000"
        in problems(text.replace(rules, rules + rules[: rules.index(chr(10)) + 1]))[0]
    )


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?", fullmatch=True)
PORTS = st.tuples(st.integers(1, 65535), st.integers(0, 100)).map(
    lambda p: f"{p[0]}-{min(p[0] + p[1], 65535)}"
)
REMOTES = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda r: f"{(r[0] >> (32 - r[1]) << (32 - r[1])).to_bytes(4).hex()}/{r[1]}"
)


def dotted(remote: str) -> str:
    number, _, length = remote.partition("/")
    return ".".join(str(byte) for byte in bytes.fromhex(number)) + f"/{length}"


RULES = st.one_of(
    st.fixed_dictionaries(
        {"protocol": st.sampled_from(["tcp", "udp"])},
        optional={"ports": PORTS, "remote": REMOTES.map(dotted)},
    ),
    st.fixed_dictionaries({"protocol": st.just("icmp"), "icmp_type": st.integers(0, 255)}),
    st.fixed_dictionaries({}, optional={"remote": REMOTES.map(dotted)}),
)
LABELS = st.dictionaries(NAMES, st.from_regex(r"[A-Za-z0-9._-]{0,20}", fullmatch=True), max_size=3)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, object]:
    """Documents that are right, from what is drawn; addresses follow from positions."""
    names = draw(st.lists(NAMES, unique=True, max_size=4))
    networks = []
    for i, name in enumerate(names):
        subnet: dict[str, object] = {"cidr": f"10.{i}.0.0/16", "gateway": f"10.{i}.0.1"}
        if draw(st.booleans()):
            subnet["dhcp"] = {"first": f"10.{i}.1.0", "last": f"10.{i}.1.255"}
        hosts = [
            {"name": f"vm{h}", "mac": f"52:54:00:00:00:{h:02x}", "addresses": [f"10.{i}.2.{h}"]}
            for h in range(draw(st.integers(0, 3)))
        ]
        egress = {
            "default": draw(st.sampled_from(["allow", "deny"])),
            "rules": draw(st.lists(RULES, max_size=4)),
        }
        networks.append(
            {
                "name": name,
                "bridge": f"br{i}",
                "subnets": [subnet, {"cidr": f"fd00:{i}::/64", "gateway": f"fd00:{i}::1"}],
                "hosts": hosts,
                "egress": egress,
                "lease_seconds": draw(st.integers(120, 10**6)),
            }
        )
    routers = []
    for i, name in enumerate(names):
        public = f"203.0.113.{i + 10}"
        router: dict[str, object] = {"name": name, "networks": [name], "labels": draw(LABELS)}
        if draw(st.booleans()):
            router["uplink"] = {"bridge": "ext", "addresses": [f"{public}/24"]}
            router["ingress"] = [{"address": public, "rules": draw(st.lists(RULES, max_size=4))}]
            kind = draw(st.sampled_from(["source_nat", "static_nat", "port_forwards"]))
            ports = draw(PORTS)
            router[kind] = {
                "source_nat": [public],
                "static_nat": [{"public": public, "private": f"10.{i}.2.1"}],
                "port_forwards": [
                    {"public": public, "protocol": "udp", "ports": ports, "private": f"10.{i}.2.1"}
                ],
            }[kind]
        routers.append(router)
    nodes = [
        {"name": name, "labels": draw(LABELS), "capacity": draw(st.integers(0, 10_000))}
        for name in draw(st.lists(NAMES, unique=True, max_size=3))
    ]
    return {"networks": networks, "routers": routers, "nodes": nodes}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents())
def test_every_right_document_is_read_and_written_the_same(document: dict[str, object]) -> None:
    desired = parse(yaml.dump(document), "x")
    assert parse(to_yaml(desired), "again") == desired
    assert len(desired.networks) == len(document["networks"])  # type: ignore[arg-type]


def refusal(text: str) -> tuple[str, ...] | None:
    """What is wrong with `text`; None if it is right. Anything else that is raised is a bug."""
    try:
        parse(text, "x")
    except SpecError as error:
        return error.problems
    return None


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("networks:\n- name: 'a\n\nb'")
def test_any_text_is_read_or_refused(text: str) -> None:
    told = refusal(text)
    assert told is None or len(told) > 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


def paths(node: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [path] + [p for key, value in inner for p in paths(value, (*path, key))]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    document = yaml.safe_load(GOOD)
    path = data.draw(st.sampled_from(paths(document)[1:]))
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = data.draw(VALUES)
    written = yaml.dump(document, allow_unicode=True)
    told = refusal(written)
    if told is None:
        desired = parse(written, "x")
        assert parse(to_yaml(desired), "x") == desired
    else:
        assert all(problem.isprintable() for problem in told)


def test_the_policy_makes_the_round_trip_and_the_default_is_left_out() -> None:
    plain = Network("blue", "br-blue", (Subnet(ip_network("10.1.1.0/24"), ip_address("10.1.1.1")),))
    for policy in Policy:
        desired = Desired((plain,), (Router("r1", ("blue",), policy=policy),))
        assert parse(to_yaml(desired), "x") == desired
        assert ("policy: standby" in to_yaml(desired)) is (policy is Policy.STANDBY)
        assert "resurrect" not in to_yaml(desired)


@pytest.mark.parametrize("priority", [-1000, 0, 7])
def test_the_priority_makes_the_round_trip_and_zero_is_left_out(priority: int) -> None:
    plain = Network("blue", "br-blue", (Subnet(ip_network("10.1.1.0/24"), ip_address("10.1.1.1")),))
    desired = Desired((plain,), (Router("r1", ("blue",), priority=priority),))
    assert parse(to_yaml(desired), "x") == desired
    assert ("priority" in to_yaml(desired)) is (priority != 0)
