"""The probes of the measurements of one router."""

from __future__ import annotations

from vrha.lab.zone import Lab
from vrha.model.probing import Kind, Stream
from vrha.model.spec import Address, Desired, Router
from vrha.probe.responder import Services

ANSWER, ECHO, PUSH = Services().ports
PUBLIC_ADDRESSES = 10


def streams_of(lab: Lab, desired: Desired) -> tuple[Stream, ...]:
    """Probes of both directions and long connections, by 1:1 and by source NAT of one router.

    With ten 1:1 addresses and a machine without one: 12 streams of probes, 31 connections.
    """
    router = desired.routers[0]
    assert router.uplink is not None
    outside = str(router.uplink.gateways[0])
    outer = lab.netns_path("outside")
    inners = [
        (str(nat.public), lab.netns_path(_machine(desired, nat.private)))
        for nat in router.static_nat[:PUBLIC_ADDRESSES]
    ]
    public, inner = inners[0]
    streams = [
        Stream("egress_icmp", "icmp", outside, netns=inner),
        Stream("egress_udp", "udp", outside, netns=inner),
        Stream("ingress_icmp", "icmp", public, netns=outer),
        Stream("ingress_udp", "udp", public, netns=outer),
        Stream("fresh_egress", "udp-fresh", outside, ECHO, netns=inner),
        Stream("fresh_ingress", "udp-fresh", public, ECHO, netns=outer),
        Stream("egress_tcp_connect", "tcp-connect", outside, netns=inner, interval_ms=10),
        Stream("ingress_tcp_connect", "tcp-connect", public, netns=outer, interval_ms=10),
    ]
    for number, (address, path) in enumerate(inners, 1):
        streams.append(_long(f"tcp_in_{number}", "tcp-echo", address, outer))
        if number <= len(inners) // 2:
            streams.append(_long(f"tcp_out_{number}", "tcp-echo", outside, path))
            streams.append(_long(f"tcp_push_{number}", "tcp-push", outside, path))
    hidden = _hidden(router, desired)
    if hidden is not None:
        path = lab.netns_path(hidden)
        streams += [
            Stream("snat_udp", "udp", outside, netns=path),
            Stream("fresh_snat", "udp-fresh", outside, ECHO, netns=path),
            Stream("snat_tcp_connect", "tcp-connect", outside, netns=path, interval_ms=10),
            _long("tcp_snat", "tcp-echo", outside, path, 6),
            _long("tcp_snat_push", "tcp-push", outside, path, 5),
        ]
    return tuple(streams)


def _long(name: str, kind: Kind, target: str, netns: str, count: int = 1) -> Stream:
    """Long connections to the responder."""
    port = ECHO if kind == "tcp-echo" else PUSH
    return Stream(name, kind, target, port, netns, interval_ms=10, count=count)


def _machine(desired: Desired, address: Address) -> str:
    hosts = (host for network in desired.networks for host in network.hosts)
    return next(host.name for host in hosts if address in host.addresses)


def _hidden(router: Router, desired: Desired) -> str | None:
    """A machine of the router that source NAT hides; None when there is none."""
    translated = {nat.private for nat in router.static_nat}
    hosts = (
        host
        for network in desired.networks
        if network.name in router.networks
        for host in network.hosts
    )
    return next((h.name for h in hosts if not translated.intersection(h.addresses)), None)
