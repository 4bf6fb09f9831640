"""Routers, machines and the table of what passes, what is dropped and what is translated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

from tests.netns.fwkit import MARKER_PORT
from vrha.model.spec import (
    Backend,
    Egress,
    Ingress,
    InstanceRef,
    InstanceSpec,
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

# Which machine has which address, by the word that the table uses.
PLACES = {
    "fixed": "a", "free": "a", "wide": "a", "gate-a": "vr", "other": "b", "gate-b": "vr",
    "router": "vr", "public": "", "shared": "", "public-wide": "",
    "outside": "out", "friend": "out", "stranger": "out", "foreign": "",
}  # fmt: skip
ADDRESSES = {
    4: dict(zip(PLACES, (
        "10.1.0.5", "10.1.0.6", "10.1.0.7", "10.1.0.1", "10.2.0.5", "10.2.0.1",
        "198.51.100.2", "198.51.100.10", "198.51.100.20", "198.51.100.30",
        "198.51.100.1", "203.0.113.9", "192.0.2.9", "10.9.9.9",
    ), strict=True)),
    6: dict(zip(PLACES, (
        "fd00:1::5", "fd00:1::6", "fd00:1::7", "fd00:1::1", "fd00:2::5", "fd00:2::1",
        "2001:db8:1::2", "2001:db8:1::10", "2001:db8:1::20", "2001:db8:1::30",
        "2001:db8:1::1", "2001:db8:f::9", "2001:db8:e::9", "fd00:9::9",
    ), strict=True)),
}  # fmt: skip
ECHO = {4: 8, 6: 128}
PLAIN_PROTOCOL = "253"
"""A protocol without ports (RFC 3692: for experiments)."""


@dataclass(frozen=True)
class Case:
    """`sender` is `machine/source address`; `arrives` is `machine/address:port`, empty: dropped.

    `seen` is the source address with which it arrives.
    """

    name: str
    sender: str
    to: str
    what: str
    arrives: str = ""
    seen: str = ""

    def __str__(self) -> str:
        return self.name


TRANSLATED = [
    # Ingress, judged on the public address.
    Case("in-port-allowed", "out/stranger", "public", "tcp:22", "a/fixed:22", "stranger"),
    Case("in-port-denied", "out/stranger", "public", "tcp:23"),
    Case("in-same-port-other-protocol", "out/stranger", "public", "udp:22"),
    Case("in-range-first-from-friend", "out/friend", "public", "tcp:100", "a/fixed:100", "friend"),
    Case("in-range-last-from-friend", "out/friend", "public", "tcp:200", "a/fixed:200", "friend"),
    Case("in-range-beyond", "out/friend", "public", "tcp:201"),
    Case("in-range-wrong-remote", "out/stranger", "public", "tcp:150"),
    Case("in-echo-allowed", "out/stranger", "public", "icmp:echo", "a/fixed", "stranger"),
    Case("in-other-icmp-denied", "out/stranger", "public", "icmp:13"),
    Case("in-all-from-friend", "out/friend", "public-wide", "udp:4321", "a/wide:4321", "friend"),
    Case("in-all-protocols", "out/friend", "public-wide", PLAIN_PROTOCOL, "a/wide", "friend"),
    Case("in-all-wrong-remote", "out/stranger", "public-wide", "udp:4321"),
    Case("in-all-protocols-wrong-remote", "out/stranger", "public-wide", PLAIN_PROTOCOL),
    # Port forwards.
    Case("forward-shifted", "out/stranger", "shared", "tcp:8080", "b/other:80", "stranger"),
    Case("forward-range", "out/stranger", "shared", "udp:7001", "b/other:7001", "stranger"),
    Case("forward-range-shifted", "out/friend", "shared", "udp:7103", "a/free:9103", "friend"),
    Case("forward-not-admitted", "out/stranger", "shared", "udp:7002"),
    Case("forward-wins-over-static", "out/friend", "public", "tcp:120", "b/other:1200", "friend"),
    # Past the translation.
    Case("direct-to-private", "out/stranger", "free", "udp:4321"),
    Case("direct-to-private-admitted-port", "out/stranger", "fixed", "tcp:22"),
    Case("direct-to-private-gateway", "out/stranger", "gate-a", "udp:53"),
    Case("in-with-tenant-source", "out/free", "public", "tcp:22"),
    # Egress and its source.
    Case("out-source-nat", "a/free", "outside", "udp:4321", "out/outside:4321", "router"),
    Case("out-source-nat-tcp", "b/other", "outside", "tcp:443", "out/outside:443", "router"),
    Case("out-static-nat", "a/fixed", "outside", "tcp:4321", "out/outside:4321", "public"),
    Case("out-static-nat-plain", "a/wide", "outside", PLAIN_PROTOCOL, "out/outside", "public-wide"),
    Case("out-echo", "a/free", "outside", "icmp:echo", "out/outside", "router"),
    Case("out-invalid", "a/free", "outside", "tcp-invalid:4321"),
    Case("out-allow-exception-port", "a/free", "outside", "tcp:25"),
    Case("out-allow-exception-remote", "a/free", "friend", "udp:5005"),
    Case("out-allow-beside-exception", "a/free", "friend", "udp:5011", "out/friend:5011", "router"),
    Case("out-allow-exception-icmp", "a/free", "stranger", "icmp:echo"),
    Case("out-allow-beside-icmp", "a/free", "stranger", "udp:4321", "out/stranger:4321", "router"),
    Case("out-deny", "b/other", "outside", "tcp:80"),
    Case("out-deny-exception-remote", "b/other", "friend", "udp:77", "out/friend:77", "router"),
    Case("out-deny-exception-icmp", "b/other", "outside", "icmp:echo", "out/outside", "router"),
    Case("out-deny-other-icmp", "b/other", "outside", "icmp:13"),
    # Between the networks of the router: no translation.
    Case("across-allowed", "a/free", "other", "udp:4321", "b/other:4321", "free"),
    Case("across-denied", "b/other", "free", "udp:4321"),
    Case("across-exception", "b/other", "free", "tcp:443", "a/free:443", "other"),
    # Forged sources.
    Case("forged-foreign", "a/foreign", "outside", "udp:4321"),
    Case("forged-other-network", "a/other", "outside", "udp:4321"),
    Case("forged-public", "a/public", "outside", "udp:4321"),
    Case("forged-across", "b/free", "fixed", "tcp:443"),
    # Hairpin: back in by the public address, under its ingress rules, with the gateway as source.
    Case("hairpin-static", "a/free", "public", "tcp:22", "a/fixed:22", "gate-a"),
    Case("hairpin-self", "a/fixed", "public", "tcp:22", "a/fixed:22", "gate-a"),
    Case("hairpin-not-admitted", "a/free", "public", "tcp:23"),
    Case("hairpin-forward", "a/free", "shared", "tcp:8080", "b/other:80", "gate-b"),
    Case("hairpin-egress-denied", "b/other", "public", "tcp:22"),
    Case("hairpin-egress-exception", "b/other", "public", "udp:9999", "a/fixed:9999", "gate-a"),
    # The router itself.
    Case("router-dns", "a/free", "gate-a", "udp:53", "vr/gate-a:53", "free"),
    Case("router-dns-tcp", "a/free", "gate-a", "tcp:53", "vr/gate-a:53", "free"),
    Case("router-echo", "b/other", "gate-b", "icmp:echo", "vr/gate-b", "other"),
    Case("router-port-denied", "a/free", "gate-a", "tcp:22"),
    Case("router-udp-denied", "a/free", "gate-a", "udp:123"),
    Case("router-admitted", "out/stranger", "router", "udp:9999", "vr/router:9999", "stranger"),
    Case("router-dns-from-outside", "out/stranger", "router", "udp:53"),
    Case("router-asks-outside", "vr/router", "outside", "udp:53", "out/outside:53", "router"),
    Case("router-tcp-from-outside", "out/stranger", "router", "tcp:22"),
    Case("router-echo-from-outside", "out/stranger", "router", "icmp:echo"),
]

ROUTED = [
    Case("routed-in-allowed", "out/stranger", "fixed", "tcp:22", "a/fixed:22", "stranger"),
    Case("routed-in-denied", "out/stranger", "fixed", "tcp:23"),
    Case("routed-in-other-host", "out/stranger", "free", "tcp:22"),
    Case("routed-in-remote", "out/friend", "free", "tcp:150", "a/free:150", "friend"),
    Case("routed-in-wrong-remote", "out/stranger", "free", "tcp:150"),
    Case("routed-out", "a/free", "outside", "udp:4321", "out/outside:4321", "free"),
    Case("routed-out-exception", "a/free", "outside", "tcp:25"),
    Case("routed-across", "a/free", "other", "udp:4321", "b/other:4321", "free"),
    Case("routed-forged", "a/foreign", "outside", "udp:4321"),
    Case("routed-router", "a/free", "gate-a", "udp:53", "vr/gate-a:53", "free"),
    Case("routed-to-router", "out/stranger", "gate-a", "tcp:22"),
]


def both(pick: str) -> list[str]:
    return [ADDRESSES[4][pick], ADDRESSES[6][pick]]


def _nets(pick: str, lengths: tuple[int, int]) -> list[str]:
    return [f"{address}/{length}" for address, length in zip(both(pick), lengths, strict=True)]


def _networks() -> tuple[Network, Network]:
    tcp, udp, icmp = Protocol.TCP, Protocol.UDP, Protocol.ICMP
    first = Network(
        "net-a",
        "br-a",
        tuple(_subnet(gate) for gate in _nets("gate-a", (24, 64))),
        egress=Egress(
            Verdict.ALLOW,
            (
                Rule(tcp, PortRange(25, 25)),
                *(Rule(udp, PortRange(5000, 5010), ip_network(a)) for a in both("friend")),
                *(Rule(icmp, remote=ip_network(a)) for a in both("stranger")),
            ),
        ),
    )
    second = Network(
        "net-b",
        "br-b",
        tuple(_subnet(gate) for gate in _nets("gate-b", (24, 64))),
        egress=Egress(
            Verdict.DENY,
            (
                Rule(tcp, PortRange(443, 443)),
                Rule(udp, PortRange(MARKER_PORT, MARKER_PORT)),
                Rule(icmp, icmp_type=ECHO[4], remote=ip_network("0.0.0.0/0")),
                Rule(icmp, icmp_type=ECHO[6], remote=ip_network("::/0")),
                *(Rule(remote=ip_network(a)) for a in both("friend")),
            ),
        ),
    )
    return first, second


def _subnet(gate: str) -> Subnet:
    interface = ip_interface(gate)
    return Subnet(interface.network, interface.ip)


def _spec(router: Router) -> InstanceSpec:
    networks = _networks()
    uplink = tuple(
        ip_interface(address)
        for pick in ("router", "public", "shared", "public-wide")
        for address in _nets(pick, (24, 64))
    )
    gates = [tuple(map(ip_interface, _nets(g, (24, 64)))) for g in ("gate-a", "gate-b")]
    ports = (
        PortSpec("n0", "net-a", "br-a", "02:00:00:00:00:01", gates[0]),
        PortSpec("n1", "net-b", "br-b", "02:00:00:00:00:02", gates[1]),
        PortSpec("u0", "", "br-up", "02:00:00:00:00:03", uplink),
    )
    router = replace(
        router, uplink=Uplink("br-up", uplink, tuple(map(ip_address, both("outside"))))
    )
    return InstanceSpec(InstanceRef(router.name, 1), 1, router, networks, ports)


def translated_router(backend: Backend) -> InstanceSpec:
    router = Router("r", ("net-a", "net-b"), backend=backend)
    for version in (4, 6):
        at = {word: ip_address(text) for word, text in ADDRESSES[version].items()}
        shared, tcp, udp = at["shared"], Protocol.TCP, Protocol.UDP
        router = replace(
            router,
            source_nat=(*router.source_nat, at["router"]),
            static_nat=(
                *router.static_nat,
                StaticNat(at["public"], at["fixed"]),
                StaticNat(at["public-wide"], at["wide"]),
            ),
            port_forwards=(
                *router.port_forwards,
                PortForward(shared, tcp, PortRange(8080, 8080), at["other"], PortRange(80, 80)),
                PortForward(shared, udp, PortRange(7000, 7003), at["other"], PortRange(7000, 7003)),
                PortForward(shared, udp, PortRange(7100, 7105), at["free"], PortRange(9100, 9105)),
                PortForward(
                    at["public"], tcp, PortRange(120, 120), at["other"], PortRange(1200, 1200)
                ),
            ),
            ingress=(*router.ingress, *_ingress(version)),
        )
    return _spec(router)


def _ingress(version: int) -> tuple[Ingress, ...]:
    at = ADDRESSES[version]
    tcp, udp, icmp = Protocol.TCP, Protocol.UDP, Protocol.ICMP
    friend = ip_network(at["friend"])
    marker = Rule(udp, PortRange(MARKER_PORT, MARKER_PORT))
    return (
        Ingress(
            ip_address(at["public"]),
            (
                marker,
                Rule(tcp, PortRange(22, 22)),
                Rule(tcp, PortRange(100, 200), friend),
                Rule(icmp, icmp_type=ECHO[version]),
            ),
        ),
        Ingress(
            ip_address(at["shared"]),
            (
                Rule(tcp, PortRange(8080, 8080)),
                Rule(udp, PortRange(7000, 7001)),
                # Overlaps the next one: a set of intervals would refuse them as they stand.
                Rule(udp, PortRange(7100, 7110), friend),
                Rule(udp, PortRange(7103, 7120), friend.supernet(8)),
            ),
        ),
        Ingress(ip_address(at["public-wide"]), (Rule(remote=friend),)),
        Ingress(ip_address(at["router"]), (marker,)),
    )


def routed_router(backend: Backend) -> InstanceSpec:
    ingress = []
    for version in (4, 6):
        at = ADDRESSES[version]
        marker = Rule(Protocol.UDP, PortRange(MARKER_PORT, MARKER_PORT))
        remote = ip_network(at["friend"])
        ingress += [
            Ingress(ip_address(at["fixed"]), (marker, Rule(Protocol.TCP, PortRange(22, 22)))),
            Ingress(ip_address(at["free"]), (Rule(Protocol.TCP, PortRange(100, 200), remote),)),
            Ingress(ip_address(at["router"]), (marker,)),
        ]
    return _spec(Router("r", ("net-a", "net-b"), ingress=tuple(ingress), backend=backend))
