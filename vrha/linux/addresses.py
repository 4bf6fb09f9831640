"""Which addresses and routes the ports of an instance carry, derived from its spec."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from vrha.linux.frames import link_local_of
from vrha.model.spec import Address, Cidr, InstanceSpec, Interface, PortSpec

GATEWAY_LINK_LOCAL = IPv6Address("fe80::1")
"""The gateway's link-local address of every network: fixed, so that it moves by NA when another
instance with other MACs takes over."""

_DEFAULT: dict[int, Cidr] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


@dataclass(frozen=True, slots=True)
class PortRoute:
    """One route; `onlink` when no address of the port covers the gateway."""

    cidr: Cidr
    via: Address
    port: str
    onlink: bool


def mac_bytes(port: PortSpec) -> bytes:
    """The MAC of the port as 6 bytes."""
    return bytes.fromhex(port.mac.replace(":", ""))


def port_addresses(port: PortSpec) -> tuple[Interface, ...]:
    """Addresses of the port, with its link-local address first when it speaks IPv6.

    The kernel makes none by itself (addr_gen_mode none), for it would run duplicate address
    detection on it.
    """
    if not any(address.version == 6 for address in port.addresses):
        return port.addresses
    own = link_local_of(mac_bytes(port)) if port.is_uplink else GATEWAY_LINK_LOCAL
    first = IPv6Interface((own, 64))
    return (first, *(address for address in port.addresses if address != first))


def routes(spec: InstanceSpec) -> tuple[PortRoute, ...]:
    """Default routes by the upstream gateways, then the router's static routes."""
    return tuple(_routes(spec))


def _routes(spec: InstanceSpec) -> Iterator[PortRoute]:
    uplink = spec.uplink
    if uplink is not None and spec.router.uplink is not None:
        for gateway in spec.router.uplink.gateways:
            yield _route(_DEFAULT[gateway.version], gateway, uplink)
    for route in spec.router.routes:
        port = next((p for p in spec.ports if _covers(p, route.via)), uplink)
        if port is not None:
            yield _route(route.cidr, route.via, port)


def _route(cidr: Cidr, via: Address, port: PortSpec) -> PortRoute:
    return PortRoute(cidr, via, port.name, onlink=not _covers(port, via))


def _covers(port: PortSpec, via: Address) -> bool:
    return any(via in address.network for address in port_addresses(port))
