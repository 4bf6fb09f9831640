"""Two instances with the same MAC and address on one bridge: which of them the traffic reaches."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, machine, until
from tests.netns.test_relay import received
from tests.netns.test_switch import CLIENT, GATEWAY, answers_by_mac, listener, request
from vrha.linux import fdb, neighbours, netns, rtnetlink
from vrha.linux.mute import Switch
from vrha.linux.netlink import Netlink

pytestmark = pytest.mark.root

MAC = bytes.fromhex("027600000001")
ASKING = bytes([10, 1, 1, 200])
"""An address nobody else uses: whoever asks is believed to own it."""
FLIPS = 20
PINGS = 4000


@dataclass(frozen=True)
class Twin:
    """A namespace that believes to be the gateway, and its port on the bridge."""

    machine: Machine
    port: str

    @property
    def index(self) -> int:
        return socket.if_nametoindex(self.port)


def twin(name: str) -> Twin:
    """Made muted, since the table is there already."""
    sh(f"ip netns add {name}")
    port = f"vrhtwin-{name}"
    mac = MAC.hex(":")
    sh(f"ip link add {port} type veth peer name e0 address {mac} netns {name}")
    sh(f"ip link set {port} master br-a up")
    sh(f"ip -n {name} link set e0 up")
    sh(f"ip -n {name} addr add 10.1.1.1/24 dev e0")
    return Twin(Machine(name), port)


@pytest.fixture
def switch(node: None) -> Iterator[Switch]:
    made = Switch("/usr/sbin/nft")
    yield made
    made.close()


@pytest.fixture
def route(node: None) -> Iterator[Netlink]:
    with rtnetlink.open_route() as opened:
        yield opened


def test_an_entry_moves_when_told_and_never_by_a_frame(switch: Switch, route: Netlink) -> None:
    old, new = twin("old"), twin("new")
    switch.change(unmute=[old.port, new.port])
    bridge = socket.if_nametoindex("br-a")
    assert fdb.fdb_port(route, bridge, bytes.fromhex("02ffffffff01")) is None
    for here, there in ((old, new), (new, old)):
        for _ in range(2):
            route.talk([fdb.set_fdb(here.index, MAC)])
            assert fdb.fdb_port(route, bridge, MAC) == here.index
        before = received(there.port)
        with there.machine.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("e0", 0))

            def arrives(there: Twin = there, before: int = before) -> bool:
                # A port that has just come up loses the first frames.
                out.send(request(MAC, GATEWAY, CLIENT))
                return received(there.port) > before

            assert until(arrives)
        assert fdb.fdb_port(route, bridge, MAC) == here.index
    gone = new.index
    sh(f"ip link del {new.port}")
    # A frame of the other one that was still under way may have been learned since.
    assert fdb.fdb_port(route, bridge, MAC) != gone, "the entry goes with its port"


def test_traffic_changes_over_and_back_without_a_loss(switch: Switch, route: Netlink) -> None:
    old, new = twin("old"), twin("new")
    client = machine("vm", "br-a", "10.1.1.50/24")
    prober = machine("prober", "br-a")
    bridge = socket.if_nametoindex("br-a")
    switch.change(unmute=[old.port])
    route.talk([fdb.set_fdb(old.index, MAC)])
    assert client.pings("10.1.1.1")
    copy_neighbours(old, new)
    stop = threading.Event()
    asked: list[bytes] = []
    with listener(prober) as wire:
        asking = threading.Thread(target=ask, args=(wire, asked, stop))
        flood = subprocess.Popen(
            f"ip netns exec vm ping -n -q -f -i 0.001 -c {PINGS} 10.1.1.1".split(),
            stdout=subprocess.PIPE,
            text=True,
        )
        asking.start()
        try:
            for _ in range(FLIPS // 2):
                for gone, come in ((old, new), (new, old)):
                    flip(switch, route, gone, come)
                    assert_only(come, gone)
                    assert fdb.fdb_port(route, bridge, MAC) == come.index
            assert flood.poll() is None, "the flood ended before the flips did"
            out, _ = flood.communicate(timeout=60)
        finally:
            stop.set()
            asking.join()
            flood.kill()
            flood.wait()
            assert flood.stdout is not None
            flood.stdout.close()
        answers = answers_by_mac(wire)
    assert f"{PINGS} packets transmitted, {PINGS} received, 0% packet loss" in out
    assert [mac for mac in asked if answers[mac] > 1] == []
    assert sum(answers[mac] == 0 for mac in asked) <= FLIPS, f"of {len(asked)} requests"


def copy_neighbours(source: Twin, target: Twin) -> None:
    """The target is muted and cannot ask for itself."""
    home = netns.current()
    files = [netns.open_named(each.machine.name) for each in (source, target)]
    try:
        assert neighbours.copy(*files, home).taken >= 1
    finally:
        for fd in (*files, home):
            os.close(fd)


def flip(switch: Switch, route: Netlink, gone: Twin, come: Twin) -> None:
    switch.change(unmute=[come.port], serve=[come.port], relay=[gone.port])
    route.talk([fdb.set_fdb(come.index, MAC)])


def ask(wire: socket.socket, asked: list[bytes], stop: threading.Event) -> None:
    """One ARP request per millisecond, each from another MAC."""
    while not stop.wait(0.001):
        mac = b"\x02\x99" + len(asked).to_bytes(4, "big")
        asked.append(mac)
        wire.send(request(mac, ASKING, GATEWAY))


def assert_only(come: Twin, gone: Twin) -> None:
    """Packets come from one twin only, though the other tries to draw them to itself."""
    begin = received(come.port)
    assert until(lambda: received(come.port) > begin + 20)
    silent = received(gone.port)
    with gone.machine.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind(("e0", 0))
        out.send(request(MAC, GATEWAY, CLIENT))
        # An ethertype that no rule gags: the bridge itself sees the frame.
        out.send(b"\xff" * 6 + MAC + b"\x88\xb5" + bytes(46))
    assert until(lambda: received(gone.port) >= silent + 2)
    begin = received(come.port)
    assert until(lambda: received(come.port) > begin + 50)
    assert received(gone.port) - silent < 10
