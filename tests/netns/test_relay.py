"""A relay forwards all that reaches it, but neither speaks nor hears as an owner of addresses."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, mac_of, machine, spec_of, until
from tests.netns.test_switch import CLIENT, GATEWAY, answers_by_mac, listener, request
from vrha.core import names
from vrha.linux import frames, rtnetlink
from vrha.linux.mute import Switch
from vrha.linux.node import NodeKernel

pytestmark = pytest.mark.root

TABLE_0_1_0 = """\
create table bridge vrha
add set bridge vrha active { type ifname; comment "instances that may speak"; }
add chain bridge vrha from_instances { type filter hook prerouting priority -300; }
add chain bridge vrha to_instances { type filter hook postrouting priority -300; }
add rule bridge vrha from_instances iifname "vrh*" iifname != @active drop
add rule bridge vrha to_instances oifname "vrh*" oifname != @active drop
"""
CLIENT_MAC = bytes.fromhex("029900000001")
GATEWAY_6 = IPv6Address("fe80::1")


@pytest.fixture
def switch(node: None) -> Iterator[Switch]:
    made = Switch("/usr/sbin/nft")
    yield made
    made.close()


def ports(kernel: NodeKernel) -> list[str]:
    """Host-side ports of instance 1, which is built and active."""
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    return [names.host_port(spec.ref, port.name) for port in spec.ports]


def received(port: str) -> int:
    """Packets that came in by a port of the node."""
    with rtnetlink.open_route() as netlink:
        found = rtnetlink.link(netlink, port)
    assert found is not None
    return found.rx_packets


def collected(sock: socket.socket, source: str) -> list[bytes]:
    """Frames from this MAC until nothing has come for half a second."""
    raw = bytes.fromhex(source.replace(":", ""))
    found = []
    while True:
        try:
            frame = sock.recv(2048)
        except TimeoutError:
            return found
        if frame[6:12] == raw:
            found.append(frame)


def dhcp_discover() -> bytes:
    """A broadcast DISCOVER (RFC 2131) of CLIENT_MAC."""
    options = b"\x63\x82\x53\x63" + b"\x35\x01\x01" + b"\xff"
    bootp = struct.pack("!BBBBIHH16x", 1, 1, 6, 0, 7, 0, 0x8000) + CLIENT_MAC + bytes(10 + 192)
    payload = bootp + options
    udp = struct.pack("!HHHH", 68, 67, 8 + len(payload), 0) + payload
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4
    )
    total = sum(struct.unpack("!10H", ip))
    ip = ip[:10] + struct.pack("!H", ~(total % 0xFFFF) & 0xFFFF) + ip[12:]
    return b"\xff" * 6 + CLIENT_MAC + b"\x08\0" + ip + udp


def questions() -> dict[str, bytes]:
    """What an owner of the gateway's addresses answers."""
    return {
        "arp": request(CLIENT_MAC, CLIENT, GATEWAY),
        "nd": frames.neighbour_solicitation(CLIENT_MAC, GATEWAY_6),
        "dhcp": dhcp_discover(),
    }


@pytest.mark.parametrize("question", ["arp", "nd", pytest.param("dhcp", marks=pytest.mark.long)])
def test_a_relay_answers_nothing(kernel: NodeKernel, switch: Switch, question: str) -> None:
    client = machine("vm", "br-a")
    own = ports(kernel)
    frame = questions()[question]
    inside = Machine(names.namespace_name(spec_of().ref))
    with listener(client) as wire, listener(inside, "n0") as ears:
        for _ in range(2):
            switch.change(serve=own)
            wire.send(frame)
            assert collected(wire, mac_of(1, 0)), "an owner answers"
            assert collected(ears, CLIENT_MAC.hex()) == [frame]
            for _ in range(2):
                switch.change(relay=own)
            assert switch.relays() == set(own) == switch.active()
            collected(wire, mac_of(1, 0))  # What was said just before.
            wire.send(frame)
            assert collected(wire, mac_of(1, 0)) == []
            assert collected(ears, CLIENT_MAC.hex()) == [], "a relay is deaf to it"
    switch.change(serve=own)
    switch.change(serve=own)
    assert switch.relays() == frozenset()


def test_what_a_relay_says_by_itself_is_not_heard(kernel: NodeKernel, switch: Switch) -> None:
    client = machine("vm", "br-a")
    own = ports(kernel)
    inside = Machine(names.namespace_name(spec_of().ref))
    mac = bytes.fromhex(mac_of(1, 0).replace(":", ""))
    said = [
        *frames.gratuitous_arps(mac, IPv4Address("10.1.1.1")),
        frames.unsolicited_advertisement(mac, GATEWAY_6),
        frames.neighbour_solicitation(mac, IPv6Address("fd00:1::50")),
    ]
    with listener(client) as wire, inside.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind(("n0", 0))
        for expected in (len(said), 0):
            for frame in said:
                out.send(frame)
            heard = [frame for frame in collected(wire, mac_of(1, 0)) if frame in said]
            assert len(heard) == expected
            switch.change(relay=own)


def test_a_relay_forwards_what_reaches_it(kernel: NodeKernel, switch: Switch) -> None:
    client = machine("vm", "br-a", "10.1.1.11/24", via="10.1.1.1")
    outside = machine("out", "br-up", "203.0.113.1/24")
    own = ports(kernel)
    assert client.pings("203.0.113.1")
    assert outside.pings("203.0.113.11")
    switch.change(relay=own)
    assert client.pings("203.0.113.1")
    assert outside.pings("203.0.113.11")
    switch.change(mute=own)
    assert switch.active() == frozenset()
    assert not client.pings("203.0.113.1")


def test_a_table_of_0_1_0_is_brought_up_to_date_under_traffic(node: None) -> None:
    """No packet of what is active is lost, and nothing that is muted is heard."""
    machine("one", "br-a", "10.1.1.1/24")
    two = machine("two", "br-a", "10.1.1.2/24")
    for number, name in enumerate(("one", "two")):
        sh(f"ip link set p-{name} down")
        sh(f"ip link set p-{name} name vrhtest-{number}")
        sh(f"ip link set vrhtest-{number} up")
    subprocess.run(["nft", "-f", "-"], input=TABLE_0_1_0, text=True, check=True, timeout=10)
    sh("nft add element bridge vrha active { vrhtest-0, vrhtest-1 }")
    assert until(lambda: two.pings("10.1.1.1"))
    begin = received("vrhtest-0")
    ping = "ip netns exec two ping -n -q -f -i 0.001 -c 2000 10.1.1.1"
    flood = subprocess.Popen(
        ping.split(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert until(lambda: received("vrhtest-0") > begin + 100)
    switch = Switch("/usr/sbin/nft")
    passed = received("vrhtest-0")
    assert until(lambda: received("vrhtest-0") > passed + 100)
    out, _ = flood.communicate(timeout=30)
    assert " 0% packet loss" in out, out
    assert switch.active() == {"vrhtest-0", "vrhtest-1"}
    before = sh("nft -a list ruleset")
    switch.ensure()
    assert sh("nft -a list ruleset") == before, "a table that is up to date is not touched"
    switch.change(relay=["vrhtest-0"])
    assert switch.relays() == {"vrhtest-0"}
    with listener(two) as wire:
        wire.send(request(CLIENT_MAC, CLIENT, GATEWAY))
        assert answers_by_mac(wire) == {}
        switch.change(serve=["vrhtest-0"])
        wire.send(request(CLIENT_MAC, CLIENT, GATEWAY))
        assert answers_by_mac(wire) == {CLIENT_MAC: 1}
    switch.close()
