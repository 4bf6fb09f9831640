"""The rules of one instance as a ruleset of nftables: one table, sets and maps, one transaction.

Rules are few and fixed; what grows with the router are the elements of sets and maps, so the cost
of a packet does not grow with the number of rules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vrha.model.spec import InstanceSpec, Protocol
from vrha.render.rules import FamilyRules, Match, Rules, Segment, rules_of
from vrha.render.templates import render

TABLE = "vr"
"""Name of the table, of family inet."""

_RULE = re.compile(r"^\t\t(?!type |flags |elements |\t|\})(.+)$")
_CHAIN = re.compile(r"^\tchain (\S+) \{$")


@dataclass(frozen=True, slots=True)
class NftSet:
    """A named set or map. `elements` are in canonical form: the text that is loaded."""

    noun: str
    name: str
    type: str
    interval: bool
    elements: tuple[str, ...]


def nft_text(spec: InstanceSpec, fresh: bool = False) -> str:
    """The text for `nft -f -` that makes table `inet vr` exactly what `spec` wants, atomically.

    `fresh` is for a namespace that has no such table: a pure addition, after which the nft process
    need not wait for the kernel to destroy anything. Raises InputError.
    """
    rules = rules_of(spec)
    sets = nft_sets(rules)
    return _text(rules, sets, sets, fresh)


def nft_chains(rules: Rules, sets: tuple[NftSet, ...]) -> str:
    """The ruleset without its sets and maps: chains and rules, each rule with its tag."""
    return _text(rules, sets, (), fresh=True)


def nft_sets(rules: Rules) -> tuple[NftSet, ...]:
    """The sets and maps of the ruleset, without the empty ones (nftables reads no empty list)."""
    sets = [*_family_sets(rules.v4), *_family_sets(rules.v6)]
    return tuple(each for each in sets if each.elements)


def rule_tag(place: str, rule: str) -> str:
    """The comment of a rule: a hash of its text and of the chain that it stands in."""
    return "vrha:" + hashlib.sha256(f"{place} {rule}".encode()).hexdigest()[:12]


def _text(rules: Rules, sets: tuple[NftSet, ...], listed: tuple[NftSet, ...], fresh: bool) -> str:
    text = render(
        "nft.j2",
        fresh=fresh,
        sets=listed,
        names=frozenset(each.name for each in sets),
        uplink=rules.uplink,
        tenants=rules.tenants,
        v4=rules.v4,
        v6=rules.v6,
    )
    return _tagged(text)


def _tagged(text: str) -> str:
    sets, start, chains = text.partition("\tchain ")
    lines = []
    chain = ""
    for line in (start + chains).splitlines():
        if found := _CHAIN.match(line):
            chain = found.group(1)
        elif chain and (found := _RULE.match(line)):
            line += f' comment "{rule_tag(chain, found.group(1))}"'
        lines.append(line)
    return sets + "\n".join(lines) + "\n"


def _family_sets(rules: FamilyRules) -> Iterator[NftSet]:
    family = str(rules.version)
    address = f"ipv{family}_addr"
    service = f"{address} . inet_proto . inet_service"
    icmp = f"{address} . {'icmp_type' if rules.version == 4 else 'icmpv6_type'}"
    admissions = _admitted(rules)
    yield NftSet("set", f"sources{family}", f"ifname . {address}", True, _sources(rules))
    yield NftSet("set", f"admitted{family}", address, False, admissions.addresses)
    yield NftSet("set", f"ports{family}", service, False, tuple(admissions.exact))
    remotes = tuple(admissions.services)
    yield NftSet("set", f"remotes{family}", f"{address} . {service}", True, remotes)
    yield NftSet("set", f"icmp{family}", f"{address} . {icmp}", True, tuple(admissions.icmp))
    yield NftSet("set", f"open{family}", f"{address} . {address}", True, tuple(admissions.all))
    yield NftSet(
        "map", f"forward{family}", f"{service} : {address} . inet_service", False, _forwards(rules)
    )
    pairs = [(str(nat.public), str(nat.private)) for nat in rules.static]
    translation = f"{address} : {address}"
    inward = tuple(f"{public} : {private}" for public, private in pairs)
    outward = tuple(f"{private} : {public}" for public, private in pairs)
    yield NftSet("map", f"static{family}", translation, False, inward)
    yield NftSet("map", f"public{family}", translation, False, outward)
    for segment in rules.segments:
        name = segment.port
        egress = _exceptions(segment)
        yield NftSet("set", f"{name}_ports{family}", service, True, tuple(egress.services))
        yield NftSet("set", f"{name}_icmp{family}", icmp, True, tuple(egress.icmp))
        yield NftSet("set", f"{name}_any{family}", address, True, tuple(egress.all))


def _sources(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(f"{s.port} . {subnet.cidr}" for s in rules.segments for subnet in s.subnets)


@dataclass(frozen=True, slots=True)
class _Elements:
    """Matches as elements, by the kind of set that they go into."""

    addresses: tuple[str, ...] = ()
    exact: list[str] = field(default_factory=list)
    """One port from anywhere: what a hash set holds."""
    services: list[str] = field(default_factory=list)
    icmp: list[str] = field(default_factory=list)
    all: list[str] = field(default_factory=list)


def _admitted(rules: FamilyRules) -> _Elements:
    found = _Elements(tuple(str(admission.address) for admission in rules.admissions))
    for address, admission in zip(found.addresses, rules.admissions, strict=True):
        for match in admission.matches:
            protocol, ports = match.protocol, match.ports
            if protocol is Protocol.ANY:
                found.all.append(f"{_net(match)} . {address}")
            elif protocol is Protocol.ICMP:
                found.icmp.append(f"{_net(match)} . {address} . {ports}")
            elif match.anywhere and ports.first == ports.last:
                found.exact.append(f"{address} . {protocol} . {ports.first}")
            else:
                found.services.append(f"{_net(match)} . {address} . {protocol} . {ports}")
    return found


def _exceptions(segment: Segment) -> _Elements:
    found = _Elements()
    for match in segment.matches:
        if match.protocol is Protocol.ANY:
            found.all.append(_net(match))
        elif match.protocol is Protocol.ICMP:
            found.icmp.append(f"{_net(match)} . {match.ports}")
        else:
            found.services.append(f"{_net(match)} . {match.protocol} . {match.ports}")
    return found


def _forwards(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(
        f"{forward.public} . {forward.protocol} . {public} : {forward.private} . {private}"
        for forward in rules.forwards
        for public, private in forward.each()
    )


def _net(match: Match) -> str:
    """The prefix, or the bare address where it is a single one, as nftables prints it."""
    remote = match.remote
    if remote.prefixlen == remote.max_prefixlen:
        return str(remote.network_address)
    return str(remote)
