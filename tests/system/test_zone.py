"""A zone of three routers with two networks each: placement, restarts, backends, removal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.system.zonekit import (
    VRHA,
    Zone,
    probing,
    wait_for,
    with_network,
    with_router,
    zone,
)
from vrha.config.export import to_yaml
from vrha.core.names import host_port
from vrha.model.probing import Result, Stream
from vrha.model.runs import RestartOptions, RunKind, RunStatus, Strategy
from vrha.model.spec import Backend, Egress, InstanceRef, Protocol, Rule, Verdict
from vrha.model.views import RouterStatus

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]

OUTSIDE = ("198.51.100.1", "2001:db8:fffe::1")
NAIVE = 60
"""Probes that a naive parallel restart loses in one direction, at 1 ms."""
FIRST_VM = {"r1": ("vm1", "203.0.113.11"), "r2": ("vm19", "203.0.113.21")}


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    with zone("dais-54", f"test-zone-{os.getpid()}", {"check_in_s": 15.0, "step_s": 15.0}) as made:
        yield made


@pytest.fixture
def served(made: Zone) -> Iterator[Zone]:
    """The zone as applied, before and after, and nothing beside it."""
    yield made
    made.apply(made.desired)
    assert_complete(made)


def assert_complete(made: Zone) -> None:
    """One instance per router, each with namespace, three ports, folder and dnsmasq."""

    def complete() -> bool:
        routers = made.client.routers()
        found = made.objects()
        return len(routers) == 3 and all(
            len(objects) == 6 * sum(1 for r in routers if r.node == node)
            for node, objects in found.items()
        )

    wait_for(complete, 15, f"six objects for each router, not {made.objects()}")


def both_ways(made: Zone, *routers: str) -> tuple[Stream, ...]:
    outside = made.lab.netns_path("outside")
    streams = []
    for router in routers:
        machine, public = FIRST_VM[router]
        inside = made.lab.netns_path(machine)
        streams += [
            Stream(f"{router}_egress", "icmp", OUTSIDE[0], netns=inside),
            Stream(f"{router}_ingress", "icmp", public, netns=outside),
        ]
    return tuple(streams)


def lost_of(result: Result, router: str) -> int:
    return sum(s.loss.lost for s in result.streams if s.stream.name.startswith(f"{router}_"))


def test_routers_are_spread_over_nodes_and_zones(served: Zone) -> None:
    assert {router.node for router in served.client.routers()} == {"n1", "n2", "n3"}


def test_every_machine_reaches_its_gateways_and_the_outside(served: Zone) -> None:
    pings = {
        host.name: (*(str(subnet.gateway) for subnet in network.subnets), *OUTSIDE)
        for network in served.desired.networks
        for host in network.hosts
    }
    assert len(pings) == 54
    assert served.unreached(pings) == []


@pytest.mark.parametrize(("network", "router"), [("red", "r1"), ("green", "r1"), ("cyan", "r2")])
def test_a_restart_by_either_network_loses_nothing_elsewhere(
    served: Zone, network: str, router: str
) -> None:
    before = {r.name: r.instance for r in served.client.routers()}
    (other,) = set(FIRST_VM) - {router}
    with probing(both_ways(served, *FIRST_VM)) as results:
        run = served.restart(Strategy.PARALLEL, network=network)
    after = {r.name: r.instance for r in served.client.routers()}
    assert (run.status, run.router) == (RunStatus.DONE, router)
    assert {name for name in after if after[name] != before[name]} == {router}
    assert lost_of(results[0], other) == 0
    assert lost_of(results[0], router) < 2 * NAIVE
    assert not results[0].unrestored


def test_networks_of_one_router_and_denied_egress_with_exceptions(served: Zone) -> None:
    neighbours = ("10.1.2.11", "10.1.2.12", "2001:db8:2::11", "2001:db8:2::12")
    gateways = ("10.1.1.1", "2001:db8:1::1")
    assert served.unreached({"vm1": (*neighbours, *gateways, *OUTSIDE)}) == []
    allowed = tuple(
        Rule(Protocol.ICMP, remote=ip_network(one)) for one in ("10.1.2.12", "2001:db8:2::12")
    )
    denied = with_network(served.desired, "red", egress=Egress(Verdict.DENY, allowed))
    (run,) = served.apply(denied)
    assert (run.kind, run.status) == (RunKind.UPDATE, RunStatus.DONE)

    def blocked() -> None:
        missed = served.unreached({"vm1": (*neighbours, *gateways, *OUTSIDE)}, wait_s=1)
        expected = ("10.1.2.11", "2001:db8:2::11", *OUTSIDE)
        assert missed == [f"vm1: {target}" for target in expected]
        # The other network's own egress is as it was, towards the denied one too.
        assert served.unreached({"vm10": ("10.1.1.11", "2001:db8:1::11", *OUTSIDE)}) == []

    blocked()
    assert served.restart(network="green").status is RunStatus.DONE
    blocked()


def test_the_other_backend_and_back(served: Zone) -> None:
    """Created and restarted with iptables-restore; to change it is a restart."""
    other = with_router(served.desired, "r1", backend=Backend.IPTABLES)
    with probing(both_ways(served, "r1")) as results:
        (run,) = served.apply(other)
    assert (run.kind, run.strategy, run.status) == (
        RunKind.RESTART,
        Strategy.PARALLEL,
        RunStatus.DONE,
    )
    assert lost_of(results[0], "r1") < 2 * NAIVE
    assert "10.1.1.11" in served.in_instance("r1", "iptables-legacy-save")
    assert served.in_instance("r1", "nft", "list", "ruleset") == ""
    for strategy in Strategy:
        with probing(both_ways(served, "r1")) as results:
            run = served.restart(strategy)
        assert run.status is RunStatus.DONE
        assert not results[0].unrestored
        checked = [e for e in served.client.events(limit=1000) if e.run == run.id]
        assert "checked-in" in [e.kind for e in checked]
    assert served.unreached({"vm1": OUTSIDE, "vm10": OUTSIDE}) == []
    (run,) = served.apply(served.desired)
    assert (run.kind, run.status) == (RunKind.RESTART, RunStatus.DONE)
    assert "10.1.1.11" in served.in_instance("r1", "nft", "list", "ruleset")


def test_what_the_file_no_longer_names_goes(served: Zone, tmp_path: Path) -> None:
    desired = served.desired
    smaller = replace(
        desired,
        networks=tuple(n for n in desired.networks if n.name not in ("amber", "pink")),
        routers=desired.routers[:2],
    )
    file = tmp_path / "zone.yaml"
    file.write_text(to_yaml(smaller))

    def diff() -> list[str]:
        argv = [*VRHA, "--socket", str(served.lab.socket), "diff", "-f", str(file)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.splitlines()

    node = served.router("r3").node
    before = len(served.objects()[node])
    assert diff() == ["- network amber", "- network pink", "- router r3"]
    with probing(both_ways(served, *FIRST_VM)) as results:
        (run,) = served.apply(smaller)
    assert (run.kind, run.status) == (RunKind.DELETE, RunStatus.DONE)
    assert results[0].lost == 0
    assert diff() == ["no changes"]
    assert len(served.objects()[node]) == before - 6
    (run,) = served.apply(with_router(desired, "r3", backend=Backend.IPTABLES))
    assert (run.kind, run.status) == (RunKind.CREATE, RunStatus.DONE)
    assert served.unreached({"vm37": OUTSIDE, "vm54": OUTSIDE}) == []


@pytest.mark.parametrize("strategy", list(Strategy))
def test_an_agent_killed_directly_after_the_switch(served: Zone, strategy: Strategy) -> None:
    """It has told nobody yet: its successor does all again, and traffic never stops for it."""
    before = served.router("r1")
    old = served.ref("r1")
    new = InstanceRef(old.router, old.generation + 1)
    agent = served.lab.agent(before.node)
    with probing(both_ways(served, *FIRST_VM)) as results:
        run = served.client.restart_network("red", RestartOptions(strategy))
        wait_for(lambda: is_active(served, before.node, new), 10, "the switch")
        agent.kill()
        agent.start()
        ended = served.await_run(run.id)
    assert ended.status is RunStatus.DONE
    assert served.ref("r1") == new
    assert lost_of(results[0], "r2") == 0
    assert not results[0].unrestored
    if strategy is Strategy.PARALLEL:
        assert lost_of(results[0], "r1") < 2 * NAIVE
    else:
        assert_one_gap(results[0])


def is_active(made: Zone, node: str, instance: InstanceRef) -> bool:
    return host_port(instance, "u0") in made.lab.run(
        node, ["nft", "list", "set", "bridge", "vrha", "active"]
    )


def assert_one_gap(result: Result) -> None:
    """Each stream was dark once, from the destruction to the switch."""
    for one in result.streams:
        long = [gap for gap in one.loss.gaps if gap.length_ms > NAIVE]
        assert len(long) <= 1, one
        assert sum(gap.length_ms for gap in one.loss.gaps if gap not in long) < NAIVE, one


def test_an_agent_restarted_before_every_switch(served: Zone) -> None:
    """While the replacement is being built; the command is delivered to the next agent."""
    node = served.router("r1").node
    slow = 'sleep 0.5; exec $REAL "$@"'
    with (
        probing(both_ways(served, *FIRST_VM)) as results,
        served.broken_tool(node, "dnsmasq", slow),
    ):
        run = served.client.restart_network("red", RestartOptions(Strategy.PARALLEL))
        wait_for(lambda: len(served.namespaces(node)) == 2, 10, "a build under way")
        served.lab.agent(node).kill()
        served.lab.agent(node).start()
        ended = served.await_run(run.id)
    assert ended.status is RunStatus.DONE
    assert served.router("r1").status is RouterStatus.SERVING
    assert lost_of(results[0], "r2") == 0
    assert lost_of(results[0], "r1") < 2 * NAIVE
