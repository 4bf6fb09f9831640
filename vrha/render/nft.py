"""The rules of one instance as a ruleset of nftables: one table, sets and maps, one transaction.

Rules are few and fixed; what grows with the router are the elements of sets and maps, so the cost
of a packet does not grow with the number of rules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

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
    lines = []
    chain = ""
    for line in text.splitlines():
        if found := _CHAIN.match(line):
            chain = found.group(1)
        elif chain and (found := _RULE.match(line)):
            line += f' comment "{rule_tag(chain, found.group(1))}"'
        lines.append(line)
    return "\n".join(lines) + "\n"


def _family_sets(rules: FamilyRules) -> Iterator[NftSet]:
    family = str(rules.version)
    address = f"ipv{family}_addr"
    service = f"{address} . inet_proto . inet_service"
    icmp = f"{address} . {'icmp_type' if rules.version == 4 else 'icmpv6_type'}"
    yield NftSet("set", f"sources{family}", f"ifname . {address}", True, _sources(rules))
    admitted = tuple(str(admission.address) for admission in rules.admissions)
    yield NftSet("set", f"admitted{family}", address, False, admitted)
    yield NftSet("set", f"ports{family}", service, False, _admitted_ports(rules))
    yield NftSet(
        "set", f"remotes{family}", f"{address} . {service}", True, _admitted_remotes(rules)
    )
    yield NftSet("set", f"icmp{family}", f"{address} . {icmp}", True, _admitted_icmp(rules))
    yield NftSet("set", f"open{family}", f"{address} . {address}", True, _admitted_any(rules))
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
        yield NftSet("set", f"{name}_ports{family}", service, True, _egress_ports(segment))
        yield NftSet("set", f"{name}_icmp{family}", icmp, True, _egress_icmp(segment))
        yield NftSet("set", f"{name}_any{family}", address, True, _egress_any(segment))


def _sources(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(f"{s.port} . {subnet.cidr}" for s in rules.segments for subnet in s.subnets)


def _is_exact(match: Match) -> bool:
    """Whether a match fits a hash set: from anywhere to one port."""
    return match.anywhere and match.ports.first == match.ports.last


def _has_ports(match: Match) -> bool:
    return match.protocol in (Protocol.TCP, Protocol.UDP)


def _admitted(rules: FamilyRules) -> Iterator[tuple[str, Match]]:
    for admission in rules.admissions:
        address = str(admission.address)
        for match in admission.matches:
            yield address, match


def _admitted_ports(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(
        f"{address} . {match.protocol} . {match.ports.first}"
        for address, match in _admitted(rules)
        if _has_ports(match) and _is_exact(match)
    )


def _admitted_remotes(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(
        f"{_net(match)} . {address} . {match.protocol} . {match.ports}"
        for address, match in _admitted(rules)
        if _has_ports(match) and not _is_exact(match)
    )


def _admitted_icmp(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(
        f"{_net(match)} . {address} . {match.ports}"
        for address, match in _admitted(rules)
        if match.protocol is Protocol.ICMP
    )


def _admitted_any(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(
        f"{_net(match)} . {address}"
        for address, match in _admitted(rules)
        if match.protocol is Protocol.ANY
    )


def _forwards(rules: FamilyRules) -> tuple[str, ...]:
    return tuple(
        f"{forward.public} . {forward.protocol} . {public} : {forward.private} . {private}"
        for forward in rules.forwards
        for public, private in forward.each()
    )


def _egress_ports(segment: Segment) -> tuple[str, ...]:
    return tuple(
        f"{_net(match)} . {match.protocol} . {match.ports}"
        for match in segment.matches
        if _has_ports(match)
    )


def _egress_icmp(segment: Segment) -> tuple[str, ...]:
    return tuple(
        f"{_net(match)} . {match.ports}"
        for match in segment.matches
        if match.protocol is Protocol.ICMP
    )


def _egress_any(segment: Segment) -> tuple[str, ...]:
    return tuple(_net(match) for match in segment.matches if match.protocol is Protocol.ANY)


def _net(match: Match) -> str:
    """The prefix, or the bare address where it is a single one, as nftables prints it."""
    remote = match.remote
    if remote.prefixlen == remote.max_prefixlen:
        return str(remote.network_address)
    return str(remote)
