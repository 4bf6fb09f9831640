"""A machine has a lease; its router is rebuilt elsewhere, planned or not; it keeps its address."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.sim.nemesis import Loss
from tests.system.guestkit import ACK, Dhcp
from tests.system.labnemesis import LabNemesis, is_calm
from tests.system.test_guests import GUEST_MAC, leases, scenario
from tests.system.zonekit import Zone, wait_for, zone
from vrha.model.runs import RestartOptions, RunStatus, Strategy

pytestmark = [pytest.mark.root, pytest.mark.system]


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    with zone(scenario(), f"test-leases-{os.getpid()}", watched=True) as made:
        yield made


@pytest.fixture
def guest(made: Zone) -> Dhcp:
    """The machine that asks for its address, with a lease that the store knows."""
    client = Dhcp(made.lab, "guest", bytes.fromhex(GUEST_MAC.replace(":", "")))
    assert client.discover() == ACK
    made.lab.run("guest", ["ip", "address", "replace", f"{client.address}/24", "dev", "eth0"])
    wait_for(lambda: f" {GUEST_MAC} {client.address} " in stored(made), 5, "the lease in the store")
    return client


def stored(made: Zone) -> str:
    """What the store has of the router's leases."""
    path = made.lab.folder / "state/orchestrator/orchestrator.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        (row,) = db.execute(
            "SELECT body FROM leases WHERE generation = ?", [made.ref().generation]
        ).fetchall() or [("",)]
    return str(row[0])


def assert_kept(made: Zone, guest: Dhcp) -> None:
    """The new instance knows the lease before anybody asks, and the client keeps its address."""
    address = guest.address
    assert GUEST_MAC in leases(made)
    assert [guest.renew(), guest.rebind(), guest.reboot(), guest.discover()] == [ACK] * 4
    assert guest.address == address


def test_a_lost_node_takes_no_lease_along(made: Zone, guest: Dhcp) -> None:
    node = made.router().node
    with LabNemesis(made.lab) as nemesis:
        nemesis.strike(Loss(node, 60_000))
        wait_for(lambda: made.router().node != node, 20, "the router on another node")
        assert_kept(made, guest)
        nemesis.heal()
        wait_for(lambda: is_calm(made), 40, "a calm zone")
    wait_for(lambda: not made.client.runs(open_only=True), 40, "the end of what the node had")


@pytest.mark.parametrize("strategy", [Strategy.SERIAL, Strategy.PARALLEL, Strategy.HANDOVER])
def test_a_planned_one_neither(made: Zone, guest: Dhcp, strategy: Strategy) -> None:
    here = made.router().node
    other = next(name for name in made.lab.nodes if name != here)
    options = RestartOptions(strategy, node=other)
    run = made.client.restart_network(made.network, options)
    assert made.await_run(run.id).status is RunStatus.DONE
    assert made.router().node == other
    assert_kept(made, guest)
