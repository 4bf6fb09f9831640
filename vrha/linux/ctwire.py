"""Connection tracking entries as bytes: from what the kernel dumps to what it takes elsewhere.

An entry cannot be given back as it was dumped: with the translated reply tuple the kernel takes
it and silently does no NAT. It wants the plain inverse of the original tuple as reply, and the
translation as CTA_NAT_SRC and CTA_NAT_DST (net/netfilter/nf_conntrack_netlink.c,
include/uapi/linux/netfilter/nfnetlink_conntrack.h). Both are given whenever there is any NAT,
with exact ports: where one is left out the kernel may choose another port without a word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from vrha.linux.netlink import attr, attributes, nest

_IPV4: Final = 2
_TCP, _ICMP, _ICMPV6 = 6, 1, 58
_NESTED: Final = 0x8000

_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _HELP, _NAT_SRC = 1, 2, 3, 4, 5, 6
_TIMEOUT, _MARK, _ID, _NAT_DST, _MASTER = 7, 8, 12, 13, 14
_SEQ_ORIG, _SEQ_REPLY, _ZONE, _LABELS, _SYNPROXY = 15, 16, 18, 22, 24
_IP, _PROTO, _TUPLE_ZONE = 1, 2, 3
_NUMBER, _SOURCE_PORT, _TARGET_PORT = 1, 2, 3
_ICMP_ID = {_ICMP: 4, _ICMPV6: 7}

_EXPECTED, _SEEN_REPLY, _ASSURED, _CONFIRMED, _DYING = 1, 2, 4, 8, 0x200
_GIVEN_STATUS = _SEEN_REPLY | _ASSURED | _CONFIRMED
"""The NAT bits are the kernel's own; it sets them from the NAT attributes."""

_BE_LIBERAL = 0x08
_TCP_STATE, _TCP_SCALES, _TCP_FLAGS = 1, (2, 3), (4, 5)
_SYN_SENT, _SYN_RECV, _ESTABLISHED, _SYN_SENT2 = 1, 2, 3, 9
_ROUNDED_S: Final = 2
_NO_TIMEOUT_S: Final = 120
"""For an entry that a flow table has taken over: the kernel gives no timeout for it."""

_U32 = struct.Struct("!I")
_ATTR = struct.Struct("=HH")


class Kind(StrEnum):
    """What happened to an entry."""

    FOUND = "found"
    """It was in a dump. The dump may be older than what the other side has by now."""
    SET = "set"
    """It was made or changed."""
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """One entry to set or remove in another namespace; it may cross the wire.

    `key` names the entry: nfgenmsg (family), original tuple, zone. `update` are the attributes of
    an entry that exists already, `create` those that only a new one takes besides (reply tuple,
    NAT). Both are empty when it is removed.
    """

    kind: Kind
    key: bytes
    create: bytes = b""
    update: bytes = b""

    @property
    def timeout(self) -> int:
        """Seconds until the entry ends when no packet comes."""
        return int.from_bytes(self.update[12:16], "big")

    @property
    def is_expected(self) -> bool:
        """Whether another connection has announced it, as FTP does with its data connections."""
        return bool(self.update[7] & _EXPECTED)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in a message whose tuples have ports and no zones of their own.

    nfgenmsg | CTA_TUPLE_ORIG{ IP{src, dst}, PROTO{number, sport, dport} } | CTA_TUPLE_REPLY{..}.
    Parsing by attribute takes ten times as long, and there are tens of thousands of entries.
    """

    size: int
    """Bytes of an address."""
    proto: int
    """Offset of the original CTA_TUPLE_PROTO."""
    end: int
    """Offset after the original tuple; the reply tuple is as long."""
    rest: int
    """Offset of what follows the tuples."""
    orig_header: bytes
    reply_header: bytes
    proto_header: bytes
    reply_start: bytes
    """Headers of the reply tuple up to its source address."""
    target_header: bytes
    nat_src: bytes
    nat_dst: bytes


def _layout(size: int, first: int) -> _Layout:
    address = 4 + size
    proto = 12 + 2 * address
    length = proto + 24
    nat = 4 + address + 12
    reply = _ATTR.pack(length, _TUPLE_REPLY | _NESTED)
    minimum = _ATTR.pack(address, 1 if size == 4 else 4)
    return _Layout(
        size,
        proto,
        4 + length,
        4 + 2 * length,
        _ATTR.pack(length, _TUPLE_ORIG | _NESTED),
        reply,
        _ATTR.pack(28, _PROTO | _NESTED),
        reply + _ATTR.pack(4 + 2 * address, _IP | _NESTED) + _ATTR.pack(address, first),
        _ATTR.pack(address, first + 1),
        _ATTR.pack(nat, _NAT_SRC | _NESTED) + minimum,
        _ATTR.pack(nat, _NAT_DST | _NESTED) + minimum,
    )


_V4: Final = _layout(4, 1)
_V6: Final = _layout(16, 3)
_NAT_PORT: Final = _ATTR.pack(12, 3 | _NESTED) + _ATTR.pack(6, 1)
_PAD: Final = b"\0\0"
_ZONE_HEADER: Final = _ATTR.pack(6, _ZONE)
_STATUS_HEADER: Final = _ATTR.pack(8, _STATUS)
_TIMEOUT_HEADER: Final = _ATTR.pack(8, _TIMEOUT)
_TCP_HEADERS: Final = (_ATTR.pack(48, _PROTOINFO | _NESTED), _ATTR.pack(44, 1 | _NESTED))
_TCP_FLAGS_HEADER: Final = _ATTR.pack(6, _TCP_FLAGS[0])
_LIBERAL: Final = tuple(bytes((flags | _BE_LIBERAL,) * 2) for flags in range(256))
"""Flags and their mask: without the mask the kernel ignores them."""


def key_of(body: bytes) -> bytes:
    """Key of the entry in a message of the kernel."""
    layout = _layout_of(body)
    if layout is not None:
        rest = layout.rest
        if body[rest : rest + 4] == _ZONE_HEADER:
            return body[: layout.end] + body[rest : rest + 8]
        return body[: layout.end]
    found = attributes(body[4:])
    zone = attr(_ZONE, found[_ZONE]) if _ZONE in found else b""
    return body[:4] + nest(_TUPLE_ORIG, found[_TUPLE_ORIG]) + zone


def is_sound(change: Change) -> bool:
    """Whether the kernel may be asked to carry it out; one from the wire may be anything.

    A deletion without a tuple would empty the whole table, and an odd length would make garbage
    of the messages sent after it.
    """
    key = change.key
    return (
        len(key) > 8
        and (len(key) | len(change.create) | len(change.update)) & 3 == 0
        and _ATTR.unpack_from(key, 4)[1] == _TUPLE_ORIG | _NESTED
        and (change.kind is Kind.REMOVED or change.update[:4] == _STATUS_HEADER)
    )


def change_of(kind: Kind, key: bytes, bodies: Iterable[bytes]) -> Change | None:
    """What to do elsewhere for an entry that the kernel has described in these messages.

    Events tell only what has changed: with several, the newest of each attribute counts. None
    for what belongs to its namespace alone (loopback, broadcast, multicast) and for dying entries.
    """
    found: dict[int, bytes] = {}
    body = b""
    for body in bodies:
        layout = _layout_of(body)
        _collect(body, 4 if layout is None else layout.rest, found)
    layout = _layout_of(body)
    if layout is None:
        protocol, reply = _reply_by_attribute(body[0] == _IPV4, found)
    else:
        protocol, reply = body[layout.proto + 8], _reply_by_layout(layout, body)
    status = found[_STATUS][3] if _STATUS in found else _CONFIRMED
    dying = _STATUS in found and found[_STATUS][2] & (_DYING >> 8)
    if not reply or dying:
        return None
    return Change(kind, key, _create(protocol, status, reply, found), _update(status, found))


def timeout_and_id(body: bytes) -> tuple[int, bytes]:
    """Seconds left of an entry, and its CTA_ID attribute (which no later entry has)."""
    found = attributes(body[4:])
    left = int.from_bytes(found.get(_TIMEOUT, b""), "big")
    return left, attr(_ID, found[_ID]) if _ID in found else b""


def ends_within(body: bytes, seconds: int) -> bool:
    """Whether the entry in a message of the kernel ends so soon when no packet comes.

    Parsing all attributes takes ten times as long, and most entries of a large table live long.
    """
    layout = _layout_of(body)
    at = body.find(_TIMEOUT_HEADER, 4 if layout is None else layout.rest)
    return at >= 0 and int.from_bytes(body[at + 4 : at + 8], "big") < seconds


def is_ahead(offered: Change, present: Change) -> bool:
    """Whether `offered` describes a moment of the same entry not before that of `present`.

    Status bits are only ever added, TCP goes through its states in order, and within one state
    the entry with the longer timeout has seen the later packet; a copy ends up to a moment later
    than its origin, because timeouts are told in whole seconds.
    """
    status, state = _standing(offered.update)
    present_status, present_state = _standing(present.update)
    if present_status & ~status:
        return False
    known = (status, state, offered.timeout + _ROUNDED_S)
    return known >= (present_status, present_state, present.timeout)


def _standing(update: bytes) -> tuple[int, float]:
    found = attributes(update)
    state = 0.0
    if _PROTOINFO in found:
        tcp = attributes(attributes(found[_PROTOINFO]).get(1, b""))
        state = tcp.get(_TCP_STATE, b"\0")[0]
    return found[_STATUS][3], 1.5 if state == _SYN_SENT2 else state


def _layout_of(body: bytes) -> _Layout | None:
    layout = _V4 if body[0] == _IPV4 else _V6
    proto, end = layout.proto, layout.end
    if (
        body[4:8] == layout.orig_header
        and body[end : end + 4] == layout.reply_header
        and body[proto : proto + 4] == layout.proto_header
    ):
        return layout
    return None


def _collect(body: bytes, offset: int, found: dict[int, bytes]) -> None:
    unpack, size = _ATTR.unpack_from, len(body)
    while offset + 4 <= size:
        length, kind = unpack(body, offset)
        if length < 4:
            return
        found[kind & 0x3FFF] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _stays(source: bytes, target: bytes) -> bool:
    """Whether an entry between these addresses is of no use elsewhere."""
    if len(target) == 4:
        return target[0] >= 224 or (source[0] == 127 and target[0] == 127)
    return target[0] == 0xFF or (source == target and not any(source[:15]))


def _reply_by_layout(layout: _Layout, body: bytes) -> bytes:
    """Reply tuple and NAT attributes; empty for an entry that stays."""
    size, proto, end = layout.size, layout.proto, layout.end
    source, target = body[16 : 16 + size], body[20 + size : 20 + 2 * size]
    if _stays(source, target):
        return b""
    source_port, target_port = body[proto + 16 : proto + 18], body[proto + 24 : proto + 26]
    reply = b"".join(
        (
            layout.reply_start,
            target,
            layout.target_header,
            source,
            body[proto : proto + 16],
            target_port,
            body[proto + 18 : proto + 24],
            source_port,
            _PAD,
        )
    )
    if body[end : layout.rest] == reply:
        return reply
    ports = end + proto
    return b"".join(
        (
            reply,
            layout.nat_src,
            body[end + 16 + size : end + 16 + 2 * size],
            _NAT_PORT,
            body[ports + 20 : ports + 22],
            _PAD,
            layout.nat_dst,
            body[end + 12 : end + 12 + size],
            _NAT_PORT,
            body[ports + 12 : ports + 14],
            _PAD,
        )
    )


def _reply_by_attribute(ipv4: bool, found: dict[int, bytes]) -> tuple[int, bytes]:
    """Protocol, and the same as `_reply_by_layout` for any protocol."""
    orig, back = attributes(found[_TUPLE_ORIG]), attributes(found[_TUPLE_REPLY])
    proto, back_proto = attributes(orig[_PROTO]), attributes(back[_PROTO])
    first, second = (1, 2) if ipv4 else (3, 4)
    ends, back_ends = attributes(orig[_IP]), attributes(back[_IP])
    protocol = proto[_NUMBER][0]
    if _stays(ends[first], ends[second]):
        return protocol, b""
    plain = dict(back_proto)
    identifier = _ICMP_ID.get(protocol, 0)
    # An ICMP flow has one identifier; NAT of its source may change it.
    sending, answering = (identifier, identifier) if identifier else (_SOURCE_PORT, _TARGET_PORT)
    if sending in proto:
        plain[sending] = proto[answering]
        plain[answering] = proto[sending]
    reply = nest(
        _TUPLE_REPLY,
        nest(_IP, attr(first, ends[second]), attr(second, ends[first])),
        nest(_PROTO, *(attr(kind, value) for kind, value in plain.items())),
        attr(_TUPLE_ZONE, back[_TUPLE_ZONE]) if _TUPLE_ZONE in back else b"",
    )
    translated = (back_ends[first], back_ends[second]) != (ends[second], ends[first])
    if not translated and plain == back_proto:
        return protocol, reply

    def nat(kind: int, address: bytes, port: bytes) -> bytes:
        ports = nest(3, attr(1, port)) if port else b""
        return nest(kind, attr(1 if ipv4 else 4, address), ports)

    source_port = back_proto.get(answering, b"")
    target_port = proto.get(identifier, b"") if identifier else back_proto.get(_SOURCE_PORT, b"")
    return protocol, b"".join(
        (
            reply,
            nat(_NAT_SRC, back_ends[second], source_port),
            nat(_NAT_DST, back_ends[first], target_port),
        )
    )


def _create(protocol: int, status: int, reply: bytes, found: dict[int, bytes]) -> bytes:
    parts = [reply]
    if _MASTER in found:
        # The kernel sets "expected" itself when it finds the master; here it would refuse it.
        parts.append(attr(_STATUS, _U32.pack(status & _GIVEN_STATUS)))
        parts.append(nest(_MASTER, found[_MASTER]))
    if _HELP in found:
        parts.append(nest(_HELP, attr(1, attributes(found[_HELP])[1])))
    if protocol == _TCP and _PROTOINFO not in found:
        parts.append(_tcp_from_status(status))
    return b"".join(parts)


def _update(status: int, found: dict[int, bytes]) -> bytes:
    parts = [
        _STATUS_HEADER,
        _U32.pack(status & (_GIVEN_STATUS | _EXPECTED)),
        _TIMEOUT_HEADER,
        found.get(_TIMEOUT) or _U32.pack(_NO_TIMEOUT_S),
    ]
    if _PROTOINFO in found:
        parts.append(_protoinfo(found[_PROTOINFO]))
    for kind in (_MARK, _LABELS):
        if kind in found:
            parts.append(attr(kind, found[kind]))
    for kind in (_SEQ_ORIG, _SEQ_REPLY, _SYNPROXY):
        if kind in found:
            parts.append(nest(kind, found[kind]))
    return b"".join(parts)


def _protoinfo(value: bytes) -> bytes:
    """State of the protocol; TCP windows are not checked any more, both sides' are unknown."""
    outer, inner = _TCP_HEADERS
    if len(value) == 44 and value[:4] == inner and value[28:32] == _TCP_FLAGS_HEADER:
        first, second = _LIBERAL[value[32]], _LIBERAL[value[40]]
        return b"".join((outer, value[:32], first, value[34:40], second, value[42:]))
    tcp = attributes(value).get(1)
    if tcp is None:
        return nest(_PROTOINFO, value)
    parts = attributes(tcp)
    for kind in _TCP_FLAGS:
        parts[kind] = _LIBERAL[parts.get(kind, b"\0")[0]]
    return nest(_PROTOINFO, nest(1, *(attr(kind, data) for kind, data in parts.items())))


def _tcp_from_status(status: int) -> bytes:
    """A TCP state for a new entry whose own one the kernel has not told."""
    state = _SYN_SENT
    if status & _SEEN_REPLY:
        state = _ESTABLISHED if status & _ASSURED else _SYN_RECV
    flags = (attr(kind, _LIBERAL[0]) for kind in _TCP_FLAGS)
    return nest(_PROTOINFO, nest(1, attr(_TCP_STATE, bytes((state,))), *flags))
