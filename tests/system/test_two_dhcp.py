"""Two DHCP servers of a network, on two nodes: one of the nodes is lost, no client notices."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.sim.nemesis import Loss
from tests.system.guestkit import ACK, NAK, Dhcp
from tests.system.labnemesis import LabNemesis, is_calm
from tests.system.test_guests import document
from tests.system.zonekit import Zone, wait_for, zone
from vrha.lab.scenario import Scenario, parse_scenario
from vrha.model.runs import RestartOptions, RunStatus
from vrha.model.views import RouterStatus

pytestmark = [pytest.mark.root, pytest.mark.system]

ROUTER, SECOND, ADDRESS = "r1", "dhcp-blue", "10.1.1.2"
GUESTS = 6


def mac_of_guest(number: int) -> str:
    return f"02:00:00:01:02:{number:02x}"


def scenario() -> Scenario:
    found = document()
    (network,) = found["zone"]["networks"]
    network |= {"dhcp_per_network": 2, "dhcp_peer_address": ADDRESS}
    found["lab"]["hosts"] += [
        {"name": f"g{number}", "network": "blue", "mac": mac_of_guest(number), "dhcp": True}
        for number in range(GUESTS)
    ]
    return parse_scenario("two-dhcp", json.dumps(found).encode())


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    with zone(scenario(), f"test-two-dhcp-{os.getpid()}", watched=True) as made:
        yield made


class Ear:
    """Hears on a machine what DHCP servers say to all."""

    def __init__(self) -> None:
        self.refusals: list[bytes] = []
        self.heard = 0

    def listen(self, sock: socket.socket, stop: threading.Event) -> None:
        sock.settimeout(0.1)
        while not stop.is_set():
            try:
                message = sock.recv(2048)
            except TimeoutError:
                continue
            self.heard += 1
            # The type of a message comes first in what dnsmasq says.
            if message[240:243] == bytes([53, 1, NAK]):
                self.refusals.append(message)


@contextmanager
def nobody_refuses(made: Zone) -> Iterator[None]:
    def opened() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        sock.bind(("", 68))
        return sock

    ear, stop = Ear(), threading.Event()
    with made.lab.call("spare", opened) as sock:
        thread = threading.Thread(target=ear.listen, args=(sock, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
    assert ear.heard
    assert ear.refusals == []


def client_of(made: Zone, number: int) -> Dhcp:
    """A machine with a lease, and the address of it."""
    mac = bytes.fromhex(mac_of_guest(number).replace(":", ""))
    client = Dhcp(made.lab, f"g{number}", mac)
    assert client.discover() == ACK
    settle(made, client)
    return client


def settle(made: Zone, client: Dhcp) -> None:
    made.lab.run(
        client.machine, ["ip", "address", "replace", f"{client.address}/24", "dev", "eth0"]
    )


def reserved(made: Zone, name: str) -> str:
    """What the server knows of the other one's leases."""
    node, ref = made.router(name).node, made.ref(name)
    folder = made.lab.folder / f"state/agent-{node}/instances/{ref.router}-{ref.generation}"
    return (folder / "shared-hosts").read_text()


def test_the_two_are_apart_and_shown(made: Zone) -> None:
    router, second = made.router(ROUTER), made.router(SECOND)
    assert router.node != second.node
    (network,) = made.client.networks()
    assert network.router == ROUTER
    assert network.second_dhcp == f"{ADDRESS} on {second.node}"


@pytest.mark.long
def test_the_second_makes_way_for_its_router(made: Zone) -> None:
    with nobody_refuses(made):
        client = client_of(made, 0)
        had, node = client.address, made.router(SECOND).node
        run = made.client.move_router(ROUTER, RestartOptions(node=node))
        assert made.await_run(run.id).status is RunStatus.DONE
        wait_for(lambda: made.router(SECOND).node != node, 40, "the second server elsewhere")
        wait_for(lambda: not made.client.runs(open_only=True), 40, "the end of its move")
        assert made.router(ROUTER).node == node
        asked = (client.renew, client.rebind, client.reboot, client.discover)
        assert [ask() for ask in asked] == [ACK] * 4
        assert client.address == had


def known_to_the_other(made: Zone, client: Dhcp) -> bool:
    other = ROUTER if client.server == ADDRESS else SECOND
    return f"{client.mac.hex(':')},{client.address}\n" in reserved(made, other)


@pytest.mark.parametrize(("number", "lost"), [(0, SECOND), (1, ROUTER)])
def test_leases_live_through_the_loss_of_either(made: Zone, number: int, lost: str) -> None:
    with nobody_refuses(made):
        clients = [client_of(made, 3 * number + k) for k in range(2)]
        for client in clients:
            wait_for(lambda c=client: known_to_the_other(made, c), 5, "the lease at the other")
        node = made.router(lost).node
        had = [client.address for client in clients]
        with LabNemesis(made.lab) as nemesis:
            nemesis.strike(Loss(node, 60_000))
            # At once, from the one that is left; then from the one that took over.
            assert [client.rebind() for client in clients] == [ACK] * 2
            wait_for(lambda: made.router(lost).node != node, 40, f"{lost} on another node")
            wait_for(
                lambda: made.router(lost).status is RouterStatus.SERVING, 40, "the end of the run"
            )
            for client in clients:
                asked = (client.renew, client.rebind, client.reboot, client.discover)
                assert [ask() for ask in asked] == [ACK] * 4
            assert [client.address for client in clients] == had
            another = client_of(made, 3 * number + 2)
            assert another.address not in had
            nemesis.heal()
            wait_for(lambda: is_calm(made), 40, "a calm zone")
        wait_for(lambda: not made.client.runs(open_only=True), 40, "the end of what the node had")
        assert [client.renew() for client in clients] == [ACK] * 2
        assert [client.address for client in clients] == had
