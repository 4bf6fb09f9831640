"""Frames against bytes written out by hand after the RFCs."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from vrha.linux import frames

MAC = bytes.fromhex("020000000001")


def test_gratuitous_arp_as_request_and_as_reply() -> None:
    request, reply = frames.gratuitous_arps(MAC, IPv4Address("10.1.1.1"))
    head = "ffffffffffff0200000000010806000108000604"
    assert request.hex() == head + "00010200000000010a0101010000000000000a010101"
    assert reply.hex() == head + "00020200000000010a0101010200000000010a010101"


def test_arp_probe_names_no_sender_and_its_answer_is_recognised() -> None:
    wanted = IPv4Address("203.0.113.1")
    probe = frames.arp_probe(MAC, wanted)
    assert probe[28:32] == bytes(4)
    assert not frames.arp_answers(probe, wanted)
    answer = probe[:20] + b"\0\x02" + MAC + wanted.packed + MAC + bytes(4)
    assert frames.arp_answers(answer, wanted)
    assert not frames.arp_answers(answer, IPv4Address("203.0.113.2"))
    assert not frames.arp_answers(answer[:30], wanted)


def test_unsolicited_advertisement() -> None:
    address = IPv6Address("fe80::1")
    frame = frames.unsolicited_advertisement(MAC, address)
    assert frame[:14].hex() == "33330000000102000000000186dd"
    assert frame[18:22].hex() == "00203aff", "length 32, ICMPv6, hop limit 255"
    assert frame[22:38] == address.packed
    assert frame[38:54] == IPv6Address("ff02::1").packed
    assert frame[54] == 136
    assert frame[58:62].hex() == "a0000000", "router and override"
    assert frame[62:78] == address.packed
    assert frame[78:].hex() == "0201020000000001"
    assert checksum_is_right(frame)
    assert frames.advertisement_answers(frame, address)
    assert not frames.advertisement_answers(frame, IPv6Address("fe80::2"))


def test_neighbour_solicitation_goes_to_the_solicited_node_group() -> None:
    frame = frames.neighbour_solicitation(MAC, IPv6Address("2001:db8::aa:bbcc"))
    assert frame[:6].hex() == "3333ffaabbcc"
    assert frame[22:38] == IPv6Address("fe80::ff:fe00:1").packed, "not ::, which would be DAD"
    assert frame[38:54] == IPv6Address("ff02::1:ffaa:bbcc").packed
    assert checksum_is_right(frame)


def test_a_neighbour_is_asked_alone_or_by_broadcast_from_the_own_address() -> None:
    own, other = IPv4Address("10.1.1.1"), IPv4Address("10.1.1.11")
    frame = frames.arp_question(MAC, own, other)
    tail = "0200000000010806000108000604" + "00010200000000010a010101000000000000" + "0a01010b"
    assert frame.hex() == "ffffffffffff" + tail
    alone = frames.arp_question(MAC, own, other, bytes.fromhex("020000000011"))
    assert alone.hex() == "020000000011" + tail


def test_a_neighbour_of_ipv6_is_asked_alone_or_in_its_group() -> None:
    own, other = IPv6Address("fd00:1::1"), IPv6Address("fd00:1::aa:bbcc")
    group = frames.neighbour_question(MAC, own, other)
    assert group[:6].hex() == "3333ffaabbcc"
    assert group[38:54] == IPv6Address("ff02::1:ffaa:bbcc").packed
    alone = frames.neighbour_question(MAC, own, other, bytes.fromhex("020000000011"))
    assert alone[:6].hex() == "020000000011"
    assert alone[38:54] == other.packed
    for frame in (group, alone):
        assert frame[22:38] == own.packed
        assert frame[62:78] == other.packed
        assert frame[78:].hex() == "0101020000000001", "the asking MAC"
        assert checksum_is_right(frame)


NONCE = b"12345678"


def requests() -> frames.EchoRequests:
    macs = MAC, bytes.fromhex("020000000002")
    ends = IPv4Address("10.1.1.0"), IPv4Address("203.0.113.1")
    return frames.EchoRequests(macs, *ends, 0xBEEF, NONCE)


def test_echo_request() -> None:
    frame = requests().numbered(0x00030002)
    assert frame[:14].hex() == "0200000000020200000000010800"
    assert frame[14:24].hex() == "45000028000040004001", "40 bytes, not to be fragmented, ICMP"
    assert frame[26:34].hex() == "0a010100cb007101"
    assert words_of(frame[14:34]) == 0xFFFF
    assert frame[34:36].hex() == "0800"
    assert frame[38:].hex() == "beef0002" + NONCE.hex() + "00030002"


def test_the_checksum_of_every_echo_request_is_right() -> None:
    of_one_stream = requests()
    for number in (0, 1, 0xFFFF, 0x10000, 0x12345678, 0xFFFFFFFF):
        assert words_of(of_one_stream.numbered(number)[34:]) == 0xFFFF, hex(number)


def test_only_a_whole_reply_with_the_nonce_has_a_number() -> None:
    frame = bytes(requests().numbered(70000))
    assert frames.echo_number(frame + bytes(6), len(frame) + 6, NONCE) == 70000
    assert frames.echo_number(frame, len(frame), b"87654321") is None
    assert frames.echo_number(frame, len(frame) - 1, NONCE) is None


def words_of(data: bytes | bytearray) -> int:
    """RFC 1071: the folded sum of all 16-bit words; all ones when a checksum in it is right."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum_is_right(frame: bytes) -> bool:
    """RFC 1071: the sum over pseudo header and message, checksum included, is all ones."""
    message = frame[54:]
    data = frame[22:54] + struct.pack("!II", len(message), 58) + message
    return words_of(data) == 0xFFFF
