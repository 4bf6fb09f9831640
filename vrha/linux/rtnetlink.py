"""Links, addresses and routes by hand-packed rtnetlink messages.

Formats: include/uapi/linux/{rtnetlink,if_link,if_addr}.h. Functions make `Message` values, so
that a caller sends as many as it likes in one system call.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vrha.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Netlink,
    NetlinkError,
    attr,
    attribute,
    attributes,
    each_message,
    nest,
    text,
    u32,
)
from vrha.model.spec import Address, Cidr, Interface

NETLINK_ROUTE = 0
FORWARDING = 3
"""BR_STATE_FORWARDING, include/uapi/linux/if_bridge.h."""

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK = 16, 17, 18
_RTM_NEWADDR, _RTM_DELADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 20, 21, 24, 25
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_QDISC = 6
_IFLA_IFALIAS, _IFLA_STATS64, _IFLA_AF_SPEC, _IFLA_GROUP = 20, 23, 26, 27
_IFLA_NET_NS_FD, _IFLA_EXT_MASK, _IFLA_LINK_NETNSID = 28, 29, 37
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER, _IFLA_BRPORT_STATE, _IFLA_INET6_ADDR_GEN_MODE = 1, 1, 8
_ADDR_GEN_NONE = 1
_IFLA_TARGET_NETNSID = 46
_RTEXT_FILTER_SKIP_STATS = 1 << 3
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 4, 0, 1
_RTNH_F_ONLINK = 4
_IFINFO = struct.Struct("=BBHiII")


@dataclass(frozen=True, slots=True)
class Link:
    """One link as the kernel shows it. `port_state` is None when it is no port of a bridge,
    `peer_netns` when the other end is in the same namespace (see `nsid`)."""

    index: int
    name: str
    kind: str
    up: bool
    mtu: int
    mac: bytes
    group: int
    master: int
    alias: str
    port_state: int | None
    rx_packets: int
    tx_packets: int
    qdisc: str
    peer_netns: int | None


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a veth pair to be made."""

    name: str
    mac: bytes


def open_route() -> Netlink:
    """A rtnetlink socket in the network namespace of the calling thread."""
    return Netlink(NETLINK_ROUTE)


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFO.pack(socket.AF_UNSPEC, 0, 0, index, flags, change)


def new_veth(
    host: VethEnd, peer: VethEnd, peer_netns: int, master: int, mtu: int, group: int
) -> Message:
    """A veth pair: one end here on bridge `master`, the other made directly in `peer_netns`.

    Moving an end between namespaces afterwards would cost several RCU waits. Both ends get the
    bridge's MTU, else the bridge would shrink to theirs (br_mtu_auto_adjust).
    """
    both = u32(_IFLA_MTU, mtu)
    inner = (
        _ifinfo()
        + text(_IFLA_IFNAME, peer.name)
        + attr(_IFLA_ADDRESS, peer.mac)
        + both
        + u32(_IFLA_NET_NS_FD, peer_netns)
    )
    info = nest(
        _IFLA_LINKINFO,
        text(_IFLA_INFO_KIND, "veth"),
        nest(_IFLA_INFO_DATA, attr(_VETH_INFO_PEER | 0x8000, inner)),
    )
    body = (
        _ifinfo()
        + text(_IFLA_IFNAME, host.name)
        + attr(_IFLA_ADDRESS, host.mac)
        + both
        + u32(_IFLA_MASTER, master)
        + u32(_IFLA_GROUP, group)
        + info
    )
    return Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def tag_link(name: str, alias: str) -> Message:
    """Give the link an alias and keep IPv6 from giving it an address of its own.

    A port with an address would flood its MLD and DAD packets over the whole bridge.
    """
    no_address = nest(
        socket.AF_INET6, attr(_IFLA_INET6_ADDR_GEN_MODE, struct.pack("=B", _ADDR_GEN_NONE))
    )
    body = (
        _ifinfo()
        + text(_IFLA_IFNAME, name)
        + text(_IFLA_IFALIAS, alias)
        + nest(_IFLA_AF_SPEC, no_address)
    )
    return Message(_RTM_NEWLINK, 0, body)


def set_alias(name: str, alias: str) -> Message:
    """Change the alias of a link."""
    return Message(
        _RTM_NEWLINK, 0, _ifinfo() + text(_IFLA_IFNAME, name) + text(_IFLA_IFALIAS, alias)
    )


def set_up(name: str) -> Message:
    """Bring the link of this name up."""
    return Message(_RTM_NEWLINK, 0, _ifinfo(0, _IFF_UP, _IFF_UP) + text(_IFLA_IFNAME, name))


def set_down(index: int) -> Message:
    """Bring a link down."""
    return Message(_RTM_NEWLINK, 0, _ifinfo(index, 0, _IFF_UP))


def set_group(index: int, group: int) -> Message:
    """Put a link into a group."""
    return Message(_RTM_NEWLINK, 0, _ifinfo(index) + u32(_IFLA_GROUP, group))


def delete_group(group: int) -> Message:
    """Delete all links of a group; one RCU wait for all of them instead of one each."""
    return Message(_RTM_DELLINK, 0, _ifinfo() + u32(_IFLA_GROUP, group))


def delete_link(index: int, number: int | None = None) -> Message:
    """Delete one link, of the namespace that the socket's own knows by this number if it is
    given."""
    return Message(_RTM_DELLINK, 0, _ifinfo(index) + _target(number))


def _target(number: int | None) -> bytes:
    return b"" if number is None else attr(_IFLA_TARGET_NETNSID, struct.pack("=i", number))


def add_address(index: int, address: Interface) -> Message:
    """Put an address on a link, IPv6 without duplicate address detection.

    The old instance owns the same address while its replacement is built, so detection would
    mark it `dadfailed` for good.
    """
    return Message(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, _address(index, address))


def delete_address(index: int, address: Interface) -> Message:
    """Take an address off a link."""
    return Message(_RTM_DELADDR, 0, _address(index, address))


def _address(index: int, address: Interface) -> bytes:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    flags = 0 if address.version == 4 else _IFA_F_NODAD
    scope = 253 if address.is_link_local and address.version == 6 else _RT_SCOPE_UNIVERSE
    body = struct.pack("=BBBBI", family, address.network.prefixlen, 0, scope, index)
    body += attr(_IFA_LOCAL, address.ip.packed) + attr(_IFA_ADDRESS, address.ip.packed)
    return body + (u32(_IFA_FLAGS, flags) if flags else b"")


def add_route(cidr: Cidr, via: Address, index: int, onlink: bool) -> Message:
    """Route `cidr` by `via` on a link, in place of what was there for `cidr`.

    `onlink`: take the gateway to be on the link though no address there covers it.
    """
    return Message(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, _route(cidr, via, index, onlink))


def delete_route(cidr: Cidr, via: Address, index: int) -> Message:
    """Remove the route of `cidr` by `via`."""
    return Message(_RTM_DELROUTE, 0, _route(cidr, via, index, False))


def _route(cidr: Cidr, via: Address, index: int, onlink: bool) -> bytes:
    family = socket.AF_INET if cidr.version == 4 else socket.AF_INET6
    body = struct.pack(
        "=BBBBBBBBI",
        family,
        cidr.prefixlen,
        0,
        0,
        _RT_TABLE_MAIN,
        _RTPROT_STATIC,
        _RT_SCOPE_UNIVERSE,
        _RTN_UNICAST,
        _RTNH_F_ONLINK if onlink else 0,
    )
    if cidr.prefixlen:
        body += attr(_RTA_DST, cidr.network_address.packed)
    return body + attr(_RTA_GATEWAY, via.packed) + u32(_RTA_OIF, index)


def links(netlink: Netlink, number: int | None = None) -> list[Link]:
    """All links of the socket's namespace, without counters; or of the one that it knows by this
    number (see `nsid`)."""
    body = _ifinfo() + u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS) + _target(number)
    return [_link(answer) for answer in netlink.ask(_RTM_GETLINK, body, NLM_F_DUMP)]


def link(netlink: Netlink, name: str) -> Link | None:
    """The link of this name, with counters; None when there is none."""
    try:
        answers = netlink.ask(_RTM_GETLINK, _ifinfo() + text(_IFLA_IFNAME, name))
    except NetlinkError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return _link(answers[0])


def link_news(data: bytes) -> Iterator[tuple[bool, str, str]]:
    """Links of one datagram of group RTNLGRP_LINK as (whether it is there, name, alias).

    What bridges tell of their ports (family AF_BRIDGE) is left out: it has no alias, and a port
    that leaves a bridge is still there.
    """
    for kind, _, _, body in each_message(data):
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and body[0] == socket.AF_UNSPEC:
            found = attributes(body[_IFINFO.size :])
            name, alias = found.get(_IFLA_IFNAME, b""), found.get(_IFLA_IFALIAS, b"")
            yield kind == _RTM_NEWLINK, _string(name), _string(alias)


def _link(body: bytes) -> Link:
    _, _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body[_IFINFO.size :])
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    port_state = None
    if info.get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0") == b"bridge":
        # It comes first of dozens (net/bridge/br_netlink.c, br_port_fill_attrs).
        state = attribute(info.get(_IFLA_INFO_SLAVE_DATA, b""), _IFLA_BRPORT_STATE)
        port_state = state[0] if state else None
    stats = found.get(_IFLA_STATS64, b"")
    rx_packets, tx_packets = struct.unpack_from("=QQ", stats) if stats else (0, 0)
    return Link(
        index=index,
        name=_string(found.get(_IFLA_IFNAME, b"")),
        kind=_string(info.get(_IFLA_INFO_KIND, b"")),
        up=bool(flags & _IFF_UP),
        mtu=_number(found.get(_IFLA_MTU)),
        mac=found.get(_IFLA_ADDRESS, b""),
        group=_number(found.get(_IFLA_GROUP)),
        master=_number(found.get(_IFLA_MASTER)),
        alias=_string(found.get(_IFLA_IFALIAS, b"")),
        port_state=port_state,
        rx_packets=rx_packets,
        tx_packets=tx_packets,
        qdisc=_string(found.get(_IFLA_QDISC, b"")),
        peer_netns=_number(peer) if (peer := found.get(_IFLA_LINK_NETNSID)) else None,
    )


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0
