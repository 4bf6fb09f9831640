"""Desired state: networks, routers, nodes; and the complete description of one instance.

The words are those of docs/words.md. All types are plain frozen dataclasses: the edges
(`vrha.config`, `vrha.codec`) turn YAML and JSON into them and validate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Cidr = IPv4Network | IPv6Network


class Backend(StrEnum):
    """What loads the firewall and NAT rules of an instance."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


class Policy(StrEnum):
    """What makes a router serve again when its node is lost."""

    RESURRECT = "resurrect"
    """A new instance is built on another node: costs nothing until then."""
    STANDBY = "standby"
    """A complete, muted instance on another node knows all connections: costs one instance."""


class Verdict(StrEnum):
    """What happens to a packet."""

    ALLOW = "allow"
    DENY = "deny"


class Protocol(StrEnum):
    """Layer 4 protocol of a rule; `icmp` means ICMPv6 on an IPv6 address; `any` has no ports."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ANY = "any"


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports `first`..`last`, both included, 1..65535."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class DhcpRange:
    """Addresses handed out by DHCP, both ends included."""

    first: Address
    last: Address


@dataclass(frozen=True, slots=True)
class Subnet:
    """One prefix of a network; `gateway` is the router's own address in it."""

    cidr: Cidr
    gateway: Address
    dhcp: DhcpRange | None = None

    @property
    def interface(self) -> Interface:
        """The gateway with the subnet's prefix length, as the router's port carries it."""
        if isinstance(self.gateway, IPv4Address):
            return IPv4Interface((self.gateway, self.cidr.prefixlen))
        return IPv6Interface((self.gateway, self.cidr.prefixlen))


@dataclass(frozen=True, slots=True)
class Host:
    """A machine with fixed addresses: gets them by DHCP and a name in DNS."""

    name: str
    mac: str
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """What a firewall rule matches.

    `remote` is the far end (source of ingress, destination of egress), None for anywhere;
    `ports` are destination ports of TCP or UDP, None for all; `icmp_type` None for all types.
    """

    protocol: Protocol = Protocol.ANY
    ports: PortRange | None = None
    remote: Cidr | None = None
    icmp_type: int | None = None


@dataclass(frozen=True, slots=True)
class Egress:
    """Egress policy of one network: `rules` are the exceptions from `default`."""

    default: Verdict = Verdict.ALLOW
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """One tenant segment."""

    name: str
    bridge: str
    subnets: tuple[Subnet, ...]
    hosts: tuple[Host, ...] = ()
    domain: str = ""
    dns: tuple[Address, ...] = ()
    """Resolvers to which the router's DNS forwards; none: it answers only for its hosts."""
    lease_seconds: int = 86400
    egress: Egress = Egress()
    dhcp_per_network: int = 1
    """DHCP servers (IPv4): the router's own, and with 2 another one on another node."""
    dhcp_peer_address: Address | None = None
    """Address of that other one."""

    @property
    def shared_dhcp(self) -> Subnet | None:
        """The subnet that two DHCP servers serve, if there is one."""
        peer = self.dhcp_peer_address
        if self.dhcp_per_network < 2 or peer is None:
            return None
        return next((subnet for subnet in self.subnets if peer in subnet.cidr), None)


@dataclass(frozen=True, slots=True)
class Uplink:
    """The router's public port: addresses with prefix length, and the upstream gateways."""

    bridge: str
    addresses: tuple[Interface, ...]
    gateways: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class StaticNat:
    """1:1 translation between a public and a private address of the same family."""

    public: Address
    private: Address


@dataclass(frozen=True, slots=True)
class PortForward:
    """Public address and ports to a private address; both ranges have one length."""

    public: Address
    protocol: Protocol
    ports: PortRange
    private: Address
    private_ports: PortRange


@dataclass(frozen=True, slots=True)
class Ingress:
    """What may come in from the uplink to `address`; all else that is new is dropped.

    `address` is a public address of the router (before translation), or an address in one of
    its routed (untranslated) subnets.
    """

    address: Address
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Static route of a router."""

    cidr: Cidr
    via: Address


PRIORITIES = (-1000, 1000)
"""Lowest and highest priority of a router."""


@dataclass(frozen=True, slots=True)
class Router:
    """The logical thing a tenant owns: 1..n networks and what translates and filters them.

    `source_nat` holds at most one public address per family; networks of a family without one
    are routed untranslated.
    """

    name: str
    networks: tuple[str, ...]
    uplink: Uplink | None = None
    source_nat: tuple[Address, ...] = ()
    static_nat: tuple[StaticNat, ...] = ()
    port_forwards: tuple[PortForward, ...] = ()
    ingress: tuple[Ingress, ...] = ()
    routes: tuple[Route, ...] = ()
    backend: Backend = Backend.NFTABLES
    zone: str = ""
    """Zone the router must live in; empty: any."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a node must carry to host the router."""
    policy: Policy = Policy.RESURRECT
    priority: int = 0
    """When many routers are lost at once, those with a higher one are brought back first."""
    dhcp_of: str = ""
    """The network whose second DHCP server this is, and nothing else; empty: a router."""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that hosts instances; `capacity` bounds their number."""

    name: str
    zone: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: int = 500


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole desired state."""

    networks: tuple[Network, ...] = ()
    routers: tuple[Router, ...] = ()
    nodes: tuple[Node, ...] = ()

    def network(self, name: str) -> Network | None:
        return next((n for n in self.networks if n.name == name), None)

    def router(self, name: str) -> Router | None:
        return next((r for r in self.routers if r.name == name), None)

    def router_of(self, network: str) -> Router | None:
        """The router that serves `network`; validation lets there be at most one."""
        found = (r for r in self.routers if network in r.networks and not r.dhcp_of)
        return next(found, None)


@dataclass(frozen=True, slots=True, order=True)
class InstanceRef:
    """Names one instance: a router and the generation that was built of it."""

    router: str
    generation: int

    def __str__(self) -> str:
        return f"{self.router}#{self.generation}"


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One port of an instance: `n0`, `n1`, .. in order of the networks, `u0` the uplink."""

    name: str
    network: str
    """Name of the network; empty on the uplink."""
    bridge: str
    mac: str
    addresses: tuple[Interface, ...]

    @property
    def is_uplink(self) -> bool:
        return not self.network


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """Everything a node needs to build one instance, and nothing it must look up."""

    ref: InstanceRef
    epoch: int
    router: Router
    networks: tuple[Network, ...]
    ports: tuple[PortSpec, ...]

    @property
    def uplink(self) -> PortSpec | None:
        return next((p for p in self.ports if p.is_uplink), None)
