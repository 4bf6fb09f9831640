"""The rule model: what the firewall and NAT of one instance do, before any backend's syntax.

Ingress is judged on the destination *before* translation, egress on the destination *after* it.
Within one family all matches of one protocol are made disjoint: interval sets of nftables refuse
overlapping elements (net/netfilter/nft_set_pipapo.c, nft_pipapo_insert), and no two rules of one
list ever disagree about a packet, so overlap carries no meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

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
_WHOLE = {
    Protocol.TCP: ALL_PORTS,
    Protocol.UDP: ALL_PORTS,
    Protocol.ICMP: ALL_TYPES,
    Protocol.ANY: PortRange(0, 0),
}
_ANYWHERE: dict[int, Cidr] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}

_Span = tuple[int, int]
_Prefix = tuple[int, int]
"""Prefix length and the leading bits of the address as a number."""


@dataclass(frozen=True, slots=True)
class Match:
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
    `static-nat-twice`.
    """
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
    grouped: dict[Protocol, dict[_Prefix, list[_Span]]] = {}
    for rule in rules:
        remote = rule.remote or _ANYWHERE[version]
        if remote.version == version:
            by_prefix = grouped.setdefault(rule.protocol, {})
            by_prefix.setdefault(_prefix(remote), []).append(_span(rule))
    return tuple(
        Match(protocol, _cidr(prefix, version), PortRange(first, last))
        for protocol in Protocol
        for prefix, spans in sorted(_without_covered(grouped.get(protocol, {})).items())
        for first, last in spans
    )


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


def _span(rule: Rule) -> _Span:
    if rule.protocol is Protocol.ICMP and rule.icmp_type is not None:
        return (rule.icmp_type, rule.icmp_type)
    if rule.protocol in (Protocol.TCP, Protocol.UDP) and rule.ports is not None:
        return (rule.ports.first, rule.ports.last)
    whole = _WHOLE[rule.protocol]
    return (whole.first, whole.last)


def _without_covered(by_prefix: dict[_Prefix, list[_Span]]) -> dict[_Prefix, list[_Span]]:
    """Per prefix what no wider prefix has. Prefixes nest or are disjoint, so that is enough."""
    lengths = sorted({length for length, _ in by_prefix})
    result = {}
    for (length, bits), spans in by_prefix.items():
        wider = [
            span
            for shorter in lengths
            if shorter < length
            for span in by_prefix.get((shorter, bits >> (length - shorter)), ())
        ]
        left = _subtract(_union(spans), _union(wider))
        if left:
            result[(length, bits)] = left
    return result


def _union(spans: Sequence[_Span]) -> list[_Span]:
    """Overlapping spans joined; neighbours stay apart, so a list of ports stays a list."""
    joined: list[_Span] = []
    for first, last in sorted(set(spans)):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _subtract(spans: list[_Span], holes: list[_Span]) -> list[_Span]:
    """`spans` without `holes`; both sorted and disjoint."""
    left = []
    for first, last in spans:
        for hole_first, hole_last in holes:
            if hole_last < first:
                continue
            if hole_first > last:
                break
            if hole_first > first:
                left.append((first, hole_first - 1))
            first = hole_last + 1
        if first <= last:
            left.append((first, last))
    return left


def _prefix(cidr: Cidr) -> _Prefix:
    bits = int(cidr.network_address) >> (cidr.max_prefixlen - cidr.prefixlen)
    return (cidr.prefixlen, bits)


def _cidr(prefix: _Prefix, version: int) -> Cidr:
    length, bits = prefix
    # ip_network() would take a small number for an IPv4 address.
    if version == 4:
        return IPv4Network((bits << (32 - length), length))
    return IPv6Network((bits << (128 - length), length))
