"""Lease, grants and mute in a real zone: who dies, what goes silent, what goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.sim.nemesis import Cut, Fault, Kill, Pause
from tests.system.labnemesis import LabNemesis, is_calm
from tests.system.zonekit import (
    Zone,
    assert_nothing_lost,
    dead,
    probing,
    wait_for,
    zone,
)
from vrha.core.ownership.timing import PROFILES
from vrha.model.probing import Result
from vrha.model.runs import RunStatus, Strategy

pytestmark = [pytest.mark.root, pytest.mark.system]

TIMING = PROFILES["default"]
OUTAGE_MS = float(os.environ.get("VRHA_TEST_OUTAGE_S", "3")) * 1000
"""How long something is away; the figures in the docs are of 60 s."""
BLINK_MS = 2 * TIMING.slice_ms
GATEWAY = "10.1.1.1"


@pytest.fixture(scope="module")
def watched() -> Iterator[Zone]:
    with zone(
        "seed-10x10", f"downed-{os.getpid()}", watched=True, failover={"enabled": False}
    ) as made:
        yield made


@pytest.fixture
def nemesis(watched: Zone) -> Iterator[LabNemesis]:
    with LabNemesis(watched.lab) as made:
        yield made
    wait_for(lambda: is_calm(watched), 30, "a zone in which all serve again")


def status(zone: Zone, node: str) -> Mapping[str, Any]:
    return zone.lab.watcher_status(node)


def mutes(zone: Zone) -> dict[str, int]:
    return {node: status(zone, node)["counts"].get("mutes", 0) for node in zone.lab.nodes}


def play(zone: Zone, nemesis: LabNemesis, *faults: Fault) -> Result:
    """1 ms probes both ways and a listener for double answers while the faults last."""
    with probing(zone.streams()) as results, zone.asking("vm2", GATEWAY) as asked:
        for fault in faults:
            nemesis.strike(fault)
        wait_for(lambda: not nemesis.pending, OUTAGE_MS / 1000 + 60, "the end of the faults")
        wait_for(lambda: is_calm(zone), 30, "a zone in which all serve again")
    assert asked.results()[GATEWAY].doubles == 0
    return results[0]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("orchestrator",), marks=pytest.mark.long),
        pytest.param(("broker",), marks=pytest.mark.long),
        ("orchestrator", "broker"),
        ("agent-n1", "agent-n2"),
    ],
    ids="+".join,
)
def test_nothing_is_muted_without(
    names: tuple[str, ...], watched: Zone, nemesis: LabNemesis
) -> None:
    before = mutes(watched)
    result = play(watched, nemesis, *(Kill(name, OUTAGE_MS) for name in names))
    # When broker and orchestrator start, all of this one machine can stand still for longer than a
    # slice. Who is muted because they are missing stays so until they are back.
    assert longest_gap(result) < BLINK_MS
    assert dead(result) == {}
    assert mutes(watched) == before


def longest_gap(result: Result) -> float:
    """In ms, over all streams."""
    gaps = [gap.length_ms for stream in result.streams for gap in stream.loss.gaps]
    return max(gaps, default=0.0)


def test_nothing_is_muted_when_one_voter_is_lost(watched: Zone, nemesis: LabNemesis) -> None:
    serving = watched.router().node
    other = next(node for node in watched.lab.nodes if node != serving)
    before = mutes(watched)[serving]
    assert_nothing_lost(play(watched, nemesis, Pause(other, OUTAGE_MS)))
    assert mutes(watched)[serving] == before


@pytest.mark.parametrize("fault", ["frozen", "cut off", "cut off one way", "killed"])
def test_a_node_goes_silent_in_time_and_comes_back(
    fault: str, watched: Zone, nemesis: LabNemesis
) -> None:
    """The outage lasts as long as the fault, and begins within the bound; nothing revives."""
    node = watched.router().node
    faults: dict[str, Fault] = {
        "frozen": Pause(node, OUTAGE_MS),
        "cut off": Cut((node,), (), OUTAGE_MS),
        "cut off one way": Cut((node,), (), OUTAGE_MS, both=False),
        "killed": Kill(node, OUTAGE_MS),
    }
    life = status(watched, node)["incarnation"]
    result = play(watched, nemesis, faults[fault])
    assert status(watched, node)["incarnation"] != life
    for one in result.streams:
        # Had anything been revived, none of them would be as long as the fault.
        gap = max(one.loss.gaps, key=lambda gap: gap.length_ms)
        assert not gap.unrestored
        assert sum(gap.length_ms for gap in one.loss.gaps) < gap.length_ms + TIMING.safe_ms
        # It may begin at once with a stop, and at the latest when lease and slice are over.
        latest = OUTAGE_MS + 3 * TIMING.safe_ms
        assert OUTAGE_MS - TIMING.safe_ms <= gap.length_ms <= latest, gap


def test_a_restart_loses_nothing_under_a_lease(watched: Zone) -> None:
    with probing(watched.streams()) as results:
        run = watched.restart(Strategy.HANDOVER)
    assert run.status is RunStatus.DONE, run.detail
    assert_nothing_lost(results[0])
    key = str(watched.ref()).replace("#", "/")
    rights = lambda: status(watched, watched.router().node)["routers"]  # noqa: E731
    wait_for(lambda: list(rights()) == [key], 10, "the right of the old instance to be taken back")


def test_a_build_on_a_node_without_a_lease_is_rolled_back(
    watched: Zone, nemesis: LabNemesis
) -> None:
    node = watched.router().node
    before = watched.objects()
    nemesis.strike(Kill(node, 9000))
    run = watched.restart(Strategy.HANDOVER, timeout_s=60)
    assert run.status is RunStatus.ROLLED_BACK
    assert "not-permitted" in f"{run.reason} {run.detail}"
    wait_for(lambda: is_calm(watched), 30, "a zone in which all serve again")
    assert watched.objects() == before


def test_a_watcher_that_is_restarted_mutes_nothing(watched: Zone, nemesis: LabNemesis) -> None:
    """As in an upgrade: the process that follows goes on with the lease."""
    node = watched.router().node
    watcher = watched.lab.watcher(node)
    life = status(watched, node)["incarnation"]
    with probing(watched.streams()) as results:
        for _ in range(3):
            watcher.kill(signal.SIGTERM)
            watcher.start()
            wait_for(lambda: is_calm(watched), 10, "the next watcher")
    assert_nothing_lost(results[0])
    assert status(watched, node)["incarnation"] == life
