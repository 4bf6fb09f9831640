"""From places to drafts: parts of the model with the places they were read from.

A draft keeps every part that is right in itself; `checks` then compares parts with each other
and needs to know where each of them stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vrha.config import values
from vrha.config.place import Place
from vrha.model.spec import (
    PRIORITIES,
    Address,
    Backend,
    DhcpRange,
    Egress,
    Host,
    Ingress,
    Interface,
    Network,
    Node,
    Policy,
    PortForward,
    Protocol,
    Route,
    Router,
    Rule,
    StaticNat,
    Subnet,
    Uplink,
    Verdict,
)

T = TypeVar("T")
Placed = list[tuple[Place, T]]

MAX_OBJECTS = 1000
MAX_HOSTS = 4096
MAX_RULES = 20_000
MAX_PUBLIC = 4096
MAX_SUBNETS = 16
MAX_ROUTER_NETWORKS = 64


@dataclass(slots=True)
class NetworkDraft:
    """`whole`: every subnet could be read, so addresses can be looked up in them.

    `dhcp_per_network` is 0 when it, or the peer's address, could not be read.
    """

    place: Place
    name: str | None
    bridge: tuple[Place, str] | None
    subnets: Placed[Subnet]
    hosts: Placed[Host]
    domain: str
    dns: tuple[Address, ...]
    lease_seconds: int
    egress: Egress
    dhcp_per_network: int
    dhcp_peer_address: tuple[Place, Address] | None
    whole: bool

    def build(self) -> Network:
        assert self.name is not None
        assert self.bridge is not None
        return Network(
            name=self.name,
            bridge=self.bridge[1],
            subnets=plain(self.subnets),
            hosts=plain(self.hosts),
            domain=self.domain,
            dns=self.dns,
            lease_seconds=self.lease_seconds,
            egress=self.egress,
            dhcp_per_network=self.dhcp_per_network,
            dhcp_peer_address=self.dhcp_peer_address[1] if self.dhcp_peer_address else None,
        )


@dataclass(slots=True)
class UplinkDraft:
    place: Place
    bridge: str | None
    addresses: Placed[Interface]
    gateways: Placed[Address]


@dataclass(slots=True)
class RouterDraft:
    place: Place
    name: str | None
    networks: Placed[str]
    uplink: UplinkDraft | None
    source_nat: Placed[Address]
    static_nat: Placed[StaticNat]
    port_forwards: Placed[PortForward]
    ingress: Placed[Ingress]
    routes: Placed[Route]
    backend: Backend
    zone: str
    labels: dict[str, str]
    policy: Policy
    priority: int

    def build(self) -> Router:
        assert self.name is not None
        up = self.uplink
        uplink = None
        if up is not None and up.bridge is not None:
            uplink = Uplink(up.bridge, plain(up.addresses), plain(up.gateways))
        return Router(
            name=self.name,
            networks=plain(self.networks),
            uplink=uplink,
            source_nat=plain(self.source_nat),
            static_nat=plain(self.static_nat),
            port_forwards=plain(self.port_forwards),
            ingress=plain(self.ingress),
            routes=plain(self.routes),
            backend=self.backend,
            zone=self.zone,
            labels=self.labels,
            policy=self.policy,
            priority=self.priority,
        )


def plain(placed: Placed[T]) -> tuple[T, ...]:
    return tuple(value for _, value in placed)


def listed(
    place: Place, limit: int, read: Callable[[Place], T | None], needs: str = ""
) -> Placed[T]:
    """The items of a list that `read` accepts, with their places; `needs`: why none is wrong."""
    found: Placed[T] = []
    if needs and (not place.present or place.count == 0):
        place.wrong(needs)
        return found
    for item in place.items(limit):
        value = read(item)
        if value is not None:
            found.append((item, value))
    return found


def optional(place: Place, read: Callable[[Place], T | None], default: T) -> T:
    """`default` where the field is absent, or wrong (then the problem is on record)."""
    value = read(place) if place.present else None
    return default if value is None else value


def network(place: Place) -> NetworkDraft | None:
    fields = place.fields(
        "name",
        "bridge",
        "subnets",
        "hosts",
        "domain",
        "dns",
        "lease_seconds",
        "egress",
        "dhcp_per_network",
        "dhcp_peer_address",
    )
    if fields is None:
        return None
    bridge = values.bridge(fields["bridge"])
    servers, peer = _dhcp_servers(fields["dhcp_per_network"], fields["dhcp_peer_address"])
    subnets = listed(fields["subnets"], MAX_SUBNETS, subnet, needs="a network needs a subnet")
    return NetworkDraft(
        place=place,
        name=values.name(fields["name"]),
        bridge=(fields["bridge"], bridge) if bridge else None,
        subnets=subnets,
        hosts=listed(fields["hosts"], MAX_HOSTS, host),
        domain=optional(fields["domain"], values.domain, ""),
        dns=plain(listed(fields["dns"], 8, values.address)),
        lease_seconds=optional(fields["lease_seconds"], _lease, 86400),
        egress=optional(fields["egress"], egress, Egress()),
        dhcp_per_network=servers,
        dhcp_peer_address=peer,
        whole=len(subnets) == fields["subnets"].count,
    )


def _dhcp_servers(per_network: Place, peer: Place) -> tuple[int, tuple[Place, Address] | None]:
    """How many, and the address of the second one; 0 where one of the two is wrong."""
    before = len(peer.problems)
    count = optional(per_network, lambda p: values.number(p, 1, 2), 1)
    address = values.address(peer) if peer.present else None
    if len(peer.problems) > before:
        return 0, None
    return count, (peer, address) if address else None


def _lease(place: Place) -> int | None:
    # dnsmasq(8): leases shorter than two minutes are not accepted.
    return values.number(place, 120, 365 * 86400)


def subnet(place: Place) -> Subnet | None:
    fields = place.fields("cidr", "gateway", "dhcp")
    if fields is None:
        return None
    cidr = values.cidr(fields["cidr"])
    gateway = values.address(fields["gateway"])
    dhcp = dhcp_range(fields["dhcp"]) if fields["dhcp"].present else None
    if cidr is None or gateway is None:
        return None
    if cidr.max_prefixlen - cidr.prefixlen < 2:
        fields["cidr"].wrong("has no room for a gateway and a host")
    elif not _one_machine(cidr.network_address):
        fields["cidr"].wrong("is no prefix for machines")
    elif gateway not in cidr or not values.usable_in(gateway, cidr):
        fields["gateway"].wrong(f"must be a host address in {cidr}")
    elif dhcp:
        _check_range(fields["dhcp"], dhcp, Subnet(cidr, gateway))
    return Subnet(cidr, gateway, dhcp)


def _one_machine(first: Address) -> bool:
    return not (first.is_multicast or first.is_loopback or first.is_unspecified)


def _check_range(place: Place, dhcp: DhcpRange, subnet: Subnet) -> None:
    cidr, gateway = subnet.cidr, subnet.gateway
    for end in (dhcp.first, dhcp.last):
        if end not in cidr or not values.usable_in(end, cidr):
            place.wrong(f"{end} is no host address in {cidr}")
            return
    if int(dhcp.first) > int(dhcp.last):
        place.wrong(f"ends ({dhcp.last}) before it begins ({dhcp.first})")
    elif int(dhcp.first) <= int(gateway) <= int(dhcp.last):
        place.wrong(f"contains the gateway {gateway}")


def dhcp_range(place: Place) -> DhcpRange | None:
    fields = place.fields("first", "last")
    if fields is None:
        return None
    first, last = values.address(fields["first"]), values.address(fields["last"])
    return DhcpRange(first, last) if first and last else None


def host(place: Place) -> Host | None:
    fields = place.fields("name", "mac", "addresses")
    if fields is None:
        return None
    name = values.host_name(fields["name"])
    mac = values.mac(fields["mac"])
    addresses: tuple[Address, ...] = plain(listed(fields["addresses"], 16, values.address))
    return Host(name, mac, addresses) if name and mac else None


def egress(place: Place) -> Egress | None:
    fields = place.fields("default", "rules")
    if fields is None:
        return None
    default = optional(fields["default"], lambda p: values.choice(p, Verdict), Verdict.ALLOW)
    return Egress(default, plain(listed(fields["rules"], MAX_RULES, rule)))


def rule(place: Place) -> Rule | None:
    fields = place.fields("protocol", "ports", "remote", "icmp_type")
    if fields is None:
        return None
    before = len(place.problems)
    protocol = optional(fields["protocol"], lambda p: values.choice(p, Protocol), Protocol.ANY)
    ports = values.ports(fields["ports"]) if fields["ports"].present else None
    remote = values.remote(fields["remote"]) if fields["remote"].present else None
    icmp_type = None
    if fields["icmp_type"].present:
        icmp_type = values.number(fields["icmp_type"], 0, 255)
    if len(place.problems) > before:
        return None
    if ports and protocol not in (Protocol.TCP, Protocol.UDP):
        fields["ports"].wrong(f"protocol {protocol.value} has no ports; only tcp and udp have")
    if icmp_type is not None and protocol is not Protocol.ICMP:
        fields["icmp_type"].wrong(f"protocol {protocol.value} has no types; only icmp has")
    return Rule(protocol, ports, remote, icmp_type)


def router(place: Place) -> RouterDraft | None:
    fields = place.fields(
        "name",
        "networks",
        "uplink",
        "source_nat",
        "static_nat",
        "port_forwards",
        "ingress",
        "routes",
        "backend",
        "zone",
        "labels",
        "policy",
        "priority",
    )
    if fields is None:
        return None
    return RouterDraft(
        place=place,
        name=values.name(fields["name"]),
        networks=listed(
            fields["networks"], MAX_ROUTER_NETWORKS, values.name, needs="a router needs a network"
        ),
        uplink=uplink(fields["uplink"]) if fields["uplink"].present else None,
        source_nat=listed(fields["source_nat"], 2, values.address),
        static_nat=listed(fields["static_nat"], MAX_PUBLIC, static_nat),
        port_forwards=listed(fields["port_forwards"], MAX_RULES, port_forward),
        ingress=listed(fields["ingress"], MAX_PUBLIC, ingress),
        routes=listed(fields["routes"], MAX_PUBLIC, route),
        backend=optional(fields["backend"], lambda p: values.choice(p, Backend), Backend.NFTABLES),
        zone=optional(fields["zone"], values.name, ""),
        labels=values.labels(fields["labels"]),
        policy=optional(fields["policy"], lambda p: values.choice(p, Policy), Policy.RESURRECT),
        priority=optional(fields["priority"], lambda p: values.number(p, *PRIORITIES), 0),
    )


def uplink(place: Place) -> UplinkDraft | None:
    fields = place.fields("bridge", "addresses", "gateways")
    if fields is None:
        return None
    return UplinkDraft(
        place=place,
        bridge=values.bridge(fields["bridge"]),
        addresses=listed(
            fields["addresses"], MAX_PUBLIC, values.interface, needs="an uplink needs an address"
        ),
        gateways=listed(fields["gateways"], 2, values.address),
    )


def static_nat(place: Place) -> StaticNat | None:
    fields = place.fields("public", "private")
    if fields is None:
        return None
    public, private = values.address(fields["public"]), values.address(fields["private"])
    return StaticNat(public, private) if public and private else None


def port_forward(place: Place) -> PortForward | None:
    fields = place.fields("public", "protocol", "ports", "private", "private_ports")
    if fields is None:
        return None
    public, private = values.address(fields["public"]), values.address(fields["private"])
    protocol = values.choice(fields["protocol"], Protocol)
    ports = values.ports(fields["ports"])
    inner = values.ports(fields["private_ports"]) if fields["private_ports"].present else ports
    if not (public and private and protocol and ports and inner):
        return None
    if protocol not in (Protocol.TCP, Protocol.UDP):
        fields["protocol"].wrong("must be tcp or udp")
    if len(ports) != len(inner):
        fields["private_ports"].wrong(f"{inner} is not as long as {ports}")
    return PortForward(public, protocol, ports, private, inner)


def ingress(place: Place) -> Ingress | None:
    fields = place.fields("address", "rules")
    if fields is None:
        return None
    address = values.address(fields["address"])
    rules = listed(fields["rules"], MAX_RULES, rule)
    if address is None:
        return None
    for at, one in rules:
        if one.remote and one.remote.version != address.version:
            at.wrong(f"remote {one.remote} is not of the family of {address}")
    return Ingress(address, plain(rules))


def route(place: Place) -> Route | None:
    fields = place.fields("cidr", "via")
    if fields is None:
        return None
    cidr, via = values.cidr(fields["cidr"]), values.address(fields["via"])
    if cidr is None or via is None:
        return None
    if cidr.version != via.version:
        fields["via"].wrong(f"is not of the family of {cidr}")
        return None
    return Route(cidr, via)


def node(place: Place) -> Node | None:
    fields = place.fields("name", "zone", "labels", "capacity")
    if fields is None:
        return None
    name = values.name(fields["name"])
    zone = optional(fields["zone"], values.name, "default")
    labels = values.labels(fields["labels"])
    capacity = optional(fields["capacity"], lambda p: values.number(p, 0, 10_000), 500)
    return Node(name, zone, labels, capacity) if name else None
