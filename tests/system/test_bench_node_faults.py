"""Faults of whole nodes as the benches make them, in a lab without daemons."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.system.labkit import until
from tools.benchmarks.announcements import Announcements, first
from tools.benchmarks.nodefaults import NodeFaults
from vrha.errors import VrhaError
from vrha.lab.daemons import Daemon, Program, environment
from vrha.lab.scenario import load_scenario
from vrha.lab.zone import Lab
from vrha.linux import frames
from vrha.linux.packetsocket import open_packets

pytestmark = pytest.mark.root

SCENARIO = "seed-10x10"
BROKER = "172.31.255.1"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(SCENARIO, f"test-node-faults-{os.getpid()}", ephemeral=True) as made:
        # Something to reach behind a data cable of the node.
        made.run("n1", ["ip", "address", "add", "203.0.113.201/24", "dev", "br-public"])
        yield made


@pytest.fixture
def faults(lab: Lab) -> Iterator[NodeFaults]:
    with NodeFaults(lab, load_scenario(SCENARIO), "n1") as made:
        yield made


def reaches(lab: Lab, where: str, target: str) -> bool:
    try:
        lab.run(where, ["ping", "-n", "-c", "1", "-W", "1", target])
    except VrhaError:
        return False
    return True


def carriers(lab: Lab) -> list[str]:
    lines = lab.run("n1", ["ip", "-o", "link", "show", "up"]).splitlines()
    return [line for line in lines if "NO-CARRIER" in line]


def sleeper(lab: Lab, node: str) -> Daemon:
    daemon = Daemon(lab.folder, f"sleeper-{node}")
    daemon.start(Program(("sleep", "600"), node, environment()))
    return daemon


def test_a_node_without_power_is_silent_and_nothing_tells_of_it(
    lab: Lab, faults: NodeFaults
) -> None:
    mine, others = sleeper(lab, "n1"), sleeper(lab, "n2")
    until(lambda: reaches(lab, "outside", "203.0.113.201"), "a way")
    before = time.time()
    began = faults.lose_power()
    assert before <= began <= time.time()
    assert mine.process.wait_gone(5)
    assert others.alive
    others.kill()
    assert not reaches(lab, "outside", "203.0.113.201")
    assert not reaches(lab, "n1", BROKER)
    assert carriers(lab) == []
    faults.end()
    until(lambda: reaches(lab, "outside", "203.0.113.201"), "a way")
    until(lambda: reaches(lab, "n1", BROKER), "a way")


def test_a_node_that_is_cut_off_keeps_its_segments(lab: Lab, faults: NodeFaults) -> None:
    faults.cut_management()
    assert not reaches(lab, "n1", BROKER)
    until(lambda: reaches(lab, "outside", "203.0.113.201"), "a way")


def test_a_node_that_loses_its_uplink_keeps_the_rest(lab: Lab, faults: NodeFaults) -> None:
    faults.lose_uplink("br-public")
    assert not reaches(lab, "outside", "203.0.113.201")
    until(lambda: reaches(lab, "n1", BROKER), "a way")
    assert carriers(lab) == []


def test_what_is_frozen_goes_on_at_the_end(lab: Lab) -> None:
    mine = sleeper(lab, "n1")
    with NodeFaults(lab, load_scenario(SCENARIO), "n1") as faults:
        assert mine.process in faults.processes()
        faults.freeze()
        assert state(mine) == "T"
    assert state(mine) == "S"
    mine.kill()


def state(daemon: Daemon) -> str:
    """Its state as the kernel shows it, once it has settled."""
    deadline = time.monotonic() + 5
    while True:
        with open(f"/proc/{daemon.pid}/stat") as file:
            found = file.read().rpartition(")")[2].split()[0]
        if found in "TS" or time.monotonic() > deadline:
            return found


def test_announcements_are_heard_with_the_time_of_the_kernel(lab: Lab) -> None:
    address, mac = IPv4Address("10.1.1.77"), bytes.fromhex("02aabbccdd01")
    sender = lab.call("vm2", lambda: open_packets("eth0", frames.ETH_P_ARP, ()))
    with sender, lab.call("vm1", Announcements) as listening:
        sender.send(frames.arp_probe(mac, address))
        before = time.time()
        sender.send(frames.gratuitous_arps(mac, address)[0])
        deadline = time.monotonic() + 5
        while not listening.heard() and time.monotonic() < deadline:
            time.sleep(0.01)
        found = listening.heard()
    assert [(one.kind, one.address) for one in found] == [("announced", str(address))]
    at = first(found, "announced", str(address), before - 0.1)
    assert at is not None
    assert before - 0.1 <= at <= time.time()
