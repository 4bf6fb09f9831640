"""A node is lost: its routers serve elsewhere, nobody has two owners, the return is clean."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.sim.nemesis import Cut, Kill, Loss, Pause, Unplug
from tests.system.labnemesis import LabNemesis, is_calm
from tests.system.zonekit import Zone, probing, wait_for, zone
from vrha.core.names import namespace_name
from vrha.core.ownership.timing import PROFILES
from vrha.model.probing import Result
from vrha.model.runs import RunKind, RunStatus
from vrha.model.spec import InstanceRef, Policy
from vrha.model.state import Upstream
from vrha.model.views import RunView

pytestmark = [pytest.mark.root, pytest.mark.system]

TIMING = PROFILES["default"]
GATEWAY = "10.1.1.1"
LONG_MS = 60_000.0
FORGIVING = {"fail_back_s": 0, "flap_suppress": 1e6, "window_s": 0.5}
"""Every test loses nodes; none shall look at those of the tests before."""


@pytest.fixture(scope="module")
def watched() -> Iterator[Zone]:
    with zone("seed-10x10", f"failover-{os.getpid()}", watched=True, failover=FORGIVING) as made:
        yield made


@pytest.fixture
def nemesis(watched: Zone) -> Iterator[LabNemesis]:
    with LabNemesis(watched.lab) as made:
        yield made
    wait_for(lambda: is_tidy(watched), 40, "one instance and nothing else")


def is_tidy(zone: Zone) -> bool:
    """Every node is live, and there is nothing of routers but what serves."""
    if not is_calm(zone) or zone.client.runs(open_only=True):
        return False
    return len([each for objects in zone.objects().values() for each in objects]) == (
        zone.expected_objects()
    )


def failovers(zone: Zone) -> list[RunView]:
    """Newest first."""
    return [run for run in zone.client.runs() if run.kind is RunKind.FAILOVER]


def lose(zone: Zone, nemesis: LabNemesis, node: str) -> Result:
    """1 ms probes and a listener for double answers while the node is lost, and comes back."""
    with probing(zone.streams()) as results, zone.asking("vm2", GATEWAY) as asked:
        nemesis.strike(Loss(node, LONG_MS))
        wait_for(lambda: zone.router().node != node, 20, "the router on another node")
        nemesis.heal()
        wait_for(lambda: is_tidy(zone), 40, "the end of what the node had")
    assert asked.results()[GATEWAY].doubles == 0
    return results[0]


def test_a_lost_node_costs_one_gap_within_the_bound(watched: Zone, nemesis: LabNemesis) -> None:
    before = watched.router()
    result = lose(watched, nemesis, before.node)
    after = watched.router()
    assert after.epoch > before.epoch
    for one in result.streams:
        (gap,) = one.loss.gaps
        assert not gap.unrestored
        # Less than half of it would mean that nobody waited for the lease.
        assert TIMING.safe_ms / 2 < gap.length_ms < 2 * TIMING.worst_outage_ms, gap
    run = failovers(watched)[0]
    assert run.status is RunStatus.DONE
    kinds = [event.kind for event in watched.client.events(0, 1000) if event.run == run.id]
    wanted = ["run-started", "checked-in", "taken-over", "announced", "run-done"]
    assert [kind for kind in kinds if kind in wanted] == wanted


def test_a_node_that_is_back_in_time_keeps_its_routers(watched: Zone, nemesis: LabNemesis) -> None:
    """Its watcher stands still for less than a lease: a failover begins, and is withdrawn."""
    before = watched.router()
    count = len(failovers(watched))
    nemesis.strike(Pause(before.node, TIMING.suspect_ms + TIMING.renew_ms / 2))
    wait_for(lambda: len(failovers(watched)) > count, 10, "a failover")
    wait_for(lambda: is_tidy(watched), 40, "a tidy zone")
    run = failovers(watched)[0]
    if run.status is RunStatus.ROLLED_BACK:
        assert run.reason == "node-returned"
        assert watched.router().instance == before.instance
    else:
        # It stood still for longer: this machine is shared.
        assert watched.router().node != before.node


@pytest.mark.parametrize("lost", ["answers", "renewals"])
def test_a_node_that_only_the_leader_hears_is_given_up(
    lost: str, watched: Zone, nemesis: LabNemesis
) -> None:
    """It cannot have a lease, as the voters and it do not hear each other."""
    node = watched.router().node
    others = tuple(name for name in watched.lab.nodes if name != node)
    these, those = (others, (node,)) if lost == "answers" else ((node,), others)
    with probing(watched.streams()) as results, watched.asking("vm2", GATEWAY) as asked:
        nemesis.strike(Cut(these, those, LONG_MS, both=False))
        wait_for(lambda: watched.router().node != node, 20, "the router on another node")
        why = watched.client.why_node(node)
        nemesis.heal()
        wait_for(lambda: is_tidy(watched), 40, "the end of what the node had")
    assert (why.cause, asked.results()[GATEWAY].doubles) == ("node-cut-off", 0)
    assert any("no majority of the voters answers" in signal.what for signal in why.signals)
    for one in results[0].streams:
        (gap,) = one.loss.gaps
        # Its lease runs out, and its next word proves that it is mute: that may take an instant.
        assert gap.length_ms < 2 * TIMING.worst_outage_ms, gap


def test_the_orchestrator_dies_during_a_failover(watched: Zone, nemesis: LabNemesis) -> None:
    """The next one goes on where it was."""
    node = watched.router().node
    count = len(failovers(watched))
    with watched.asking("vm2", GATEWAY) as asked:
        nemesis.strike(Loss(node, LONG_MS))
        wait_for(lambda: len(failovers(watched)) > count, 10, "a failover")
        nemesis.strike(Kill("orchestrator", 200))
        wait_for(lambda: not nemesis.lasts("orchestrator"), 10, "an orchestrator")
        wait_for(lambda: reachable(watched) and watched.router().node != node, 30, "the router")
        nemesis.heal()
        wait_for(lambda: is_tidy(watched), 40, "a tidy zone")
    assert asked.results()[GATEWAY].doubles == 0
    assert all(run.status.terminal for run in failovers(watched))


def test_the_target_is_lost_as_well(watched: Zone, nemesis: LabNemesis) -> None:
    """With two of three voters gone nobody may take over; with one back, the router serves."""
    first = watched.router().node
    count = len(failovers(watched))
    nemesis.strike(Loss(first, LONG_MS))
    wait_for(lambda: len(failovers(watched)) > count, 10, "a failover")
    target = failovers(watched)[0].steps[0].node
    nemesis.strike(Loss(target, 3000))
    wait_for(lambda: not nemesis.lasts(target), 20, "the target to be back")
    wait_for(lambda: watched.router().node != first, 40, "the router on another node")
    nemesis.heal()
    wait_for(lambda: is_tidy(watched), 40, "a tidy zone")
    assert not watched.unreached({"vm1": ["203.0.113.1"]})


def test_a_restart_under_way_does_not_hold_a_failover_up(
    watched: Zone, nemesis: LabNemesis
) -> None:
    node = watched.router().node
    run = watched.client.restart_network(watched.network)
    began = time.monotonic()
    nemesis.strike(Loss(node, LONG_MS))
    wait_for(lambda: watched.router().node != node, 30, "the router on another node")
    took = time.monotonic() - began
    assert watched.client.run(run.id).status.terminal
    # Steps of the restart have ten seconds each; nobody waits for them.
    assert took < 10
    nemesis.heal()
    wait_for(lambda: is_tidy(watched), 40, "a tidy zone")


def test_a_dead_uplink_moves_its_routers(watched: Zone, nemesis: LabNemesis) -> None:
    """The node lives and is heard; what it had is taken back with proof, so nobody waits."""
    before = watched.router()
    bridge = uplink_of(watched)
    wait_for(lambda: bridge in uplinks(watched, before.node), 20, "a gateway that answers")
    with probing(watched.streams()) as results, watched.asking("vm2", GATEWAY) as asked:
        nemesis.strike(Unplug(before.node, bridge, LONG_MS))
        wait_for(lambda: watched.router().node != before.node, 20, "the router on another node")
        nemesis.heal()
        wait_for(lambda: is_tidy(watched), 40, "the end of what the node had")
    assert asked.results()[GATEWAY].doubles == 0
    for one in results[0].streams:
        (gap,) = one.loss.gaps
        assert not gap.unrestored
    events = [e for e in watched.client.events(0, 1000) if e.kind == "failover-decided"]
    assert events[-1].reason == "uplink-dead"


def test_a_gateway_that_nobody_reaches_moves_nothing(watched: Zone, nemesis: LabNemesis) -> None:
    before, count = watched.router(), len(failovers(watched))
    nemesis.strike(Unplug(before.node, uplink_of(watched), 2000))
    for node in set(watched.lab.nodes) - {before.node}:
        # It reaches the gateway again before others do: else it would rightly lose the router.
        nemesis.strike(Unplug(node, uplink_of(watched), 4000))
    wait_for(lambda: not nemesis.pending, 20, "the end of the faults")
    wait_for(lambda: is_tidy(watched), 40, "a tidy zone")
    assert watched.router().instance == before.instance
    assert all(run.status is RunStatus.ROLLED_BACK for run in failovers(watched)[: -count or None])


def test_a_sick_router_is_built_anew(watched: Zone, nemesis: LabNemesis) -> None:
    before = watched.router()
    wait_for(lambda: is_tidy(watched), 40, "a tidy zone")
    # It must have been well: an instance that never let test packets pass may just not.
    wait_for(lambda: checked(watched, before.instance), 30, "test packets that came through")
    watched.in_instance("r1", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    wait_for(lambda: watched.router().instance != before.instance, 30, "another instance")
    assert watched.router().node == before.node
    assert [e.reason for e in watched.client.events(0, 1000) if e.kind == "router-sick"]
    wait_for(lambda: not watched.unreached({"vm1": ["203.0.113.1"]}), 10, "the outside")


def checked(zone: Zone, instance: str) -> bool:
    """Whether test packets were sent through it: they leave a neighbour entry for a moment, and
    their gateway's answers pass its counters."""
    router, generation = instance.split("#")
    ref = InstanceRef(router, int(generation))
    counted = zone.lab.run(
        zone.router().node,
        ["ip", "netns", "exec", namespace_name(ref), "conntrack", "-L", "-p", "icmp"],
    )
    return "src=10.1.1.0 " in counted


def test_the_verdict_is_told(watched: Zone, nemesis: LabNemesis) -> None:
    node = watched.router().node
    assert watched.client.why_node(node).cause == "serving"
    nemesis.strike(Loss(node, LONG_MS))
    wait_for(lambda: watched.client.why_node(node).cause == "node-silent", 10, "the verdict")
    wait_for(lambda: watched.router().node != node, 20, "the router on another node")
    assert watched.client.why_router("r1").cause == "serving"
    events = [event.kind for event in watched.client.why_node(node).events]
    assert {"node-silent", "node-given-up", "node-out"} & set(events)
    nemesis.heal()


def test_a_standby_takes_over_without_a_broker(watched: Zone, nemesis: LabNemesis) -> None:
    """Nothing but datagrams between leader and watchers, and the store."""
    watched.client.set_router("r1", Policy.STANDBY)
    wait_for(lambda: is_followed(watched), 40, "a standby in sync")
    node = watched.router().node
    with watched.asking("vm2", GATEWAY) as asked:
        nemesis.strike(Kill("broker", LONG_MS))
        nemesis.strike(Loss(node, LONG_MS))
        others = [name for name in watched.lab.nodes if name != node]
        wait_for(lambda: any(permitted(watched, name) for name in others), 10, "the takeover")
        wait_for(lambda: not watched.unreached({"vm1": ["203.0.113.1"]}, 1), 15, "the outside")
        nemesis.heal()
        wait_for(lambda: is_calm(watched) and watched.router().node != node, 60, "a calm zone")
        wait_for(lambda: is_followed(watched), 60, "the next standby in sync")
    assert asked.results()[GATEWAY].doubles == 0
    assert watched.router().node != node
    wait_for(lambda: not watched.client.runs(open_only=True), 30, "the end of all runs")
    watched.client.set_router("r1", Policy.RESURRECT)


def permitted(zone: Zone, node: str) -> bool:
    return bool(zone.lab.watcher_status(node)["ports"])


def is_followed(zone: Zone) -> bool:
    standby = zone.router().standby
    return standby is not None and standby.in_sync


def uplinks(zone: Zone, node: str) -> dict[str, Upstream]:
    return dict(next(view for view in zone.client.nodes() if view.name == node).uplinks)


def uplink_of(zone: Zone) -> str:
    uplink = zone.desired.routers[0].uplink
    assert uplink is not None
    return uplink.bridge


def reachable(zone: Zone) -> bool:
    try:
        return zone.client.health().leads
    except Exception:
        return False
