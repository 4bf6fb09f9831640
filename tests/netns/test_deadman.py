"""The dead-man switch in the kernel: who may speak, for how long, and that nothing revives it."""

from __future__ import annotations

import itertools
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, machine, until
from tests.netns.test_relay import GATEWAY_6, dhcp_discover
from tests.netns.test_switch import CLIENT, GATEWAY, listener, request
from vrha.errors import PreconditionError
from vrha.linux import frames, nftwire
from vrha.linux.deadman import DeadMan
from vrha.linux.mute import Switch
from vrha.linux.netlink import Netlink

pytestmark = pytest.mark.root

NFT = "/usr/sbin/nft"
PORT, OTHER = "vrhtest-0", "vrhtest-1"
MAC = bytes.fromhex("029900000001")
LONG_MS = 60_000
"""Never over before its test is."""


def udp4(source: int, target: int) -> bytes:
    """A broadcast from one UDP port to another."""
    ends = bytes([10, 1, 1, 9]) + b"\xff" * 4
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + ends
    total = sum(struct.unpack("!10H", ip))
    ip = ip[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + ip[12:]
    return b"\xff" * 6 + MAC + b"\x08\0" + ip + struct.pack("!HHHH", source, target, 8, 0)


def udp6(source: int, target: int) -> bytes:
    """The same to all DHCPv6 servers and relays (RFC 8415)."""
    ends = IPv6Address("fe80::99").packed + IPv6Address("ff02::1:2").packed
    head = struct.pack("!IHBB", 6 << 28, 8, 17, 64) + ends
    udp = struct.pack("!HHHH", source, target, 8, 0)
    return bytes.fromhex("333300010002") + MAC + b"\x86\xdd" + head + udp


FORWARDED = {"udp4": udp4(4000, 4001), "udp6": udp6(4000, 4001)}
OWNERS = {
    "arp": request(MAC, CLIENT, GATEWAY),
    "gratuitous arp": frames.gratuitous_arps(MAC, IPv4Address("10.1.1.1"))[0],
    "neighbour solicitation": frames.neighbour_solicitation(MAC, GATEWAY_6),
    "unsolicited advertisement": frames.unsolicited_advertisement(MAC, GATEWAY_6),
    "dhcp discover": dhcp_discover(),
    "dhcp offer": udp4(67, 68),
    "dhcp6 solicit": udp6(546, 547),
    "dhcp6 advertise": udp6(547, 546),
}
"""What an owner of addresses says or is asked."""
EVERYTHING = {**FORWARDED, **OWNERS}


@dataclass
class Road:
    """A router with a port that can be muted, a client beside it, and the switch between them."""

    router: Machine
    client: Machine
    switch: Switch
    dead_man: DeadMan
    wires: dict[str, socket.socket]
    _marks: Iterator[int] = field(default_factory=itertools.count)

    def speak(self, active: bool = True, granted: bool = True, live: bool = True) -> None:
        """Let the router have these, and only these, of the three conditions."""
        self.switch.change(unmute=[PORT]) if active else self.switch.change(mute=[PORT])
        self.dead_man.mute()
        self.dead_man.grant(frozenset({PORT} if granted else ()))
        if live:
            self.dead_man.arm(LONG_MS)
            assert self.dead_man.fire(LONG_MS)

    def passed(self, source: str, sent: dict[str, bytes]) -> set[str]:
        """Which of the frames from this side reach the other one.

        Afterwards the router may speak: a last frame tells that those before it are not on their
        way any more.
        """
        here = self.wires[source]
        there = self.wires["client" if source == "router" else "router"]
        for frame in sent.values():
            here.send(frame)
        self.speak()
        mark = b"\xff" * 6 + MAC + b"\x88\xb5" + next(self._marks).to_bytes(50, "big")
        here.send(mark)
        found = set()
        end = time.monotonic() + 10
        while time.monotonic() < end:
            frame = there.recv(2048)
            if frame == mark:
                return found
            found |= {name for name, one in sent.items() if one == frame}
        raise TimeoutError("the last frame was lost")


@pytest.fixture
def road(node: None) -> Iterator[Road]:
    """Port `vrhtest-0` of the router is on bridge br-a, where the client is."""
    router = machine("router", "br-a", "10.1.1.1/24")
    client = machine("client", "br-a", "10.1.1.50/24")
    rename("p-router", PORT)
    switch = Switch(NFT, governed=True)
    dead_man = DeadMan()
    with listener(router) as router_wire, listener(client) as client_wire:
        wires = {"router": router_wire, "client": client_wire}
        for wire in wires.values():
            wire.settimeout(10)
        yield Road(router, client, switch, dead_man, wires)
    dead_man.close()
    switch.close()


def rename(port: str, name: str) -> None:
    """A port is renamed only while it is down."""
    sh(f"ip link set {port} down")
    sh(f"ip link set {port} name {name}")
    sh(f"ip link set {name} up")


def ruleset() -> str:
    return sh("nft -a list ruleset")


def generation() -> int:
    """Number of the last transaction that nftables has committed in this namespace."""
    with Netlink(nftwire.NETLINK_NETFILTER) as netlink:
        (answer,) = netlink.ask(nftwire.kind(16), bytes(4))
    return int.from_bytes(answer[8:12], "big")


@pytest.mark.parametrize("source", ["client", "router"])
def test_all_three_conditions_are_needed_each_way(road: Road, source: str) -> None:
    for active, granted, live in itertools.product((False, True), repeat=3):
        road.speak(active, granted, live)
        expected = set(EVERYTHING) if active and granted and live else set()
        assert road.passed(source, EVERYTHING) == expected, (active, granted, live)


@pytest.mark.parametrize("source", ["client", "router"])
def test_a_relay_forwards_only_while_it_has_a_grant_and_a_lease(road: Road, source: str) -> None:
    road.switch.change(relay=[PORT])
    for granted, live in ((False, True), (True, False), (True, True)):
        road.speak(True, granted, live)
        expected = set(FORWARDED) if granted and live else set()
        passed = road.passed(source, {**FORWARDED, "arp": OWNERS["arp"]})
        assert passed == expected, (granted, live)


def test_it_falls_silent_by_itself_and_is_not_revived_by_a_late_renewal(road: Road) -> None:
    road.speak(live=False)
    road.dead_man.arm(LONG_MS)
    assert road.dead_man.fire(40)
    assert until(lambda: not road.dead_man.is_live())
    for _ in range(3):
        assert not road.dead_man.renew(LONG_MS)
    assert not road.dead_man.is_live()
    assert road.passed("router", EVERYTHING) == set()


def test_a_renewal_counts_from_its_own_time(road: Road) -> None:
    road.speak()
    assert road.dead_man.renew(LONG_MS // 2)
    assert 0 < road.dead_man.remaining_ms() <= LONG_MS // 2
    assert road.dead_man.renew(LONG_MS)
    assert LONG_MS // 2 < road.dead_man.remaining_ms() <= LONG_MS
    assert road.passed("client", EVERYTHING) == set(EVERYTHING)


def test_renewals_carry_it_over_many_slices(road: Road) -> None:
    road.speak()
    begin = time.monotonic()
    assert road.dead_man.renew(1500)
    while time.monotonic() < begin + 2.5:
        assert road.dead_man.renew(1500)
    assert road.dead_man.is_live()


def test_the_first_activation_is_bounded(road: Road) -> None:
    dead_man = road.dead_man
    road.speak(live=False)
    assert not dead_man.fire(LONG_MS), "never armed"
    dead_man.arm(20)
    assert not dead_man.is_live(), "arming lets nothing pass"
    assert until(lambda: "elements" not in sh("nft list set bridge vrha arm"))
    assert not dead_man.fire(LONG_MS), "too late"
    dead_man.arm(LONG_MS)
    dead_man.mute()
    assert not dead_man.fire(LONG_MS), "muting takes it back"
    dead_man.arm(20)
    dead_man.arm(LONG_MS)
    assert dead_man.fire(LONG_MS), "armed anew"
    assert not dead_man.fire(LONG_MS), "used up"
    assert dead_man.is_live()
    dead_man.arm(LONG_MS)
    assert dead_man.fire(LONG_MS // 2)
    assert dead_man.remaining_ms() <= LONG_MS // 2, "what was left of the slice before is gone"


def test_muting_takes_back_everything_in_one_transaction(road: Road) -> None:
    road.speak()
    before = generation()
    road.dead_man.mute()
    assert generation() == before + 1
    assert not road.dead_man.is_live()
    assert road.dead_man.granted() == frozenset()
    road.dead_man.mute()
    assert not road.dead_man.renew(LONG_MS)
    assert road.switch.active() == {PORT}, "what the agent wants is its own affair"
    assert road.passed("client", EVERYTHING) == set()


def test_grants_are_exactly_those_given_in_one_transaction(road: Road) -> None:
    many = frozenset(f"vrh{n:08x}-{port}" for n in range(200) for port in ("n0", "n1", "u0"))
    for wanted in (many, many, frozenset(sorted(many)[300:]) | {PORT}, frozenset({OTHER})):
        before = generation()
        changed = wanted != road.dead_man.granted()
        road.dead_man.grant(wanted)
        assert road.dead_man.granted() == wanted
        assert generation() == before + changed
    sh(f"nft add element bridge vrha granted {{ {PORT} }}")
    successor = DeadMan()
    successor.grant(frozenset({OTHER}))
    assert road.dead_man.granted() == {OTHER}, "also what somebody else has put there goes"
    successor.grant(frozenset(f"vrh{n:08x}" for n in range(5000)))
    assert len(successor.granted()) == 5000
    successor.grant(frozenset())
    assert road.dead_man.granted() == frozenset()
    successor.close()


def test_renewals_and_grants_of_others_lose_no_packet(road: Road) -> None:
    road.speak()
    assert until(lambda: road.client.pings("10.1.1.1"))
    ping = "ip netns exec client ping -n -q -f -i 0.001 -c 3000 10.1.1.1"
    flood = subprocess.Popen(
        ping.split(),
        stdout=subprocess.PIPE,
        text=True,
    )
    rounds = 0
    while flood.poll() is None:
        rounds += 1
        assert road.dead_man.renew(LONG_MS)
        road.dead_man.grant(frozenset({PORT, *(f"vrh{n}" for n in range(rounds % 50))}))
    out, _ = flood.communicate(timeout=30)
    assert " 0% packet loss" in out, out
    assert rounds > 50


def test_a_switch_that_knows_no_lease_does_not_weaken_a_governed_table(road: Road) -> None:
    road.speak(live=False)
    before = ruleset()
    plain = Switch(NFT)
    plain.ensure()
    assert ruleset() == before
    plain.change(unmute=[PORT], relay=[PORT])
    assert road.switch.active() == road.switch.relays() == {PORT}
    plain.change(serve=[PORT])
    plain.close()
    assert road.passed("router", EVERYTHING) == set()


def test_nor_does_one_that_was_looking_when_the_table_became_governed(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Switch._is_current
    answers = iter([False])
    monkeypatch.setattr(
        Switch, "_is_current", lambda switch: next(answers, None) is None and looked(switch)
    )
    before = ruleset()
    Switch(NFT).close()
    assert next(answers, None) is None, "it has looked"
    assert ruleset() == before


def test_a_table_becomes_governed_around_its_elements(node: None) -> None:
    plain = Switch(NFT)
    plain.change(unmute=[PORT, OTHER], relay=[OTHER])
    assert "granted" not in ruleset()
    with pytest.raises(PreconditionError) as refused:
        DeadMan()
    assert refused.value.code == "no-dead-man"
    before = generation()
    governed = Switch(NFT, governed=True)
    assert generation() == before + 1
    assert governed.active() == {PORT, OTHER}
    assert governed.relays() == {OTHER}
    dead_man = DeadMan()
    assert not dead_man.is_live()
    assert dead_man.granted() == frozenset()
    dead_man.grant(frozenset({PORT}))
    dead_man.arm(LONG_MS)
    assert dead_man.fire(LONG_MS)
    again = ruleset()
    Switch(NFT, governed=True).close()
    assert [line for line in again.splitlines() if "expires" not in line] == [
        line for line in ruleset().splitlines() if "expires" not in line
    ], "what is up to date is not touched"
    for switch in (plain, governed):
        switch.close()
    dead_man.close()


def test_a_table_that_has_gone_is_told(road: Road) -> None:
    road.speak()
    sh("nft delete table bridge vrha")
    assert not road.dead_man.renew(LONG_MS)
    for refused_call in (
        road.dead_man.mute,
        lambda: road.dead_man.arm(LONG_MS),
        lambda: road.dead_man.grant(frozenset({PORT})),
        road.dead_man.is_live,
    ):
        with pytest.raises(PreconditionError) as refused:
            refused_call()
        assert refused.value.code == "no-dead-man"
    road.switch.ensure()
    assert not road.dead_man.renew(LONG_MS)
    road.speak()
    assert road.passed("client", EVERYTHING) == set(EVERYTHING)
