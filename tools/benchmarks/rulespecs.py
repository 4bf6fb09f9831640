"""Routers with many firewall rules, for measurements: one family each, rules of several shapes."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from itertools import islice, zip_longest

from vrha.core.instance import instance_spec
from vrha.model.spec import (
    Address,
    Backend,
    Cidr,
    Desired,
    Egress,
    Ingress,
    InstanceRef,
    InstanceSpec,
    Network,
    PortRange,
    Protocol,
    Router,
    Rule,
    StaticNat,
    Subnet,
    Uplink,
    Verdict,
)

INGRESS_PORT = 9000
"""UDP port to which every router with a rule admits the far end of the measurements."""


class Shape(StrEnum):
    """What the rules look like."""

    NONE = "no rules"
    ONE = "one rule"
    EXACT = "exact"
    """Half admit one port from anywhere, half refuse egress to one port of one address."""
    MIXED = "mixed"
    """Quarters: admit a port from anywhere, admit a range of ports from a prefix, refuse egress
    to ports of a prefix, refuse all egress to an address."""
    SPREAD = "100 addresses"
    """All admit, over 100 addresses; every other one only from a prefix."""


def at(version: int, v4: str, v6: str, number: int = 0) -> Address:
    """The address `number` after the one of this family."""
    return ip_address(v4 if version == 4 else v6) + number


def client(version: int, number: int = 0) -> Address:
    """A tenant's machine; number 0 has no address of its own outside."""
    return at(version, "10.1.1.11", "2001:db8:1::11", number)


def public(version: int, number: int = 0) -> Address:
    """An address of the uplink; number 0 is the source of all that has no other."""
    return at(version, "203.0.113.10", "2001:db8:ff::10", number)


def gateway(version: int) -> Address:
    """The upstream gateway."""
    return at(version, "203.0.113.1", "2001:db8:ff::1")


def far(version: int) -> Address:
    """A machine somewhere behind the gateway."""
    return at(version, "192.0.2.9", "2001:db8:f::9")


def admitted(version: int) -> Address:
    """What the far end writes to get to `client(version, 1)`: IPv6 is not translated."""
    return public(4, 1) if version == 4 else client(6, 1)


def spec_of(
    shape: Shape, count: int, backend: Backend, version: int, generation: int
) -> InstanceSpec:
    """A router with `count` rules of one shape in one family."""
    publics = 100 if shape is Shape.SPREAD else 10
    ingress, egress = _rules(shape, count, version, publics)
    tenants = at(version, "10.1.1.0", "2001:db8:1::")
    length, uplink_length = (24, 24) if version == 4 else (64, 64)
    network = Network(
        "red",
        "br-a",
        (Subnet(ip_network(f"{tenants}/{length}"), tenants + 1),),
        egress=Egress(Verdict.ALLOW, tuple(egress)),
    )
    router = Router(
        "edge",
        ("red",),
        Uplink(
            "br-up",
            tuple(ip_interface(f"{public(version, n)}/{uplink_length}") for n in range(publics)),
            (gateway(version),),
        ),
        source_nat=(public(4),) if version == 4 else (),
        static_nat=tuple(StaticNat(public(4, n), client(4, n)) for n in range(1, publics))
        if version == 4
        else (),
        ingress=tuple(Ingress(address, tuple(rules)) for address, rules in ingress.items()),
        backend=backend,
    )
    zone = Desired((network,), (router,))
    return instance_spec(zone, router, InstanceRef("edge", generation), 1)


def _rules(
    shape: Shape, count: int, version: int, publics: int
) -> tuple[dict[Address, list[Rule]], list[Rule]]:
    opening = _far_rule(shape, version)
    if opening is None:
        return {}, []
    admitting, refusing = {
        Shape.ONE: (0, 0),
        Shape.EXACT: (count // 2 - 1, count - count // 2),
        Shape.MIXED: (count // 2 - 1, count - count // 2),
        Shape.SPREAD: (count - 1, 0),
    }[shape]
    targets = [public(4, n) if version == 4 else client(6, n) for n in range(publics)]
    ingress: dict[Address, list[Rule]] = {admitted(version): []}
    sources = _admissions(version, publics, with_prefixes=shape is not Shape.EXACT)
    for number, rule in enumerate(islice(sources, admitting)):
        ingress.setdefault(targets[number // 2 % publics], []).append(rule)
    ingress[admitted(version)].append(opening)
    return ingress, list(islice(_refusals(version, wide=shape is Shape.MIXED), refusing))


def _far_rule(shape: Shape, version: int) -> Rule | None:
    port = PortRange(INGRESS_PORT, INGRESS_PORT)
    if shape is Shape.NONE:
        return None
    if shape in (Shape.ONE, Shape.EXACT):
        return Rule(Protocol.UDP, port)
    return Rule(
        Protocol.UDP, port, ip_network((int(far(version)) >> 8 << 8, 24 if version == 4 else 120))
    )


def _admissions(version: int, publics: int, with_prefixes: bool) -> Iterator[Rule]:
    for n in range(20_000):
        port = 1000 + n // publics
        yield Rule(Protocol.TCP, PortRange(port, port))
        if with_prefixes:
            yield Rule(Protocol.UDP, PortRange(20_000 + n, 20_003 + n), _prefix(version, 1, n))
        else:
            yield Rule(Protocol.UDP, PortRange(port, port))


def _refusals(version: int, wide: bool) -> Iterator[Rule]:
    hosts = (Rule(remote=_host(version, n)) for n in range(20_000))
    ports = PortRange(25, 25)
    if wide:
        prefixes = (Rule(Protocol.TCP, ports, _prefix(version, 2, n)) for n in range(20_000))
        for pair in zip_longest(hosts, prefixes):
            yield from (rule for rule in pair if rule is not None)
        return
    yield from (Rule(Protocol.TCP, ports, _host(version, n)) for n in range(20_000))


def _host(version: int, number: int) -> Cidr:
    return ip_network(at(version, "198.18.0.0", "2001:db8:a::", number))


def _prefix(version: int, region: int, number: int) -> Cidr:
    first = at(version, "100.64.0.0", "2001:db8:b::", 16 * (number + region * 65536))
    return ip_network(f"{first}/{28 if version == 4 else 124}")
