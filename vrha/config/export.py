"""Desired state as a document: what `vrha.config.desired.parse` reads. Defaults are left out."""

from __future__ import annotations

from typing import Any

import yaml

from vrha.model.spec import (
    Desired,
    Egress,
    Host,
    Ingress,
    Network,
    Node,
    Policy,
    PortForward,
    PortRange,
    Router,
    Rule,
    Subnet,
)


def to_document(desired: Desired) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers."""
    return _filled(
        networks=[_network(n) for n in desired.networks],
        routers=[_router(r) for r in desired.routers if not r.dhcp_of],
        nodes=[_node(n) for n in desired.nodes],
    )


def to_yaml(desired: Desired) -> str:
    """The document as YAML; `parse` of it gives `desired` again."""
    return yaml.dump(
        to_document(desired), Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True
    )


def _filled(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in (None, "", [], {})}


def _texts(values: tuple[Any, ...]) -> list[str]:
    return [str(value) for value in values]


def _ports(ports: PortRange) -> int | str:
    return ports.first if len(ports) == 1 else str(ports)


def _network(n: Network) -> dict[str, Any]:
    return _filled(
        name=n.name,
        bridge=n.bridge,
        subnets=[_subnet(s) for s in n.subnets],
        hosts=[_host(h) for h in n.hosts],
        domain=n.domain,
        dns=_texts(n.dns),
        lease_seconds=None if n.lease_seconds == 86400 else n.lease_seconds,
        egress=None if n.egress == Egress() else _egress(n.egress),
        dhcp_per_network=None if n.dhcp_per_network == 1 else n.dhcp_per_network,
        dhcp_peer_address=str(n.dhcp_peer_address) if n.dhcp_peer_address else None,
    )


def _subnet(s: Subnet) -> dict[str, Any]:
    dhcp = {"first": str(s.dhcp.first), "last": str(s.dhcp.last)} if s.dhcp else None
    return _filled(cidr=str(s.cidr), gateway=str(s.gateway), dhcp=dhcp)


def _host(h: Host) -> dict[str, Any]:
    return _filled(name=h.name, mac=h.mac, addresses=_texts(h.addresses))


def _egress(e: Egress) -> dict[str, Any]:
    return _filled(default=e.default.value, rules=[_rule(r) for r in e.rules])


def _rule(r: Rule) -> dict[str, Any]:
    return _filled(
        protocol=r.protocol.value,
        ports=_ports(r.ports) if r.ports else None,
        remote=str(r.remote) if r.remote else None,
        icmp_type=r.icmp_type,
    )


def _router(r: Router) -> dict[str, Any]:
    uplink = r.uplink and _filled(
        bridge=r.uplink.bridge,
        addresses=_texts(r.uplink.addresses),
        gateways=_texts(r.uplink.gateways),
    )
    return _filled(
        name=r.name,
        networks=list(r.networks),
        uplink=uplink,
        source_nat=_texts(r.source_nat),
        static_nat=[{"public": str(s.public), "private": str(s.private)} for s in r.static_nat],
        port_forwards=[_port_forward(p) for p in r.port_forwards],
        ingress=[_ingress(i) for i in r.ingress],
        routes=[{"cidr": str(route.cidr), "via": str(route.via)} for route in r.routes],
        backend=r.backend.value,
        zone=r.zone,
        labels=dict(r.labels),
        policy=None if r.policy is Policy.RESURRECT else r.policy.value,
        priority=r.priority or None,
    )


def _port_forward(p: PortForward) -> dict[str, Any]:
    return {
        "public": str(p.public),
        "protocol": p.protocol.value,
        "ports": _ports(p.ports),
        "private": str(p.private),
        "private_ports": _ports(p.private_ports),
    }


def _ingress(i: Ingress) -> dict[str, Any]:
    return _filled(address=str(i.address), rules=[_rule(r) for r in i.rules])


def _node(n: Node) -> dict[str, Any]:
    return _filled(name=n.name, zone=n.zone, labels=dict(n.labels), capacity=n.capacity)
