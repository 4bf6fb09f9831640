"""Readings of nftables and iptables that differ in form and mean the same, or do not."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.unit.render.render_specs import small
from vrha.errors import InputError
from vrha.model.spec import Backend, Ingress, PortRange, Protocol, Rule
from vrha.render.digest import digest_of_iptables, digest_of_nft, expected_digest
from vrha.render.iptables import iptables_texts


def listing(*items: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"version": "9"}}, *items]})


def a_set(kind: list[str] | str, *elements: Any) -> dict[str, Any]:
    value = {"family": "inet", "name": "s", "table": "vr", "type": kind, "elem": list(elements)}
    return {"set": value}


def prefix(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}


def test_forms_of_one_element_are_equal() -> None:
    kind = ["ipv4_addr", "inet_proto", "inet_service"]
    forms = [
        {"concat": [prefix("10.0.0.0", 8), "tcp", {"range": [80, 90]}]},
        {"concat": [{"range": ["10.0.0.0", "10.255.255.255"]}, 6, {"range": [80, 90]}]},
        {"elem": {"val": {"concat": [prefix("10.0.0.0", 8), "6", {"range": [80, 90]}]}}},
    ]
    assert len({digest_of_nft(listing(a_set(kind, form))).digest for form in forms}) == 1


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("icmp_type", "echo-request", 8),
        ("icmpv6_type", "echo-request", 128),
        ("icmpv6_type", {"range": ["destination-unreachable", 99]}, {"range": [1, 99]}),
        ("inet_proto", "udp", 17),
        ("inet_service", {"range": [80, 80]}, 80),
        ("ipv6_addr", "::ffff:1.2.3.4", "::ffff:102:304"),
    ],
)
def test_names_and_numbers_are_equal(kind: str, one: Any, other: Any) -> None:
    assert digest_of_nft(listing(a_set(kind, one))) == digest_of_nft(listing(a_set(kind, other)))


def test_order_of_elements_does_not_matter_and_order_of_rules_does() -> None:
    first, second = "10.0.0.1", "10.0.0.2"
    assert digest_of_nft(listing(a_set("ipv4_addr", first, second))) == digest_of_nft(
        listing(a_set("ipv4_addr", second, first))
    )
    chain = {"chain": {"table": "vr", "name": "c"}}
    rules = [
        {"rule": {"table": "vr", "chain": "c", "comment": f"vrha:{n:012x}", "expr": []}}
        for n in range(2)
    ]
    assert digest_of_nft(listing(chain, *rules)) != digest_of_nft(listing(chain, *rules[::-1]))


def test_handles_do_not_matter_and_untagged_rules_do() -> None:
    chain = {"chain": {"table": "vr", "name": "c", "handle": 1}}
    rule = {"table": "vr", "chain": "c", "handle": 2, "expr": [{"accept": None}]}
    other = rule | {"handle": 3}
    dropped = rule | {"expr": [{"drop": None}]}
    assert digest_of_nft(listing(chain, {"rule": rule})) == digest_of_nft(
        listing(chain, {"rule": other})
    )
    assert digest_of_nft(listing(chain, {"rule": rule})) != digest_of_nft(
        listing(chain, {"rule": dropped})
    )


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nftables": 5}', '{"nftables": [5]}'])
def test_what_is_no_listing_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        digest_of_nft(text)
    assert caught.value.code == "rules-unreadable"


def test_every_part_of_a_spec_shows_in_the_digest() -> None:
    spec = small()
    for backend in Backend:
        base = replace(spec, router=replace(spec.router, backend=backend))
        rules = [
            Rule(Protocol.TCP, PortRange(80, 80)),
            Rule(Protocol.TCP, PortRange(81, 81)),
            Rule(Protocol.UDP, PortRange(80, 80)),
            Rule(Protocol.TCP, PortRange(80, 80), ip_network("10.0.0.0/8")),
            Rule(Protocol.ICMP, icmp_type=8),
        ]
        digests = {expected_digest(base).digest}
        for rule in rules:
            ingress = (Ingress(ip_address("198.51.100.2"), (rule,)),)
            changed = replace(base, router=replace(base.router, ingress=ingress))
            digests.add(expected_digest(changed).digest)
        assert len(digests) == 1 + len(rules)


def test_tables_that_the_kernel_made_itself_do_not_matter() -> None:
    first, second = iptables_texts(small())
    extra = "*security\n:INPUT ACCEPT [5:400]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    assert digest_of_iptables(first + extra, second) == digest_of_iptables(first, second)


def test_families_of_iptables_are_told_apart() -> None:
    first, second = iptables_texts(small())
    assert digest_of_iptables(first, second) != digest_of_iptables(second, first)
    assert digest_of_iptables(first, "") != digest_of_iptables(first, second)
