"""Changing a live instance in place: only what differs is touched, and traffic goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import ip_address, ip_interface, ip_network

from pyroute2 import IPRoute

from vrha.errors import StepError
from vrha.linux import rtnetlink
from vrha.linux.addresses import PortRoute, port_addresses, routes
from vrha.linux.build import send
from vrha.linux.netlink import Message
from vrha.model.spec import Address, Cidr, InstanceSpec, Interface

_RT_TABLE_MAIN, _RTPROT_STATIC = 254, 4


def refuse_other_ports(old: InstanceSpec, new: InstanceSpec) -> None:
    """Raises StepError `needs-rebuild` when `new` is not reached by changes in place."""
    same_ports = [(p.name, p.bridge, p.mac) for p in old.ports] == [
        (p.name, p.bridge, p.mac) for p in new.ports
    ]
    if not same_ports or old.router.backend is not new.router.backend:
        raise StepError(
            "needs-rebuild",
            f"{new.ref} cannot be changed in place: its ports or its rules' backend differ",
            "Restart the network; that builds a replacement.",
        )


def readdress(spec: InstanceSpec) -> None:
    """Bring addresses and routes of the calling thread's namespace to `spec`.

    What is new is added before what is old is removed. Raises StepError `addresses-failed`.
    """
    index = {port.name: socket.if_nametoindex(port.name) for port in spec.ports}
    wanted = {(index[p.name], a) for p in spec.ports for a in port_addresses(p)}
    wanted_routes = {(r.cidr, r.via, index[r.port]): r for r in routes(spec)}
    with IPRoute() as kernel:
        present = _addresses(kernel, index.values())
        present_routes = _routes(kernel)
    messages: list[Message] = []
    messages += [rtnetlink.add_address(i, a) for i, a in _sorted(wanted - present)]
    messages += [
        _add(route, index) for key, route in wanted_routes.items() if key not in present_routes
    ]
    # Adding a route replaces the one that had its destination, so that is gone already.
    kept = {cidr for cidr, _, _ in wanted_routes}
    messages += [
        rtnetlink.delete_route(cidr, via, i) for cidr, via, i in present_routes if cidr not in kept
    ]
    messages += [rtnetlink.delete_address(i, a) for i, a in _sorted(present - wanted)]
    if messages:
        with rtnetlink.open_route() as route:
            send(route, messages, "addresses")


def _sorted(found: set[tuple[int, Interface]]) -> list[tuple[int, Interface]]:
    return sorted(found, key=str)


def _add(route: PortRoute, index: dict[str, int]) -> Message:
    return rtnetlink.add_route(route.cidr, route.via, index[route.port], route.onlink)


def _addresses(kernel: IPRoute, indices: Iterable[int]) -> set[tuple[int, Interface]]:
    ours = set(indices)
    return {
        (message["index"], ip_interface(f"{message.get('address')}/{message['prefixlen']}"))
        for message in kernel.get_addr()
        if message["index"] in ours
    }


def _routes(kernel: IPRoute) -> set[tuple[Cidr, Address, int]]:
    found: set[tuple[Cidr, Address, int]] = set()
    for family, everything in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for message in kernel.get_routes(family=family, table=_RT_TABLE_MAIN):
            if message["proto"] != _RTPROT_STATIC or not message.get("gateway"):
                continue
            cidr = ip_network(f"{message.get('dst') or everything}/{message['dst_len']}")
            found.add((cidr, ip_address(message.get("gateway")), message.get("oif")))
    return found
