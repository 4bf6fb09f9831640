"""What a dead agent left on a node that nobody reaches, and what an older time left on one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.sim.nemesis import Pause, Unplug
from tests.system.guestkit import Watch, watching
from tests.system.labnemesis import LabNemesis, is_calm
from tests.system.zonekit import Zone, assert_nothing_lost, probing, wait_for, zone
from vrha.core.instance import mac_of
from vrha.lab.wiring import MGMT
from vrha.model.ownership import Health
from vrha.model.spec import InstanceRef

pytestmark = [pytest.mark.root, pytest.mark.system]

GRACE_S = 4.0
LONG_MS = 60_000.0
INSIDE = ("10.1.1.1", "2001:db8:1::1", "fe80::1")
OUTSIDE = ("203.0.113.10", "2001:db8:ffff::10")


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    forgiving = {"fail_back_s": 0, "flap_suppress": 1e6, "window_s": 0.5}
    with zone(
        "seed-10x10",
        f"test-afterlife-{os.getpid()}",
        watched=True,
        failover=forgiving,
        cleanup={"grace_s": GRACE_S, "pause_s": 1.0},
    ) as made:
        yield made


@pytest.fixture
def nemesis(made: Zone) -> Iterator[LabNemesis]:
    wait_for(lambda: is_tidy(made), 40, "a tidy zone")
    with LabNemesis(made.lab) as found:
        yield found
    for node in made.lab.nodes:
        if not made.lab.agent(node).alive:
            made.lab.agent(node).start()
    wait_for(lambda: is_tidy(made), 40, "one instance and nothing else")


def is_tidy(made: Zone) -> bool:
    if not is_calm(made) or made.client.runs(open_only=True):
        return False
    return sum(map(len, made.objects().values())) == made.expected_objects()


def status(made: Zone, node: str) -> dict[str, Any]:
    return made.lab.watcher_status(node)


def cleanup(made: Zone, node: str) -> dict[str, Any]:
    return dict(status(made, node)["cleanup"])


def test_an_agent_that_comes_back_within_its_grace_loses_nothing(
    made: Zone, nemesis: LabNemesis
) -> None:
    before = made.router()
    agent = made.lab.agent(before.node)
    with probing(made.streams()) as results:
        agent.kill(signal.SIGKILL)
        wait_for(lambda: cleanup(made, before.node)["reason"] == "grace", 5, "the grace")
        agent.start()
        wait_for(lambda: cleanup(made, before.node)["reason"] == "agent-lives", 20, "the agent")
    assert_nothing_lost(results[0])
    assert made.router().instance == before.instance
    assert cleanup(made, before.node)["last"] is None


def test_the_dead_on_a_node_that_is_cut_off_are_swept_and_never_heard_again(
    made: Zone, nemesis: LabNemesis
) -> None:
    """No voter, broker, store or leader reaches the node; its tenants' segments do."""
    old, node = made.ref(), made.router().node
    watches = watches_of(made)
    with watching(watches):
        nemesis.strike(Unplug(node, MGMT, LONG_MS))
        made.lab.agent(node).kill(signal.SIGKILL)
        wait_for(lambda: has_moved(made, node, watches), 20, "the new owner")
        assert cleanup(made, node)["last"] is None, "nothing is swept within the grace"
        wait_for(lambda: cleanup(made, node)["last"], GRACE_S + 20, "a sweep")
        assert made.objects()[node] == []
        assert cleanup(made, node)["last"]["code"] == 0
        assert nemesis.pending, "the node was cut off all the time"
        new = made.ref()
        nemesis.heal()
        made.lab.agent(node).start()
        wait_for(lambda: is_tidy(made), 40, "a tidy zone")
    assert_turns(watches, old, new)


def test_what_serves_under_a_live_lease_is_not_swept(made: Zone, nemesis: LabNemesis) -> None:
    """The agent stays away for longer than the watcher's grace, the leader lets it serve on."""
    before = made.router()
    made.lab.agent(before.node).kill(signal.SIGKILL)
    with probing(made.streams()) as results:
        wait_for(lambda: cleanup(made, before.node)["reason"] == "lease-live", 15, "the grace")
        assert status(made, before.node)["situation"]["missing_ms"] > GRACE_S * 1000
    assert_nothing_lost(results[0])
    assert made.router().instance == before.instance
    assert cleanup(made, before.node)["last"] is None


def test_after_a_long_freeze_nothing_of_an_older_epoch_serves(
    made: Zone, nemesis: LabNemesis
) -> None:
    """Watcher and agent stand still while another node takes over; then both go on at once."""
    old, node = made.ref(), made.router().node
    watches = watches_of(made)
    with watching(watches):
        nemesis.strike(Pause(node, LONG_MS))
        nemesis.strike(Pause(f"agent-{node}", LONG_MS))
        wait_for(lambda: has_moved(made, node, watches), 20, "the new owner")
        nemesis.heal()
        wait_for(lambda: is_tidy(made), 40, "a tidy zone")
    assert_turns(watches, old, made.ref())
    assert made.objects()[node] == []


def test_a_rebooted_node_serves_nothing_that_its_disk_remembers(
    made: Zone, nemesis: LabNemesis
) -> None:
    """The folders of watcher and agent are those of before, of the time when it served."""
    old, node = made.ref(), made.router().node
    state = made.lab.folder / "state" / f"watcher-{node}" / "watcher.json"
    kept = state.read_text()
    assert json.loads(kept)["epochs"]
    watches = watches_of(made)
    with watching(watches):
        power_off(made, node)
        assert made.objects()[node] != [], "folders"
        wait_for(lambda: has_moved(made, node, watches), 20, "the new owner")
        state.write_text(kept)
        for daemon in (made.lab.agent(node), made.lab.watcher(node)):
            daemon.start()
        wait_for(lambda: is_tidy(made), 40, "a tidy zone")
    assert_turns(watches, old, made.ref())


def power_off(made: Zone, node: str) -> None:
    """What is in memory is gone, what is on disk stays."""
    for daemon in (made.lab.watcher(node), made.lab.agent(node)):
        daemon.kill(signal.SIGKILL)
    made.lab.run(
        node,
        [
            "sh",
            "-ec",
            "for ns in $(ls /run/netns); do ip netns pids $ns | xargs -r kill -9;"
            " ip netns del $ns; done;"
            " for port in $(ls /sys/class/net | grep ^vrh); do ip link del $port; done;"
            " nft flush ruleset",
        ],
    )
    for path in (made.lab.folder / "watching" / node).glob("watcher.*"):
        path.unlink()


def watches_of(made: Zone) -> list[Watch]:
    """A listener on every segment."""
    return [Watch(made.lab, "vm2", *INSIDE), Watch(made.lab, "outside", *OUTSIDE)]


def has_moved(made: Zone, node: str, watches: list[Watch]) -> bool:
    answers = (watches[0].owners(INSIDE[0]), watches[1].owners(OUTSIDE[0]))
    return made.router().node != node and all(len(owners) > 1 for owners in answers)


def assert_turns(watches: list[Watch], old: InstanceRef, new: InstanceRef) -> None:
    """Once the new one has answered, the old one never does again."""
    for watch, port, addresses in ((watches[0], "n0", INSIDE), (watches[1], "u0", OUTSIDE)):
        for address in addresses:
            assert watch.owners(address) == [mac_of(old, port), mac_of(new, port)], address


def test_health_and_missing_time_agree(made: Zone, nemesis: LabNemesis) -> None:
    node = made.router().node
    began = time.monotonic()
    made.lab.agent(node).kill(signal.SIGKILL)
    wait_for(lambda: status(made, node)["agents"]["health"] == Health.AGENT_DEAD, 5, "the end")
    missing = status(made, node)["situation"]["missing_ms"]
    assert 0 < missing <= 1000 * (time.monotonic() - began)
