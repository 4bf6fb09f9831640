"""The rule model: what is disjoint, what is refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.render.render_specs import small
from vrha.errors import InputError
from vrha.model.spec import (
    Egress,
    Ingress,
    Network,
    PortForward,
    PortRange,
    Protocol,
    Rule,
    StaticNat,
    Verdict,
)
from vrha.render.rules import Match, disjoint, rules_of

# A small world, so that rules meet: 16 addresses, 8 ports.
prefixes = st.builds(
    lambda length, bits: IPv4Network((bits << (32 - length) & 0xFFFFFFFF, length)),
    st.integers(28, 32),
    st.integers(0, 15),
)
ranges = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(
    lambda pair: PortRange(min(pair), max(pair))
)
rules = st.builds(
    Rule,
    st.sampled_from(list(Protocol)),
    st.none() | ranges,
    st.none() | prefixes,
    st.none() | st.integers(0, 4),
)


def selects(rule: Rule, protocol: Protocol, remote: IPv4Address, number: int) -> bool:
    """What a rule says, in the plainest words."""
    if rule.protocol is not protocol or (rule.remote is not None and remote not in rule.remote):
        return False
    if protocol in (Protocol.TCP, Protocol.UDP):
        return rule.ports is None or rule.ports.first <= number <= rule.ports.last
    if protocol is Protocol.ICMP:
        return rule.icmp_type is None or rule.icmp_type == number
    return True


def matches(match: Match, protocol: Protocol, remote: IPv4Address, number: int) -> bool:
    if match.protocol is not protocol or remote not in match.remote:
        return False
    return protocol is Protocol.ANY or match.ports.first <= number <= match.ports.last


@settings(deadline=None)
@given(st.lists(rules, max_size=8))
def test_disjoint_selects_the_same_packets(found: list[Rule]) -> None:
    result = disjoint(found, 4)
    for protocol in Protocol:
        for remote in map(IPv4Address, (*range(16), 0xC0000201)):
            for number in range(10):
                packet = (protocol, remote, number)
                assert any(matches(m, *packet) for m in result) == any(
                    selects(r, *packet) for r in found
                )


@settings(deadline=None)
@given(st.lists(rules, max_size=8))
def test_disjoint_never_overlaps(found: list[Rule]) -> None:
    for one, other in combinations(disjoint(found, 4), 2):
        same = one.protocol is other.protocol and one.remote.overlaps(other.remote)
        apart = one.ports.last < other.ports.first or other.ports.last < one.ports.first
        assert not same or apart


def test_families_are_told_apart() -> None:
    found = (
        Rule(Protocol.TCP, remote=ip_network("10.0.0.0/8")),
        Rule(Protocol.TCP, remote=ip_network("::/8")),
        Rule(Protocol.UDP),
    )
    assert [str(match.remote) for match in disjoint(found, 4)] == ["10.0.0.0/8", "0.0.0.0/0"]
    assert [str(match.remote) for match in disjoint(found, 6)] == ["::/8", "::/0"]


def test_a_list_of_ports_stays_a_list() -> None:
    found = [Rule(Protocol.TCP, PortRange(port, port)) for port in (80, 81, 82)]
    assert [match.ports for match in disjoint(found, 4)] == [rule.ports for rule in found]


def _forward(first: int, last: int, to: int) -> PortForward:
    length = last - first
    return PortForward(
        ip_address("198.51.100.2"),
        Protocol.TCP,
        PortRange(first, last),
        ip_address("10.1.0.5"),
        PortRange(to, to + length),
    )


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("port-forward-overlap", {"port_forwards": (_forward(80, 90, 80), _forward(90, 95, 80))}),
        (
            "port-forward-lengths",
            {"port_forwards": (replace(_forward(80, 90, 80), private_ports=PortRange(1, 2)),)},
        ),
        (
            "port-forward-protocol",
            {"port_forwards": (replace(_forward(80, 90, 80), protocol=Protocol.ICMP),)},
        ),
        (
            "too-many-forwarded-ports",
            {
                "port_forwards": (
                    _forward(1, 65535, 1),
                    replace(_forward(1, 1, 1), protocol=Protocol.UDP),
                )
            },
        ),
        (
            "static-nat-twice",
            {
                "static_nat": (
                    StaticNat(ip_address("198.51.100.3"), ip_address("10.1.0.5")),
                    StaticNat(ip_address("198.51.100.4"), ip_address("10.1.0.5")),
                )
            },
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused(code: str, change: dict[str, object]) -> None:
    spec = small()
    with pytest.raises(InputError) as caught:
        rules_of(replace(spec, router=replace(spec.router, **change)))  # type: ignore[arg-type]
    assert caught.value.code == code


def test_a_network_without_a_port_is_refused() -> None:
    spec = small()
    with pytest.raises(InputError) as caught:
        rules_of(replace(spec, ports=()))
    assert caught.value.code == "unknown-port"


def test_rules_of_one_address_are_one_admission() -> None:
    spec = small()
    address = ip_address("198.51.100.2")
    ingress = tuple(
        Ingress(address, (Rule(Protocol.TCP, PortRange(port, port)),)) for port in (80, 80, 443)
    )
    found = rules_of(replace(spec, router=replace(spec.router, ingress=ingress)))
    (admission,) = found.v4.admissions
    assert [match.ports.first for match in admission.matches] == [80, 443]
    assert found.v6.admissions == ()


def test_the_exception_is_the_opposite_of_the_default() -> None:
    spec = small()
    for default, exception in (
        (Verdict.ALLOW, Verdict.DENY),
        (Verdict.DENY, Verdict.ALLOW),
    ):
        network: Network = replace(spec.networks[0], egress=Egress(default))
        found = rules_of(replace(spec, networks=(network,)))
        assert found.v4.segments[0].exception is exception
