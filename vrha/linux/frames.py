"""Ethernet frames of ARP, neighbour discovery and ICMP echo, as bytes."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

BROADCAST = b"\xff" * 6
ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
_ALL_NODES = IPv6Address("ff02::1")
_SOLICITED_NODE = IPv6Address("ff02::1:ff00:0")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_SOURCE_MAC, _TARGET_MAC = 1, 2
_ROUTER, _OVERRIDE = 0x8000_0000, 0x2000_0000
_ECHO_REQUEST = 8
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_ECHO = struct.Struct("!BBHHH8sI")
_ECHO_SUM, _ECHO_SEQUENCE, _ECHO_NONCE, _ECHO_NUMBER = 36, 40, 42, 50
NONCE_BYTES = 8


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


def arp_question(
    mac: bytes, sender: IPv4Address, address: IPv4Address, to: bytes = BROADCAST
) -> bytes:
    """Question who has `address`, from `sender`: who knows `sender` learns that it is at `mac`.

    To one MAC only it is the unicast poll of RFC 1122 section 2.3.2.1.
    """
    return _arp(mac, 1, mac, sender, b"\0" * 6, address, to)


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
    return neighbour_question(mac, link_local_of(mac), address)


def neighbour_question(
    mac: bytes, source: IPv6Address, address: IPv6Address, to: bytes = b""
) -> bytes:
    """Question who has `address`, from `source`: who knows `source` learns that it is at `mac`.

    To one MAC `to` it is the probe of RFC 4861 section 7.3.3, else it goes to the group.
    """
    group = IPv6Address(_SOLICITED_NODE.packed[:13] + address.packed[13:])
    target = address if to else group
    body = bytes(4) + address.packed + bytes([_SOURCE_MAC, 1]) + mac
    return (
        (to or b"\x33\x33" + group.packed[12:])
        + mac
        + struct.pack("!H", ETH_P_IPV6)
        + _icmpv6(_NEIGHBOUR_SOLICITATION, source, target, body)
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


class EchoRequests:
    """ICMP echo requests (RFC 792) of one stream as Ethernet frames, one after the other.

    Every frame carries the stream's nonce and the whole number of the probe, so that neither a
    foreign reply nor one of 65536 probes ago is ever taken for an answer.
    """

    def __init__(
        self,
        macs: tuple[bytes, bytes],
        source: IPv4Address,
        target: IPv4Address,
        ident: int,
        nonce: bytes,
    ) -> None:
        """`macs`: of the sender and of the next hop; `nonce`: 8 bytes."""
        echo = _ECHO.pack(_ECHO_REQUEST, 0, 0, ident, 0, nonce, 0)
        fields = (0x45, 0, _IPV4.size + len(echo), 0, 0x4000, 64, 1)
        checksum = _folded(_sum(_IPV4.pack(*fields, 0, source.packed, target.packed)))
        header = _IPV4.pack(*fields, checksum, source.packed, target.packed)
        self._sum = _sum(echo)
        self._frame = bytearray(macs[1] + macs[0] + struct.pack("!H", ETH_P_IP) + header + echo)

    def numbered(self, number: int) -> bytearray:
        """The frame of probe `number` (32 bits); it is overwritten by the next call."""
        low = number & 0xFFFF
        struct.pack_into("!H", self._frame, _ECHO_SEQUENCE, low)
        struct.pack_into("!I", self._frame, _ECHO_NUMBER, number)
        checksum = _folded(self._sum + low + low + (number >> 16))
        struct.pack_into("!H", self._frame, _ECHO_SUM, checksum)
        return self._frame


def echo_number(frame: bytes | bytearray, length: int, nonce: bytes) -> int | None:
    """Which probe of the stream with this nonce the ICMP message in `frame` belongs to, if any."""
    if length < _ECHO_NUMBER + 4 or frame[_ECHO_NONCE:_ECHO_NUMBER] != nonce:
        return None
    return int.from_bytes(frame[_ECHO_NUMBER : _ECHO_NUMBER + 4], "big")


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
    to: bytes = BROADCAST,
) -> bytes:
    return (
        to
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
    checksum = _folded(_sum(pseudo + bytes([kind, 0, 0, 0]) + body))
    header = struct.pack("!IHBB", 6 << 28, length, 58, 255) + source.packed + target.packed
    return header + struct.pack("!BBH", kind, 0, checksum) + body


def _sum(data: bytes) -> int:
    return int(sum(struct.unpack(f"!{len(data) // 2}H", data)))


def _folded(total: int) -> int:
    """The Internet checksum of a sum of 16-bit words (RFC 1071)."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
