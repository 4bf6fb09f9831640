"""Which frames of the real wire a filtered packet socket takes."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.netns.nodekit import Machine, machine, until
from vrha.linux import frames
from vrha.linux.packetsocket import ADVERTISEMENT, ARP_REPLY, Check, echo_reply, open_packets

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

MAC = bytes.fromhex("020000000009")


def heard(client: Machine, kind: int, checks: tuple[Check, ...], sent: list[bytes]) -> set[int]:
    """Which of the frames that the machine broadcasts the bridge's socket takes."""
    wanted = [frames.BROADCAST + frame[6:] for frame in sent]
    with (
        open_packets("br-a", kind, ()) as everything,
        open_packets("br-a", kind, checks) as filtered,
        client.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire,
    ):
        wire.bind(("e0", 0))

        def all_there() -> bool:
            # Again and again: the bridge drops what comes before the port forwards.
            for frame in wanted:
                wire.send(frame)
            return set(waiting(everything)) >= set(wanted)

        assert until(all_there)
        return {wanted.index(frame) for frame in waiting(filtered) if frame in wanted}


def waiting(sock: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sock.recv(256)


def fix_header(frame: bytearray) -> None:
    """Right the checksum of the IPv4 header: a bridge may drop what has a wrong one."""
    frame[24:26] = b"\0\0"
    header = frame[14 : 14 + 4 * (frame[14] & 15)]
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    frame[24:26] = (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")


def test_echo_replies_of_one_identifier(node: None) -> None:
    client = machine("vm", "br-a")
    ends = IPv4Address("203.0.113.1"), IPv4Address("10.1.1.0")
    request = frames.EchoRequests((MAC, MAC), *ends, 0xBEEF, b"12345678").numbered(5)
    reply, other, options, udp = (bytearray(request) for _ in range(4))
    reply[34] = other[34] = options[34] = udp[34] = 0
    other[39] = 0
    options[14] = 0x46
    udp[23] = 17
    for frame in (options, udp):
        fix_header(frame)
    sent = [bytes(frame) for frame in (request, other, options, udp, reply)]
    assert heard(client, frames.ETH_P_IP, tuple(echo_reply(0xBEEF)), sent) == {4}


def test_answers_of_neighbours(node: None) -> None:
    client = machine("vm", "br-a")
    request, reply = frames.gratuitous_arps(MAC, IPv4Address("10.1.1.9"))
    assert heard(client, frames.ETH_P_ARP, tuple(ARP_REPLY), [request, reply]) == {1}
    question = frames.neighbour_solicitation(MAC, IPv6Address("fd00::9"))
    answer = frames.unsolicited_advertisement(MAC, IPv6Address("fd00::9"))
    wanted = tuple(ADVERTISEMENT)
    assert heard(client, frames.ETH_P_IPV6, wanted, [question, answer]) == {1}
