"""The bytes of probes."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from vrha.probe.wire import PAYLOAD, REQUEST, IcmpProbe, UdpProbe

seqs = st.integers(0, 2**32 - 1)


def internet_checksum(data: bytes) -> int:
    """RFC 1071, written the slow way; 0 over a packet whose checksum is right."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(min_size=8, max_size=8), st.integers(0, 0xFFFF), seqs)
def test_icmp_echo_request_has_a_right_checksum(cookie: bytes, ident: int, seq: int) -> None:
    packet = IcmpProbe(cookie, ident, v6=False).pack(seq)
    kind, code, _, got_ident, low = struct.unpack_from("!BBHHH", packet)
    assert internet_checksum(packet) == 0
    assert (kind, code, got_ident, low) == (8, 0, ident, seq % 65536)
    assert PAYLOAD.unpack_from(packet, 8) == (REQUEST, cookie, seq)


@given(seqs)
def test_icmp6_type_and_payload(seq: int) -> None:
    packet = IcmpProbe(b"c" * 8, 1, v6=True).pack(seq)
    assert packet[0] == 128
    assert PAYLOAD.unpack_from(packet, 8) == (REQUEST, b"c" * 8, seq)


@given(seqs)
def test_udp_payload(seq: int) -> None:
    assert PAYLOAD.unpack(UdpProbe(b"c" * 8).pack(seq)) == (REQUEST, b"c" * 8, seq)
