"""Specs whose renderings are kept as files: the smallest, the usual and the odd ones."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network

from vrha.core.dhcp import seconds
from vrha.core.instance import instance_spec
from vrha.model.spec import (
    Backend,
    Desired,
    DhcpRange,
    Egress,
    Host,
    Ingress,
    InstanceRef,
    InstanceSpec,
    Interface,
    Network,
    PortForward,
    PortRange,
    PortSpec,
    Protocol,
    Router,
    Rule,
    StaticNat,
    Subnet,
    Uplink,
    Verdict,
)

TCP, UDP, ICMP = Protocol.TCP, Protocol.UDP, Protocol.ICMP


def with_backend(spec: InstanceSpec, backend: Backend) -> InstanceSpec:
    return replace(spec, router=replace(spec.router, backend=backend))


def instance(router: Router, *networks: Network) -> InstanceSpec:
    """The instance of a router, its ports numbered in the order of its networks."""
    ports = [
        PortSpec(
            f"n{number}",
            network.name,
            network.bridge,
            f"02:00:00:00:00:{number:02x}",
            tuple(subnet.interface for subnet in network.subnets),
        )
        for number, network in enumerate(networks)
    ]
    if router.uplink:
        mac, addresses = "02:00:00:00:01:00", router.uplink.addresses
        ports.append(PortSpec("u0", "", router.uplink.bridge, mac, addresses))
    return InstanceSpec(InstanceRef(router.name, 1), 1, router, networks, tuple(ports))


def subnet(gateway: str, first: str = "", last: str = "") -> Subnet:
    interface = ip_interface(gateway)
    dhcp = DhcpRange(ip_address(first), ip_address(last)) if first else None
    return Subnet(interface.network, interface.ip, dhcp)


def uplink(*addresses: str) -> Uplink:
    interfaces: tuple[Interface, ...] = tuple(map(ip_interface, addresses))
    return Uplink("br-up", interfaces, (ip_address("198.51.100.1"),))


def seed() -> InstanceSpec:
    """Ten machines with ten public addresses, firewall rules on each."""
    hosts = tuple(
        Host(f"vm{n}", f"02:00:00:00:02:{n:02x}", (ip_address(f"10.1.0.{10 + n}"),))
        for n in range(10)
    )
    network = Network(
        "net-a",
        "br-a",
        (subnet("10.1.0.1/24", "10.1.0.100", "10.1.0.199"),),
        hosts=hosts,
        domain="a.example",
        dns=(ip_address("192.0.2.53"),),
        lease_seconds=3600,
    )
    publics = [ip_address(f"198.51.100.{10 + n}") for n in range(10)]
    rules = (Rule(TCP, PortRange(22, 22)), Rule(TCP, PortRange(80, 80)), Rule(ICMP, icmp_type=8))
    router = Router(
        "seed",
        ("net-a",),
        uplink("198.51.100.2/24", *(f"{public}/24" for public in publics)),
        source_nat=(ip_address("198.51.100.2"),),
        static_nat=tuple(StaticNat(p, h.addresses[0]) for p, h in zip(publics, hosts, strict=True)),
        ingress=tuple(Ingress(public, rules) for public in publics),
    )
    return instance(router, network)


def dual() -> InstanceSpec:
    """Two networks, both families; IPv6 routed in one direction of thought: no translation."""
    first = Network(
        "net-a",
        "br-a",
        (subnet("10.1.0.1/24", "10.1.0.100", "10.1.0.199"), subnet("2001:db8:a::1/64")),
        hosts=(
            Host(
                "web",
                "02:00:00:00:02:01",
                (ip_address("10.1.0.10"), ip_address("2001:db8:a::10")),
            ),
            Host("by-name", "02:00:00:00:02:02"),
        ),
        domain="a.example",
        dns=(ip_address("192.0.2.53"), ip_address("2001:db8:53::1")),
        egress=Egress(
            Verdict.ALLOW, (Rule(TCP, PortRange(25, 25)), Rule(ICMP, icmp_type=13), Rule(UDP))
        ),
    )
    second = Network(
        "net-b",
        "br-b",
        (
            subnet("10.2.0.1/24"),
            subnet("10.3.0.1/25"),
            subnet("2001:db8:b::1/64", "2001:db8:b::1000", "2001:db8:b::1fff"),
            subnet("2001:db8:c::1/64"),
        ),
        hosts=(
            Host("db", "02:00:00:00:02:03", (ip_address("10.2.0.10"), ip_address("10.3.0.10"))),
        ),
        egress=Egress(
            Verdict.DENY,
            (Rule(TCP, PortRange(80, 443)), Rule(remote=ip_network("10.1.0.0/24"))),
        ),
    )
    router = Router(
        "dual",
        ("net-a", "net-b"),
        uplink("198.51.100.2/24", "2001:db8::2/64"),
        source_nat=(ip_address("198.51.100.2"),),
        ingress=(
            Ingress(ip_address("2001:db8:a::10"), (Rule(TCP, PortRange(443, 443)), Rule(ICMP))),
            Ingress(ip_address("198.51.100.2"), (Rule(ICMP, icmp_type=8),)),
        ),
    )
    return instance(router, first, second)


def forwards() -> InstanceSpec:
    """Port forwards, port ranges, far ends that overlap, translation of IPv6."""
    network = Network("net-a", "br-a", (subnet("10.1.0.1/24"), subnet("fd00:1::1/64")))
    v4, v6 = ip_address("198.51.100.2"), ip_address("2001:db8::2")
    router = Router(
        "forwards",
        ("net-a",),
        uplink("198.51.100.2/24", "2001:db8::2/64", "2001:db8::3/64"),
        source_nat=(v4, v6),
        static_nat=(StaticNat(ip_address("2001:db8::3"), ip_address("fd00:1::30")),),
        port_forwards=(
            _forward(v4, TCP, (8080, 8080), "10.1.0.10", (80, 80)),
            _forward(v4, UDP, (5000, 5003), "10.1.0.10", (5000, 5003)),
            _forward(v4, UDP, (6000, 6002), "10.1.0.11", (7000, 7002)),
            _forward(v6, TCP, (8080, 8081), "fd00:1::10", (80, 81)),
        ),
        ingress=(
            Ingress(
                v4,
                (
                    Rule(TCP, PortRange(8080, 8080)),
                    Rule(TCP, PortRange(8000, 9000), ip_network("203.0.113.0/24")),
                    Rule(TCP, PortRange(8500, 9500), ip_network("203.0.113.7/32")),
                    Rule(UDP, PortRange(5000, 5999), ip_network("203.0.113.0/24")),
                    Rule(remote=ip_network("192.0.2.0/24")),
                    Rule(remote=ip_network("192.0.2.128/25")),
                    Rule(ICMP, icmp_type=8),
                    Rule(ICMP, remote=ip_network("203.0.113.0/30")),
                ),
            ),
            Ingress(v6, (Rule(TCP), Rule(TCP, PortRange(22, 22)), Rule(ICMP))),
            Ingress(ip_address("2001:db8::3"), (Rule(),)),
        ),
    )
    return instance(router, network)


def _forward(
    public: object, protocol: Protocol, ports: tuple[int, int], private: str, to: tuple[int, int]
) -> PortForward:
    return PortForward(
        ip_address(str(public)), protocol, PortRange(*ports), ip_address(private), PortRange(*to)
    )


def isolated() -> InstanceSpec:
    """No uplink: two networks that reach each other."""
    return instance(
        Router("isolated", ("net-a", "net-b")),
        Network("net-a", "br-a", (subnet("10.1.0.1/24", "10.1.0.10", "10.1.0.20"),)),
        Network("net-b", "br-b", (subnet("10.2.0.1/24"),), egress=Egress(Verdict.DENY)),
    )


def empty() -> InstanceSpec:
    """An uplink and a network, and no rule at all."""
    network = Network("net-a", "br-a", (subnet("10.1.0.1/24"),))
    return instance(Router("empty", ("net-a",), uplink("198.51.100.2/24")), network)


def shared() -> tuple[InstanceSpec, InstanceSpec]:
    """A network with two DHCP servers: the instance of the router, and the second one."""
    network = Network(
        "net-a",
        "br-a",
        (subnet("10.1.0.1/24", "10.1.0.10", "10.1.0.21"), subnet("2001:db8:a::1/64")),
        hosts=(
            Host("web", "02:00:00:00:02:01", tuple(map(ip_address, ("10.1.0.5", "2001:db8:a::5")))),
        ),
        domain="a.example",
        dns=(ip_address("192.0.2.53"),),
        dhcp_per_network=2,
        dhcp_peer_address=ip_address("10.1.0.2"),
    )
    router = Router("shared", ("net-a",))
    both = Desired((network,), (router, *seconds((network,), (router,))))
    first, second = (instance_spec(both, r, InstanceRef(r.name, 1), 1) for r in both.routers)
    return first, second


_ALL = (seed(), dual(), forwards(), isolated(), empty(), *shared())
SPECS = {spec.router.name: spec for spec in _ALL}
