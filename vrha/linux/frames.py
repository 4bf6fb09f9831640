"""Ethernet frames of ARP and neighbour discovery, as bytes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

BROADCAST = b"\xff" * 6
ETH_P_ARP, ETH_P_IPV6 = 0x0806, 0x86DD
_ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_SOURCE_MAC, _TARGET_MAC = 1, 2
_ROUTER, _OVERRIDE = 0x8000_0000, 0x2000_0000


def gratuitous_arps(mac: bytes, address: IPv4Address) -> tuple[bytes, bytes]:
    """Announcement of an IPv4 address as request (RFC 5227 section 3) and as reply.

    The reply carries the sender's MAC as target MAC too: Linux takes no other reply for a
    gratuitous one (net/ipv4/arp.c, arp_is_garp).
    """
    return (
        _arp(mac, 1, mac, address, b"\0" * 6, address),
        _arp(mac, 2, mac, address, mac, address),
    )


def arp_probe(mac: bytes, address: IPv4Address) -> bytes:
    """Question who has `address`, from no address (RFC 5227 section 2.1.1): changes no cache."""
    return _arp(mac, 1, mac, IPv4Address(0), b"\0" * 6, address)


def arp_answers(frame: bytes, address: IPv4Address) -> bool:
    """Whether the frame is somebody's claim of `address`."""
    return (
        len(frame) >= 42
        and frame[12:14] == b"\x08\x06"
        and frame[20:22] == b"\0\x02"
        and frame[28:32] == address.packed
    )


def unsolicited_advertisement(mac: bytes, address: IPv6Address) -> bytes:
    """Announcement of an IPv6 address by a router, overriding caches (RFC 4861 section 7.2.6)."""
    body = struct.pack("!I", _ROUTER | _OVERRIDE) + address.packed + bytes([_TARGET_MAC, 1]) + mac
    return (
        _ALL_NODES_MAC
        + mac
        + struct.pack("!H", ETH_P_IPV6)
        + _icmpv6(_NEIGHBOUR_ADVERTISEMENT, address, _ALL_NODES, body)
    )


def neighbour_solicitation(mac: bytes, address: IPv6Address) -> bytes:
    """Question who has `address`, from the link-local address of `mac` (RFC 4861 section 4.3).

    Not from `::`: that form is duplicate address detection, and would make a neighbour that is
    just bringing the address up give it up (RFC 4862 section 5.4.3).
    """
    group = IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + address.packed[13:])
    body = bytes(4) + address.packed + bytes([_SOURCE_MAC, 1]) + mac
    return (
        b"\x33\x33"
        + group.packed[12:]
        + mac
        + struct.pack("!H", ETH_P_IPV6)
        + _icmpv6(_NEIGHBOUR_SOLICITATION, link_local_of(mac), group, body)
    )


def advertisement_answers(frame: bytes, address: IPv6Address) -> bool:
    """Whether the frame is an advertisement of `address`."""
    return (
        len(frame) >= 78
        and frame[12:14] == b"\x86\xdd"
        and frame[20] == 58
        and frame[54] == _NEIGHBOUR_ADVERTISEMENT
        and frame[62:78] == address.packed
    )


def link_local_of(mac: bytes) -> IPv6Address:
    """The EUI-64 link-local address of a MAC (RFC 4291 appendix A)."""
    eui = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + eui)


def _arp(
    source: bytes,
    operation: int,
    sender_mac: bytes,
    sender: IPv4Address,
    target_mac: bytes,
    target: IPv4Address,
) -> bytes:
    return (
        BROADCAST
        + source
        + struct.pack("!HHHBBH", ETH_P_ARP, 1, 0x0800, 6, 4, operation)
        + sender_mac
        + sender.packed
        + target_mac
        + target.packed
    )


def _icmpv6(kind: int, source: IPv6Address, target: IPv6Address, body: bytes) -> bytes:
    """IPv6 packet of hop limit 255 with an ICMPv6 message and its checksum (RFC 4443)."""
    length = 4 + len(body)
    pseudo = source.packed + target.packed + struct.pack("!II", length, 58)
    total = sum(
        struct.unpack(f"!{(len(pseudo) + length) // 2}H", pseudo + bytes([kind, 0, 0, 0]) + body)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    header = struct.pack("!IHBB", 6 << 28, length, 58, 255) + source.packed + target.packed
    return header + struct.pack("!BBH", kind, 0, ~total & 0xFFFF) + body
