"""The rule model: what the firewall and NAT of one instance do, before any backend's syntax.

Ingress is judged on the destination *before* translation, egress on the destination *after* it.
Within one family all matches of one protocol are made disjoint: interval sets of nftables refuse
overlapping elements (net/netfilter/nft_set_pipapo.c, nft_pipapo_insert), and no two rules of one
list ever disagree about a packet, so overlap carries no meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from vrha.errors import InputError
from vrha.model.spec import (
    Address,
    Cidr,
    InstanceSpec,
    Network,
    PortRange,
    Protocol,
    Rule,
    StaticNat,
    Subnet,
    Verdict,
)

MAX_FORWARDED_PORTS = 65535
"""Most ports that the port forwards of one router may cover together, per family."""

ALL_PORTS = PortRange(0, 65535)
ALL_TYPES = PortRange(0, 255)
_Prefix = int
"""A one, then the leading bits of the address: sorts by length, and shifts to wider prefixes."""

_WHOLE = {
    Protocol.TCP: ALL_PORTS,
    Protocol.UDP: ALL_PORTS,
    Protocol.ICMP: ALL_TYPES,
    Protocol.ANY: PortRange(0, 0),
}
_ENDS = attrgetter("first", "last")
_ANYWHERE: dict[int, Cidr] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


class Match(NamedTuple):
    """Packets of `protocol` from or to `remote`.

    `ports` are destination ports of TCP and UDP, types of ICMP, and mean nothing for ANY.
    """

    protocol: Protocol
    remote: Cidr
    ports: PortRange

    @property
    def anywhere(self) -> bool:
        """Whether the far end does not matter."""
        return self.remote.prefixlen == 0

    @property
    def whole(self) -> bool:
        """Whether all ports, or all types, of the protocol match."""
        return self.ports == _WHOLE[self.protocol]


@dataclass(frozen=True, slots=True)
class Admission:
    """What may come in to one address, as the sender wrote it."""

    address: Address
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True)
class Forward:
    """Public ports to private ports; where the ranges are equal ports stay as they are."""

    public: Address
    protocol: Protocol
    ports: PortRange
    private: Address
    private_ports: PortRange

    def each(self) -> Iterator[tuple[int, int]]:
        """Public and private port, one pair after the other."""
        shift = self.private_ports.first - self.ports.first
        return ((port, port + shift) for port in range(self.ports.first, self.ports.last + 1))


@dataclass(frozen=True, slots=True)
class Segment:
    """One network in one family: its port, its prefixes, and its exceptions from `default`."""

    port: str
    subnets: tuple[Subnet, ...]
    default: Verdict
    matches: tuple[Match, ...]

    @property
    def exception(self) -> Verdict:
        """What happens to a packet that one of `matches` describes."""
        return Verdict.DENY if self.default is Verdict.ALLOW else Verdict.ALLOW


@dataclass(frozen=True, slots=True)
class FamilyRules:
    """Everything of one family, 4 or 6."""

    version: int
    segments: tuple[Segment, ...]
    admissions: tuple[Admission, ...]
    forwards: tuple[Forward, ...]
    static: tuple[StaticNat, ...]
    source_nat: Address | None

    @property
    def subnets(self) -> tuple[Subnet, ...]:
        """All tenant prefixes of the family."""
        return tuple(subnet for segment in self.segments for subnet in segment.subnets)

    @property
    def translates(self) -> bool:
        """Whether any destination is translated."""
        return bool(self.forwards or self.static)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rule model of one instance; `uplink` is empty on a router without one."""

    uplink: str
    tenants: tuple[str, ...]
    v4: FamilyRules
    v6: FamilyRules


def rules_of(spec: InstanceSpec) -> Rules:
    """The rule model of `spec`.

    Raises InputError: `unknown-port` (a network without a port), `port-forward-protocol`,
    `port-forward-lengths`, `port-forward-overlap`, `too-many-forwarded-ports`,
    `static-nat-twice`, `scoped-address`.
    """
    _refuse_scopes(spec)
    ports = {port.network: port.name for port in spec.ports if not port.is_uplink}
    for network in spec.networks:
        if network.name not in ports:
            raise InputError("unknown-port", f"network {network.name} has no port in {spec.ref}")
    uplink = spec.uplink
    return Rules(
        uplink=uplink.name if uplink else "",
        tenants=tuple(ports[network.name] for network in spec.networks),
        v4=_family(spec, ports, 4),
        v6=_family(spec, ports, 6),
    )


def disjoint(rules: Iterable[Rule], version: int) -> tuple[Match, ...]:
    """The part of `rules` that concerns the family `version`, as matches that never overlap."""
    anywhere = _ANYWHERE[version]
    family, width = type(anywhere), anywhere.max_prefixlen
    grouped: dict[Protocol, dict[_Prefix, list[PortRange]]] = {p: {} for p in Protocol}
    # Networks are kept, not made again: that would cost more than all the rest.
    remotes: dict[_Prefix, Cidr] = {}
    for rule in rules:
        remote = rule.remote or anywhere
        if isinstance(remote, family):
            length = remote.prefixlen
            prefix = 1 << length | int(remote.network_address) >> (width - length)
            remotes[prefix] = remote
            grouped[rule.protocol].setdefault(prefix, []).append(_span(rule))
    return tuple(
        Match(protocol, remotes[prefix], span)
        for protocol, by_prefix in grouped.items()
        for prefix, spans in _without_covered(by_prefix)
        for span in spans
    )


def _refuse_scopes(spec: InstanceSpec) -> None:
    """A scope (RFC 4007 section 11) is free text after `%`: it could be syntax of a ruleset."""
    router = spec.router
    listed = [n.egress.rules for n in spec.networks] + [i.rules for i in router.ingress]
    remotes = (rule.remote for rules in listed for rule in rules if rule.remote is not None)
    subnets = [subnet for network in spec.networks for subnet in network.subnets]
    pairs = [(nat.public, nat.private) for nat in router.static_nat]
    pairs += [(forward.public, forward.private) for forward in router.port_forwards]
    addresses = chain(
        (remote.network_address for remote in remotes),
        (address for s in subnets for address in (s.cidr.network_address, s.gateway)),
        chain.from_iterable(pairs),
        (ingress.address for ingress in router.ingress),
        router.source_nat,
    )
    for address in addresses:
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            raise InputError("scoped-address", f"{str(address)[:60]!r} names a scope")


def _family(spec: InstanceSpec, ports: dict[str, str], version: int) -> FamilyRules:
    router = spec.router
    return FamilyRules(
        version=version,
        segments=tuple(_segment(n, ports[n.name], version) for n in spec.networks),
        admissions=_admissions(spec, version) if spec.uplink else (),
        forwards=_forwards(spec, version),
        static=_static(spec, version),
        source_nat=next((a for a in router.source_nat if a.version == version), None),
    )


def _segment(network: Network, port: str, version: int) -> Segment:
    return Segment(
        port=port,
        subnets=tuple(s for s in network.subnets if s.cidr.version == version),
        default=network.egress.default,
        matches=disjoint(network.egress.rules, version),
    )


def _admissions(spec: InstanceSpec, version: int) -> tuple[Admission, ...]:
    rules: dict[Address, list[Rule]] = {}
    for ingress in spec.router.ingress:
        if ingress.address.version == version:
            rules.setdefault(ingress.address, []).extend(ingress.rules)
    admissions = (Admission(address, disjoint(found, version)) for address, found in rules.items())
    return tuple(admission for admission in admissions if admission.matches)


def _forwards(spec: InstanceSpec, version: int) -> tuple[Forward, ...]:
    forwards = []
    taken: set[tuple[Address, Protocol, int]] = set()
    for each in spec.router.port_forwards:
        if each.public.version != version:
            continue
        if each.protocol not in (Protocol.TCP, Protocol.UDP):
            raise InputError("port-forward-protocol", f"{each.protocol} has no ports to forward")
        if len(each.ports) != len(each.private_ports):
            raise InputError(
                "port-forward-lengths",
                f"{each.public} {each.protocol} {each.ports} to {each.private_ports}: "
                "the ranges differ in length",
            )
        if len(taken) + len(each.ports) > MAX_FORWARDED_PORTS:
            raise InputError(
                "too-many-forwarded-ports",
                f"router {spec.router.name} forwards more than {MAX_FORWARDED_PORTS} ports",
                "Use static NAT for an address of which all ports are wanted.",
            )
        wanted = range(each.ports.first, each.ports.last + 1)
        keys = {(each.public, each.protocol, port) for port in wanted}
        if keys & taken:
            raise InputError(
                "port-forward-overlap",
                f"{each.public} {each.protocol} {each.ports} is forwarded twice",
            )
        taken |= keys
        forwards.append(
            Forward(each.public, each.protocol, each.ports, each.private, each.private_ports)
        )
    return tuple(forwards)


def _static(spec: InstanceSpec, version: int) -> tuple[StaticNat, ...]:
    pairs = tuple(nat for nat in spec.router.static_nat if nat.public.version == version)
    for side in ("public", "private"):
        addresses = [getattr(nat, side) for nat in pairs]
        if len(set(addresses)) != len(addresses):
            raise InputError(
                "static-nat-twice",
                f"router {spec.router.name} translates one {side} address twice",
                "Static NAT is one to one.",
            )
    return pairs


def _span(rule: Rule) -> PortRange:
    protocol = rule.protocol
    if protocol is Protocol.ICMP and rule.icmp_type is not None:
        return PortRange(rule.icmp_type, rule.icmp_type)
    if rule.ports is not None and (protocol is Protocol.TCP or protocol is Protocol.UDP):
        return rule.ports
    return _WHOLE[protocol]


def _without_covered(
    by_prefix: dict[_Prefix, list[PortRange]],
) -> Iterator[tuple[_Prefix, list[PortRange]]]:
    """Per prefix what no wider prefix has. Prefixes nest or are disjoint, so that is enough."""
    lengths = sorted({prefix.bit_length() for prefix in by_prefix})
    shorter_by = {one: [one - other for other in lengths if other < one] for one in lengths}
    for prefix in sorted(by_prefix):
        left = _union(by_prefix[prefix])
        wider: list[PortRange] = []
        for bits in shorter_by[prefix.bit_length()]:
            wider += by_prefix.get(prefix >> bits, ())
        if wider:
            left = _subtract(left, _union(wider))
        yield prefix, left


def _union(spans: list[PortRange]) -> list[PortRange]:
    """Overlapping spans joined; neighbours stay apart, so a list of ports stays a list."""
    if len(spans) == 1:
        return spans
    joined: list[PortRange] = []
    for span in sorted(set(spans), key=_ENDS):
        if joined and span.first <= joined[-1].last:
            joined[-1] = PortRange(joined[-1].first, max(joined[-1].last, span.last))
        else:
            joined.append(span)
    return joined


def _subtract(spans: list[PortRange], holes: list[PortRange]) -> list[PortRange]:
    """`spans` without `holes`; both sorted and disjoint."""
    left = []
    for span in spans:
        first = span.first
        for hole in holes:
            if hole.last < first:
                continue
            if hole.first > span.last:
                break
            if hole.first > first:
                left.append(PortRange(first, hole.first - 1))
            first = hole.last + 1
        if first <= span.last:
            left.append(PortRange(first, span.last))
    return left
