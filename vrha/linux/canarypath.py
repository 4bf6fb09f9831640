"""The way of canary packets: from a tenant bridge through an instance to its gateway and back.

They come from the lowest address of the subnet, which is an ordinary address for routers since
Linux 5.14 (net/ipv4/fib_frontend.c, fib_add_ifaddr) and which no machine uses, and from a MAC of
their own. Two entries lead the replies back: a neighbour entry in the instance, and a local entry
in the bridge. So no port of the bridge ever sees a reply, and the node's own IP layer drops it as
a packet for another host, whatever addresses and routes the node has.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from vrha.core.names import namespace_name
from vrha.errors import StepError
from vrha.linux import netns, rtnetlink
from vrha.linux.addresses import mac_bytes
from vrha.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Message,
    Netlink,
    NetlinkError,
    attr,
)
from vrha.model.spec import (
    InstanceRef,
    InstanceSpec,
    Network,
    PortSpec,
    Protocol,
    Rule,
    Verdict,
)

_NOWHERE = IPv4Address(0)
_ECHO_REQUEST = 8
_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29
_NDA_DST, _NDA_LLADDR = 1, 2
_NTF_SELF, _NUD_PERMANENT = 0x02, 0x80
_NDMSG = struct.Struct("=BxxxiHBB")


@dataclass(frozen=True, slots=True)
class CanaryPath:
    """One path, by a tenant port; or why there is none (`unavailable`)."""

    network: str
    port: str
    bridge: str
    mac: bytes
    """Of the canary."""
    router_mac: bytes
    source: IPv4Address = _NOWHERE
    target: IPv4Address = _NOWHERE
    unavailable: str = ""


def paths(spec: InstanceSpec) -> tuple[CanaryPath, ...]:
    """A path for each tenant port.

    `unavailable` is one of: `no-uplink`, `no-gateway` (of IPv4), `no-ipv4`, `no-spare-address`
    (the lowest address of the subnet is in use), `egress-denied`.
    """
    networks = {network.name: network for network in spec.networks}
    return tuple(
        _path(spec, port, networks[port.network]) for port in spec.ports if not port.is_uplink
    )


def lead_back(inner: int, home: int, ways: Sequence[CanaryPath]) -> None:
    """Put the neighbour entries into the instance whose namespace is `inner`; idempotent.

    They are permanent since others may be collected when the kernel's table is full. Raises
    OSError, NetlinkError.
    """
    if not ways:
        return
    with netns.entered(inner, home), rtnetlink.open_route() as route:
        route.talk([_entry(_RTM_NEWNEIGH, socket.if_nametoindex(w.port), w) for w in ways])


def forget(ref: InstanceRef, home: int, ways: Sequence[CanaryPath]) -> None:
    """Take the neighbour entries out of an instance; nothing happens where there are none.

    Raises StepError `canary-remains`.
    """
    try:
        inner = netns.open_named(namespace_name(ref))
    except FileNotFoundError:
        return
    try:
        with netns.entered(inner, home), rtnetlink.open_route() as route:
            for way in ways:
                with contextlib.suppress(OSError):
                    index = socket.if_nametoindex(way.port)
                    _delete(route, _entry(_RTM_DELNEIGH, index, way))
    finally:
        os.close(inner)


def occupy(route: Netlink, way: CanaryPath) -> None:
    """Make the bridge deliver what is for the canary to itself; idempotent.

    `route` is a socket of the node's namespace. Raises OSError, NetlinkError.
    """
    index = _bridge_index(route, way)
    if index is None:
        raise OSError(errno.ENODEV, f"there is no {way.bridge}")
    route.talk([_local(_RTM_NEWNEIGH, index, way)])


def vacate(route: Netlink, way: CanaryPath) -> None:
    """Undo `occupy`; nothing happens where it was not done. Raises StepError `canary-remains`."""
    index = _bridge_index(route, way)
    if index is not None:
        _delete(route, _local(_RTM_DELNEIGH, index, way))


def _path(spec: InstanceSpec, port: PortSpec, network: Network) -> CanaryPath:
    digest = hashlib.sha256(f"canary:{spec.router.name}:{network.name}".encode()).digest()
    # Locally administered, and apart from the MACs of host ports, which begin with fe.
    mac = b"\xfa" + digest[:5]
    ends = _ends(spec, port, network)
    if isinstance(ends, str):
        return CanaryPath(
            network.name, port.name, port.bridge, mac, mac_bytes(port), unavailable=ends
        )
    return CanaryPath(network.name, port.name, port.bridge, mac, mac_bytes(port), *ends)


def _ends(
    spec: InstanceSpec, port: PortSpec, network: Network
) -> tuple[IPv4Address, IPv4Address] | str:
    """Source and target of the canary of a port, or why it has none."""
    uplink = spec.router.uplink
    if uplink is None or spec.uplink is None:
        return "no-uplink"
    gateway = next((g for g in uplink.gateways if isinstance(g, IPv4Address)), None)
    if gateway is None:
        return "no-gateway"
    own = next((a for a in port.addresses if isinstance(a, IPv4Interface)), None)
    if own is None:
        return "no-ipv4"
    lowest = own.network.network_address
    used = {address for host in network.hosts for address in host.addresses}
    if own.network.prefixlen > 30 or lowest == own.ip or lowest in used:
        return "no-spare-address"
    excepted = any(_matches(rule, gateway) for rule in network.egress.rules)
    if (network.egress.default is Verdict.ALLOW) == excepted:
        return "egress-denied"
    return lowest, gateway


def _matches(rule: Rule, gateway: IPv4Address) -> bool:
    """Whether an egress rule is about echo requests to the gateway."""
    if rule.protocol not in (Protocol.ICMP, Protocol.ANY):
        return False
    if rule.icmp_type not in (None, _ECHO_REQUEST):
        return False
    return rule.remote is None or gateway in rule.remote


def _entry(kind: int, index: int, way: CanaryPath) -> Message:
    """The neighbour entry of the canary in an instance."""
    body = _NDMSG.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
    body += attr(_NDA_DST, way.source.packed) + attr(_NDA_LLADDR, way.mac)
    return _message(kind, body)


def _local(kind: int, index: int, way: CanaryPath) -> Message:
    """The local entry of the canary's MAC in the bridge (bridge fdb .. self local)."""
    body = _NDMSG.pack(socket.AF_BRIDGE, index, _NUD_PERMANENT, _NTF_SELF, 0)
    return _message(kind, body + attr(_NDA_LLADDR, way.mac))


def _message(kind: int, body: bytes) -> Message:
    return Message(kind, NLM_F_CREATE | NLM_F_REPLACE if kind == _RTM_NEWNEIGH else 0, body)


def _bridge_index(route: Netlink, way: CanaryPath) -> int | None:
    link = rtnetlink.link(route, way.bridge)
    return None if link is None else link.index


def _delete(route: Netlink, message: Message) -> None:
    try:
        route.talk([message])
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise StepError(
                "canary-remains", f"the kernel keeps an entry of a canary: {error.strerror}"
            ) from error
