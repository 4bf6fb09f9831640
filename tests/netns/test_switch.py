"""Muting, unmuting and swapping: what the wire sees."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, mac_of, machine, spec_of, until
from vrha.core import names
from vrha.errors import StepError
from vrha.linux import mute
from vrha.linux.node import NodeKernel
from vrha.model.spec import InstanceRef
from vrha.model.state import Activity

pytestmark = pytest.mark.root

ETH_P_ALL = 3
SWAPS = 200
CLIENT, GATEWAY = bytes([10, 1, 1, 50]), bytes([10, 1, 1, 1])


def listener(on: Machine, port: str = "e0") -> socket.socket:
    """A raw socket on a port of the machine that hears everything."""
    sock = on.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
    sock.bind((port, ETH_P_ALL))
    on.run("ip", "link", "set", port, "promisc", "on")
    sock.settimeout(0.5)
    return sock


def heard_from(sock: socket.socket, macs: set[str]) -> int:
    """Frames from these MACs until nothing has come for half a second."""
    raw = {bytes.fromhex(mac.replace(":", "")) for mac in macs}
    count = 0
    while True:
        try:
            count += sock.recv(2048)[6:12] in raw
        except TimeoutError:
            return count


def test_an_instance_is_born_muted_and_speaks_when_unmuted(kernel: NodeKernel) -> None:
    client = machine("vm", "br-a", "10.1.1.50/24", "fd00:1::50/64")
    outside = machine("gw", "br-up", "203.0.113.1/24", "2001:db8::1/64")
    spec = spec_of()
    macs = {mac_of(1, port) for port in range(3)}
    with listener(client) as inside_wire, listener(outside) as outside_wire:
        kernel.build(spec)
        assert kernel.self_test(spec).not_forwarding == ()
        name = names.namespace_name(spec.ref)
        for target in ("10.1.1.50", "203.0.113.1", "2001:db8::1"):
            assert not Machine(name).pings(target)
        assert not client.pings("10.1.1.1")
        assert heard_from(inside_wire, macs) == 0
        assert heard_from(outside_wire, macs) == 0
    counted = kernel.counters(spec.ref)
    assert counted["n0"]["rx_packets"] == 0, "a muted instance must hear nothing"
    kernel.unmute(spec.ref)
    # A neighbour that was asked for in vain is asked for again only after a second.
    assert until(lambda: client.pings("10.1.1.1"))
    assert until(lambda: client.pings("fd00:1::1"))
    assert until(lambda: Machine(name).pings("2001:db8::1"))
    kernel.mute(spec.ref)
    assert not client.pings("10.1.1.1")


def test_traffic_passes_through_an_unmuted_instance(kernel: NodeKernel) -> None:
    client = machine("vm", "br-a", "10.1.1.11/24", via="10.1.1.1")
    outside = machine("out", "br-up", "203.0.113.1/24")
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    assert client.pings("203.0.113.1")
    assert outside.pings("203.0.113.11")
    counted = kernel.counters(spec.ref)
    assert counted["n0"]["rx_packets"] > 0
    assert counted["u0"]["tx_packets"] > 0


def test_switching_is_idempotent_and_tolerates_what_is_absent(kernel: NodeKernel) -> None:
    old, new = spec_of(1), spec_of(2)
    kernel.build(new)
    for _ in range(2):
        kernel.swap(old.ref, new.ref)
        kernel.mute(old.ref)
        kernel.unmute(new.ref)
        (found,) = kernel.observe()
        assert found.activity is Activity.ACTIVE
    for _ in range(2):
        kernel.mute(new.ref)
    with pytest.raises(StepError) as refused:
        kernel.swap(new.ref, old.ref)
    assert refused.value.code == "no-instance"
    with pytest.raises(StepError, match="no-instance"):
        kernel.unmute(InstanceRef("unknown", 1))


def test_an_existing_table_is_taken_over_as_it_is(kernel: NodeKernel, state_dir: Path) -> None:
    switch = mute.Switch("/usr/sbin/nft")
    switch.change(unmute=["vrh00000000-n0"])
    before = sh("nft -a list ruleset")
    other = NodeKernel(state_dir)
    other.close()
    assert sh("nft -a list ruleset") == before
    switch.change(mute=["vrh00000000-n0"])
    assert switch.active() == frozenset()
    switch.close()


def test_a_port_lost_shows_as_partial(kernel: NodeKernel) -> None:
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    sh(f"ip link del {names.host_port(spec.ref, 'n1')}")
    (found,) = kernel.observe()
    assert found.activity is Activity.PARTIAL


def test_never_both_and_hardly_ever_neither_answer_during_swaps(kernel: NodeKernel) -> None:
    """Requests from ever new MACs for the gateway's address, while two instances swap."""
    client = machine("vm", "br-a", "10.1.1.50/24")
    old, new = spec_of(1).ref, spec_of(2).ref
    kernel.build(spec_of(1))
    kernel.build(spec_of(2))
    kernel.unmute(old)
    stop = threading.Event()
    sent: list[bytes] = []
    with listener(client) as sock:

        def flood() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                mac = b"\x02\x99" + number.to_bytes(4, "big")
                sent.append(mac)
                sock.send(request(mac, CLIENT, GATEWAY))

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(SWAPS // 2):
                kernel.swap(old, new)
                kernel.swap(new, old)
        finally:
            stop.set()
            thread.join()
        answers = answers_by_mac(sock)
    both = [mac for mac in sent if answers[mac] > 1]
    neither = [mac for mac in sent if answers[mac] == 0]
    assert len(sent) > SWAPS
    assert len(both) == 0
    assert len(neither) <= SWAPS, f"of {len(sent)} requests"


def request(mac: bytes, sender: bytes, target: bytes) -> bytes:
    """An ARP request."""
    head = b"\xff" * 6 + mac + b"\x08\x06\0\x01\x08\0\x06\x04\0\x01"
    return head + mac + sender + bytes(6) + target


def answers_by_mac(sock: socket.socket) -> Counter[bytes]:
    """Number of ARP replies to each MAC."""
    answers: Counter[bytes] = Counter()
    while True:
        try:
            frame = sock.recv(2048)
        except TimeoutError:
            return answers
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\x02":
            answers[frame[:6]] += 1
