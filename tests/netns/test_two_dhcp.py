"""Two DHCP servers of one network: whoever of them is asked, none refuses a client, and no two
clients get one address.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.netns.dhcpkit import Node, guest, settle
from tests.netns.nodekit import machine, spec_of, until
from tests.system.guestkit import ACK, NAK, Dhcp
from vrha.core.dhcp import merged, name_of_second, seconds, shared_cidrs
from vrha.core.instance import instance_spec
from vrha.core.leases import cleaned
from vrha.core.names import namespace_name
from vrha.linux.node import NodeKernel
from vrha.model.spec import Desired, InstanceRef, InstanceSpec

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

SECOND = "10.1.1.2"


class Pair:
    """The router and the second server, both on this node."""

    def __init__(self, kernel: NodeKernel) -> None:
        self.kernel = kernel
        spec = spec_of(1)
        red = replace(spec.networks[0], dhcp_per_network=2, dhcp_peer_address=ip_address(SECOND))
        networks = (red, spec.networks[1])
        routers = (spec.router, *seconds(networks, (spec.router,)))
        self._desired = Desired(networks, routers)
        self.router, self.second = "edge", name_of_second("red")
        self._generations = {self.router: 0, self.second: 0}

    def spec(self, name: str) -> InstanceSpec:
        router = self._desired.router(name)
        assert router is not None
        ref = InstanceRef(name, self._generations[name])
        return instance_spec(self._desired, router, ref, ref.generation)

    def serve(self, name: str, known: str = "") -> None:
        """A new instance, on a node that has only these leases."""
        self._generations[name] += 1
        spec = self.spec(name)
        self.kernel.build(spec, leases=known)
        self.kernel.unmute(spec.ref)

    def lose(self, name: str) -> None:
        self.kernel.destroy(self.spec(name).ref)

    def other(self, name: str) -> str:
        return self.second if name == self.router else self.router

    def leases(self, name: str) -> str:
        return cleaned(self.kernel.instances.leases(self.spec(name).ref).decode())

    def view(self) -> str:
        shared = shared_cidrs(self.spec(self.router).networks)
        return merged(self.leases(self.router), self.leases(self.second), shared)

    def exchange(self) -> None:
        """Each is told of the other's leases."""
        for name in (self.router, self.second):
            self.kernel.instances.reserve(self.spec(name).ref, self.leases(self.other(name)))

    def server_of(self, client: Dhcp) -> str:
        return self.second if client.server == SECOND else self.router


@pytest.fixture
def pair(kernel: NodeKernel) -> Pair:
    made = Pair(kernel)
    made.serve(made.router)
    made.serve(made.second)
    return made


@contextmanager
def nobody_refuses() -> Iterator[list[int]]:
    """A machine hears what servers say to all, and none of it is a refusal."""
    machine("ear", "br-a")

    def opened() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"e0\0")
        sock.bind(("", 68))
        return sock

    heard: list[int] = []
    with Node().call("ear", opened) as sock:
        yield heard
        sock.settimeout(0.1)
        try:
            while True:
                options = sock.recv(2048)[240:]
                # The type of a message comes first in what dnsmasq says.
                assert options[0] == 53
                heard.append(options[2])
        except TimeoutError:
            pass
    assert heard
    assert NAK not in heard


def drop(ref: InstanceRef) -> None:
    """Its dnsmasq hears and says nothing any more; the rest is as before."""
    hook = "{ type filter hook prerouting priority -400; policy drop; }"
    drops = f"add table ip gone; add chain ip gone c {hook}"
    subprocess.run(
        ["ip", "netns", "exec", namespace_name(ref), "nft", drops],
        check=True,
        capture_output=True,
        timeout=10,
    )


def settled(number: int, wanted: str = "") -> Dhcp:
    client = guest(number)
    assert client.discover(wanted) == ACK
    settle(client)
    return client


def test_each_gives_addresses_of_its_half_and_refuses_nobody_of_the_other(pair: Pair) -> None:
    with nobody_refuses():
        clients = [settled(number) for number in range(1, 7)]
        for client in clients:
            low = int(client.address.split(".")[3]) < 150
            assert low == (pair.server_of(client) == pair.router)
            had = client.address
            assert [client.renew(), client.rebind(), client.reboot()] == [ACK] * 3
            assert client.address == had
        # Also where one is silent: the other knows nothing of its leases.
        for lost in (pair.router, pair.second):
            drop(pair.spec(lost).ref)
            for client in clients:
                had = client.address
                assert [client.rebind(), client.reboot()] == [ACK] * 2
                assert client.address == had
            pair.lose(lost)
            pair.serve(lost, pair.view())
    assert len({client.address for client in clients}) == len(clients)


def test_what_one_has_granted_the_other_one_keeps(pair: Pair) -> None:
    clients = [settled(number) for number in range(1, 5)]
    pair.exchange()
    for lost in (pair.router, pair.second):
        mine = [client for client in clients if pair.server_of(client) == lost]
        pair.lose(lost)
        for client in mine:
            had = client.address
            # From nothing, as after a boot: the same address all the same.
            assert [client.discover(), client.renew()] == [ACK] * 2
            assert client.address == had
        other = settled(10 + (lost == pair.router), wanted=clients[0].address)
        assert other.address not in {client.address for client in clients}
        clients.append(other)
        pair.serve(lost, pair.view())
        pair.exchange()
    assert until(lambda: all(client.address in pair.view() for client in clients))


def test_a_lease_that_is_not_true_any_more_refuses_nobody(pair: Pair) -> None:
    """The other server has given the address of one client to a second one, and that one's to a
    third; nobody has told this one in time.
    """
    clients = [guest(number) for number in range(1, 4)]
    drop(pair.spec(pair.second).ref)
    for client in clients[:2]:
        assert client.discover() == ACK
    first, second = clients[0].address, clients[1].address
    later = int(time.time()) + 200_000
    since = [(clients[1], first), (clients[2], second)]
    told = [f"{later} {one.mac.hex(':')} {address} * *\n" for one, address in since]
    pair.kernel.instances.reserve(pair.spec(pair.router).ref, "".join(told))
    with nobody_refuses():
        for client, address in since:
            client.address = address
            assert client.reboot() == ACK
            settle(client)
            assert client.rebind() == ACK
            assert client.address == address


def test_the_second_server_is_no_gateway(pair: Pair) -> None:
    client = settled(1)
    assert client.options[3] == ip_address("10.1.1.1").packed
    assert client.options[6] == ip_address("10.1.1.1").packed
    ref = pair.spec(pair.second).ref
    inside = ["ip", "netns", "exec", namespace_name(ref), "ip", "-o", "addr"]
    shown = subprocess.run(inside, capture_output=True, text=True, check=True, timeout=10).stdout
    assert f"{SECOND}/24" in shown
    assert "10.1.1.1/" not in shown
    conf = pair.kernel.instances.folders.read(ref, "dnsmasq.conf")
    assert b"enable-ra" not in (conf or b"")
