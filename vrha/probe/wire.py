"""Bytes of a probe, and the socket filter that keeps foreign ICMP away.

Payload, 16 bytes, network order: magic `vpg`, one byte kind (1 request, 2 answer of our responder;
a plain echo returns 1), 8 bytes cookie of the stream, 4 bytes sequence number.

A question (kind 3) asks our responder what came with a cookie, from a sequence number on. It looks
like a payload, padded to QUESTION_BYTES, and its report (kind 4) is never longer: nobody is flooded
by forging the source of questions. QUESTION_BYTES in one datagram pass wherever IPv4 does
(RFC 791: 576 bytes with headers).
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import NamedTuple

MAGIC = b"vpg"
REQUEST = MAGIC + b"\x01"
ANSWER = MAGIC + b"\x02"
QUESTION = MAGIC + b"\x03"
REPORT = MAGIC + b"\x04"
PAYLOAD = struct.Struct("!4s8sI")
QUESTION_BYTES = 508
MESSAGE = b"vrha ping-gap\r\n\0"
"""What goes over a long TCP connection, again and again."""

_ICMP = struct.Struct("!BBHHH4s8sI")

ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0
ICMP6_ECHO, ICMP6_ECHO_REPLY = 128, 129
SO_ATTACH_FILTER = 26


_REPORT = struct.Struct("!4s8sIQIIIIHH")
_RANGE = struct.Struct("!II")
MOST_RANGES = (QUESTION_BYTES - _REPORT.size) // _RANGE.size
"""In one report."""

_MORE = 1
_MOST = 2**32 - 1


class Report(NamedTuple):
    """What came to a responder with a cookie, from sequence number `asked_from` on.

    The `ranges` (first and last number) are in ascending order; with `more` further ones follow,
    to be asked for from the number after the last one on. What is not in them never came, unless
    it came longer than `age_us` ago or its number is below `floor`: that may have been forgotten.
    `total` ranges there are, `duplicates` came once more, `refused` answers could not be sent.
    """

    asked_from: int
    age_us: int
    floor: int
    total: int
    duplicates: int
    refused: int
    ranges: tuple[tuple[int, int], ...]
    more: bool

    def pack(self, cookie: bytes) -> bytes:
        """At most QUESTION_BYTES. Raises struct.error with more than MOST_RANGES ranges."""
        if len(self.ranges) > MOST_RANGES:
            raise struct.error(f"{len(self.ranges)} ranges do not fit")
        head = _REPORT.pack(
            REPORT,
            cookie,
            self.asked_from,
            self.age_us,
            self.floor,
            self.total,
            min(self.duplicates, _MOST),
            min(self.refused, _MOST),
            _MORE if self.more else 0,
            len(self.ranges),
        )
        return head + b"".join(_RANGE.pack(*one) for one in self.ranges)

    @classmethod
    def unpack(cls, data: bytes, cookie: bytes) -> Report | None:
        """None when it is no report for that cookie, or none that makes sense."""
        if len(data) < _REPORT.size:
            return None
        mark, its, asked, age, floor, total, twice, refused, flags, count = _REPORT.unpack_from(
            data
        )
        if (mark, its) != (REPORT, cookie) or len(data) != _REPORT.size + count * _RANGE.size:
            return None
        ranges = tuple(_RANGE.iter_unpack(data[_REPORT.size :]))
        numbers = [number for one in ranges for number in one]
        more = bool(flags & _MORE)
        if numbers != sorted(numbers) or (more and (not ranges or numbers[-1] < asked)):
            return None
        return cls(asked, age, floor, total, twice, refused, ranges, more)


def pack_question(cookie: bytes, from_seq: int) -> bytes:
    return PAYLOAD.pack(QUESTION, cookie, from_seq).ljust(QUESTION_BYTES, b"\0")


class UdpProbe:
    """Packs UDP probes of one stream."""

    def __init__(self, cookie: bytes) -> None:
        self._cookie = cookie

    def pack(self, seq: int) -> bytes:
        return PAYLOAD.pack(REQUEST, self._cookie, seq)


class IcmpProbe:
    """Packs ICMP echo requests of one stream (RFC 792, RFC 4443 section 4.1).

    The checksum is ours to make only on raw IPv4 sockets; elsewhere the kernel overwrites it.
    """

    def __init__(self, cookie: bytes, ident: int, v6: bool) -> None:
        self._cookie = cookie
        self._ident = ident
        self._type = ICMP6_ECHO if v6 else ICMP_ECHO
        fixed = _ICMP.pack(self._type, 0, 0, ident, 0, REQUEST, cookie, 0)
        # Checksums are numbers modulo 0xFFFF (RFC 1071 section 2).
        self._rest = -sum(struct.unpack(f"!{len(fixed) // 2}H", fixed))

    def pack(self, seq: int) -> bytes:
        low = seq & 0xFFFF
        checksum = (self._rest - low - low - (seq >> 16)) % 0xFFFF
        return _ICMP.pack(self._type, 0, checksum, self._ident, low, REQUEST, self._cookie, seq)


def attach_icmp_filter(sock: socket.socket, ident: int, v6: bool) -> None:
    """Let the raw socket take only echo replies with our identifier (classic BPF, bpf(2)).

    A raw IPv4 socket sees the packet from its IP header on, an IPv6 one from the ICMPv6 header
    (net/ipv4/raw.c raw_rcv, net/ipv6/raw.c rawv6_rcv).
    """
    program = [
        (0x01, 0, 0, 0) if v6 else (0xB1, 0, 0, 0),  # X = 0, or X = 4 * IHL
        (0x50, 0, 0, 0),  # A = byte [X + 0], the ICMP type
        (0x15, 0, 3, ICMP6_ECHO_REPLY if v6 else ICMP_ECHO_REPLY),
        (0x48, 0, 0, 4),  # A = half word [X + 4], the identifier
        (0x15, 0, 1, ident),
        (0x06, 0, 0, 0xFFFF),  # take
        (0x06, 0, 0, 0),  # drop
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("@HBBI", *line) for line in program))
    fprog = struct.pack("@HP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
