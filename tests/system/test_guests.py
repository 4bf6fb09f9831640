"""What tenants notice of restarts: DHCP, DNS, IPv6, another node, changes in place."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import resources
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
import yaml

from tests.system.guestkit import ACK, Dhcp, Watch, resolve, watching
from tests.system.zonekit import (
    Zone,
    probing,
    wait_for,
    with_network,
    with_node,
    with_router,
    zone,
)
from vrha.core.instance import mac_of
from vrha.core.names import folder_name, namespace_name
from vrha.lab.scenario import Scenario, parse_scenario
from vrha.linux.files import SPEC
from vrha.model.probing import Stream
from vrha.model.runs import RestartOptions, RunKind, RunStatus, Strategy
from vrha.model.spec import Desired, Host, Ingress, InstanceRef, Protocol, Rule, StaticNat
from vrha.model.views import RouterView, RunView

pytestmark = [pytest.mark.root, pytest.mark.system, pytest.mark.unhurried]

GUEST_MAC = "02:00:00:01:01:f0"
GATEWAY, GATEWAY6 = "10.1.1.1", "2001:db8:1::1"
PUBLIC, NEW_PUBLIC = "203.0.113.11", "203.0.113.40"
SPARE = "10.1.1.90"
OUTSIDE, OUTSIDE6 = "203.0.113.1", "2001:db8:ffff::1"


def document() -> dict[str, Any]:
    """seed-10x10 with a machine that asks for its address, and one that no file names yet."""
    shipped = resources.files("vrha.lab") / "scenarios" / "seed-10x10.yaml"
    found: dict[str, Any] = yaml.safe_load(shipped.read_bytes())
    (network,) = found["zone"]["networks"]
    found["lab"]["hosts"] = [
        *({"name": host["name"], "network": "blue"} for host in network["hosts"]),
        {"name": "guest", "network": "blue", "mac": GUEST_MAC, "dhcp": True},
        {"name": "spare", "network": "blue", "addresses": [SPARE]},
    ]
    return found


def scenario() -> Scenario:
    return parse_scenario("guests", json.dumps(document()).encode())


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    limits = {"check_in_s": 5.0, "step_s": 5.0}
    with zone(scenario(), f"test-guests-{os.getpid()}", limits) as made:
        yield made


@pytest.fixture
def served(made: Zone) -> Iterator[Zone]:
    yield made
    made.apply(made.desired)
    (router,) = made.client.routers()
    wait_for(
        lambda: (
            {node: len(found) for node, found in made.objects().items() if found}
            == {router.node: made.expected_objects()}
        ),
        15,
        "one instance and nothing else",
    )


@pytest.fixture
def guest(made: Zone) -> Dhcp:
    """The machine that asks for its address, with a lease."""
    client = Dhcp(made.lab, "guest", bytes.fromhex(GUEST_MAC.replace(":", "")))
    assert client.discover() == ACK
    made.lab.run("guest", ["ip", "address", "replace", f"{client.address}/24", "dev", "eth0"])
    made.lab.run("guest", ["ip", "route", "replace", "default", "via", GATEWAY])
    return client


def but_for_epoch(view: RouterView) -> RouterView:
    """Every run takes an epoch; what else there is to see of a router."""
    return replace(view, epoch=0)


def all_ways(made: Zone) -> tuple[Stream, ...]:
    inside, outside = made.lab.netns_path("vm1"), made.lab.netns_path("outside")
    return (
        Stream("egress", "icmp", OUTSIDE, netns=inside),
        Stream("ingress", "icmp", PUBLIC, netns=outside),
        Stream("egress6", "icmp", OUTSIDE6, netns=inside),
        Stream("ingress6", "icmp", "2001:db8:1::11", netns=outside),
    )


def move(made: Zone, desired: Desired | None = None) -> RunView:
    """Restart while the node that serves may host nothing."""
    elsewhere = with_node(desired or made.desired, made.router().node, capacity=0)
    assert made.apply(elsewhere) == []
    return made.restart()


def test_a_replacement_on_another_node(served: Zone) -> None:
    old, node = served.ref(), served.router().node
    watches = [
        Watch(served.lab, "vm2", GATEWAY, GATEWAY6, "fe80::1"),
        Watch(served.lab, "outside", PUBLIC, "2001:db8:ffff::10"),
    ]
    with watching(watches), probing(all_ways(served)) as results:
        run = move(served)
    assert run.status is RunStatus.DONE
    new, other = served.ref(), served.router().node
    assert other != node
    assert not results[0].unrestored
    assert results[0].lost < 4 * 2 * 60
    assert served.objects()[node] == []
    # Never two owners: whoever answers, the old one never does after the new one has.
    for watch, port, address in (
        (watches[0], "n0", GATEWAY),
        (watches[0], "n0", GATEWAY6),
        (watches[0], "n0", "fe80::1"),
        (watches[1], "u0", PUBLIC),
        (watches[1], "u0", "2001:db8:ffff::10"),
    ):
        assert watch.owners(address) == [mac_of(old, port), mac_of(new, port)]
    assert [(step.what.split()[0], step.node) for step in run.steps] == [
        ("build", other),
        ("wait", ""),
        ("offer", node),
        ("carry", other),
        ("turn", other),
        ("verify", other),
        ("destroy", node),
    ]


def test_a_move_away_from_a_node_that_does_not_answer_is_rolled_back(served: Zone) -> None:
    """Nobody knows whether the old one was muted, so nobody else becomes owner."""
    before = served.router()
    agent = served.lab.agent(before.node)
    served.apply(with_node(served.desired, before.node, capacity=0))
    watch = Watch(served.lab, "vm2", GATEWAY)
    with watch, probing(all_ways(served)) as results:
        agent.kill(signal.SIGSTOP)
        try:
            run = served.client.restart_network(served.network)
            wait_for(
                lambda: served.client.run(run.id).status is RunStatus.ROLLING_BACK,
                20,
                "the roll-back",
            )
        finally:
            agent.kill(signal.SIGCONT)
        ended = served.await_run(run.id)
    assert (ended.status, ended.reason) == (RunStatus.ROLLED_BACK, "no-answer")
    assert "offer" in ended.detail
    assert ended.leftovers == ()
    assert served.router().instance == before.instance
    assert watch.owners(GATEWAY) == [mac_of(served.ref(), "n0")]
    assert results[0].lost < 4 * 60
    assert not results[0].unrestored


def test_no_node_for_the_replacement(served: Zone) -> None:
    nodes = tuple(replace(node, capacity=0) for node in served.desired.nodes)
    served.apply(replace(served.desired, nodes=nodes))
    before = served.router()
    with pytest.raises(Exception, match="no-node"):
        served.restart()
    assert served.router() == before


def test_a_lease_outlives_restarts(served: Zone, guest: Dhcp) -> None:
    """Beside the old one the leases are copied; on another node dnsmasq takes the client's word."""
    address = guest.address
    assert ip_address(address) in ip_network("10.1.1.0/24")
    assert served.unreached({"guest": (GATEWAY, OUTSIDE)}) == []
    for restart in (served.restart, lambda: served.restart(Strategy.SERIAL), lambda: move(served)):
        assert restart().status is RunStatus.DONE
        if restart == served.restart:
            assert GUEST_MAC in leases(served)
        assert [guest.renew(), guest.rebind(), guest.reboot(), guest.discover()] == [ACK] * 4
        assert guest.address == address
        assert served.unreached({"guest": (GATEWAY, OUTSIDE)}) == []


def leases(made: Zone) -> list[str]:
    """MACs in the lease file of the instance that serves, before anybody has asked it."""
    ref = made.ref()
    folder = made.lab.folder / f"state/agent-{made.router().node}/instances" / folder_name(ref)
    return [line.split()[1] for line in (folder / "leases").read_text().splitlines()]


def test_names_of_hosts_are_answered_before_and_after(served: Zone, guest: Dhcp) -> None:
    def ask() -> list[str]:
        return [
            resolve(served.lab, "guest", server, name)
            for server in (GATEWAY, GATEWAY6)
            for name in ("vm1.blue.example", "vm10.blue.example", "vm99.blue.example")
        ]

    expected = ["10.1.1.11", "10.1.1.20", ""] * 2
    wait_for(lambda: slaac(served), 10, "an address by SLAAC")
    assert ask() == expected
    served.restart()
    assert ask() == expected
    move(served)
    assert ask() == expected


def slaac(made: Zone) -> bool:
    """The guest has an address and a default route by router advertisements."""
    addresses = made.lab.run("guest", ["ip", "-6", "address", "show", "dev", "eth0"])
    routes = made.lab.run("guest", ["ip", "-6", "route", "show", "default"])
    ready = "2001:db8:1:" in addresses and "tentative" not in addresses
    return ready and "via fe80::1 " in routes


def neighbour(made: Zone, machine: str, address: str) -> str:
    return made.lab.run(machine, ["ip", "neigh", "show", address])


def test_only_the_active_instance_advertises_itself(served: Zone) -> None:
    old = served.ref()
    node = served.router().node
    new = InstanceRef(old.router, old.generation + 1)
    built = served.lab.folder / f"state/agent-{node}/instances" / folder_name(new) / SPEC
    orchestrator = served.lab.orchestrator()
    slow = 'sleep 0.3; exec $REAL "$@"'
    with (
        served.broken_tool(node, "dnsmasq", slow),
        Watch(served.lab, "guest", GATEWAY, "fe80::1") as watch,
    ):
        run = served.client.restart_network(served.network, RestartOptions(Strategy.PARALLEL))
        wait_for(lambda: len(served.namespaces(node)) == 2, 10, "a build under way")
        orchestrator.kill(signal.SIGSTOP)
        try:
            wait_for(built.exists, 10, "a complete replacement")
            shout = ["ping", "-c", "1", "-W", "1", "10.1.1.12"]
            for instance, heard in ((new, False), (old, True)):
                netns = ["ip", "netns", "exec", namespace_name(instance)]
                served.lab.run(node, [*netns, "sh", "-c", f"{' '.join(shout)} || true"])
                assert (mac_of(instance, "n0") in watch.senders) is heard
            for count in (1, 2, 3):
                watch.solicit()
                wait_for(partial(watch.has_heard, "::", count), 10, "a router advertisement")
        finally:
            orchestrator.kill(signal.SIGCONT)
        for address in ("::", GATEWAY, "fe80::1"):
            assert watch.owners(address) == [mac_of(old, "n0")]
        assert served.await_run(run.id).status is RunStatus.DONE
    assert served.ref() == new
    with Watch(served.lab, "guest") as watch:
        watch.solicit()
        wait_for(partial(watch.has_heard, "::"), 10, "a router advertisement")
    assert watch.owners("::") == [mac_of(new, "n0")]


def test_ipv6_through_a_restart(served: Zone) -> None:
    wait_for(lambda: slaac(served), 10, "an address by SLAAC")
    inside = Stream("guest6", "icmp", OUTSIDE6, netns=served.lab.netns_path("guest"))
    with probing((*all_ways(served)[2:], inside)) as results:
        assert served.restart(Strategy.PARALLEL).status is RunStatus.DONE
        # Nobody asks while probes go through: the neighbour learnt it from an advertisement.
        assert mac_of(served.ref(), "n0") in neighbour(served, "guest", "fe80::1")
        assert mac_of(served.ref(), "u0") in neighbour(served, "outside", "2001:db8:ffff::10")
    assert not results[0].unrestored
    assert results[0].lost < 3 * 60
    assert slaac(served)


def changed(desired: Desired) -> Desired:
    """A new public address with its 1:1 translation and rule, a rule more, a host more."""
    (router,) = desired.routers
    assert router.uplink is not None
    (network,) = desired.networks
    public = ip_address(NEW_PUBLIC)
    ping = Rule(Protocol.ICMP, icmp_type=8)
    spare = Host("spare", "02:00:00:01:01:f1", (ip_address(SPARE),))
    desired = with_network(desired, "blue", hosts=(*network.hosts, spare))
    return with_router(
        desired,
        "r1",
        uplink=replace(
            router.uplink, addresses=(*router.uplink.addresses, ip_interface(f"{public}/32"))
        ),
        static_nat=(*router.static_nat, StaticNat(public, ip_address(SPARE))),
        ingress=(*router.ingress, Ingress(public, (ping,))),
    )


def test_an_update_in_place_loses_nothing(served: Zone) -> None:
    before = served.router()
    news = {"outside": (NEW_PUBLIC,)}
    assert served.unreached(news, wait_s=1) != []
    with probing(all_ways(served)) as results:
        (run,) = served.apply(changed(served.desired))
        assert served.unreached(news) == []
        (back,) = served.apply(served.desired)
    assert (run.kind, run.status, back.status) == (
        RunKind.UPDATE,
        RunStatus.DONE,
        RunStatus.DONE,
    )
    assert results[0].lost == 0
    assert but_for_epoch(served.router()) == but_for_epoch(before)
    assert served.unreached(news, wait_s=1) != []
    assert resolve(served.lab, "vm1", GATEWAY, "spare.blue.example") == ""


def test_a_new_host_is_known_at_once(served: Zone) -> None:
    served.apply(changed(served.desired))
    assert resolve(served.lab, "vm1", GATEWAY, "spare.blue.example") == SPARE


def test_a_dnsmasq_that_would_not_start_again_is_not_stopped(served: Zone) -> None:
    """Nothing works any more but what runs; it goes on, and the next try finds all as it was."""
    node = served.router().node
    wanted = with_network(served.desired, "blue", domain="no.example")
    with probing(all_ways(served)) as results, served.broken_tool(node, "dnsmasq", "exit 3"):
        assert served.restart().status is RunStatus.ROLLED_BACK
        (run,) = served.apply(wanted)
    assert (run.status, run.reason) == (RunStatus.ROLLED_BACK, "dnsmasq-failed")
    assert results[0].lost == 0
    assert served.router().reason.startswith("not-applied")
    assert served.dnsmasqs(node) == ["r1-" + served.router().instance.split("#")[1]]
    assert resolve(served.lab, "vm1", GATEWAY, "vm1.blue.example") == "10.1.1.11"
    (run,) = served.apply(wanted)
    assert (run.kind, run.status) == (RunKind.UPDATE, RunStatus.DONE)
    assert served.router().reason == ""
    assert resolve(served.lab, "vm1", GATEWAY, "vm1.no.example") == "10.1.1.11"


REFUSES = 'case "$*" in *-f*) echo "Error: no" >&2; exit 1;; esac; exec $REAL "$@"'


@pytest.mark.parametrize(
    ("tool", "script", "reason"),
    [
        ("nft", REFUSES, "rules-rejected"),
        (
            "dnsmasq",
            'grep -q no.example "${1#--conf-file=}" && exit 3; exec $REAL "$@"',
            "dnsmasq-failed",
        ),
    ],
    ids=["nft", "dnsmasq"],
)
def test_a_failing_update_is_rolled_back(served: Zone, tool: str, script: str, reason: str) -> None:
    before = served.router()
    rules = served.in_instance("r1", "nft", "-s", "list", "ruleset")
    wanted = with_network(changed(served.desired), "blue", domain="no.example")
    with probing(all_ways(served)) as results, served.broken_tool(before.node, tool, script):
        (run,) = served.apply(wanted)
    assert (run.kind, run.status, run.reason, run.leftovers) == (
        RunKind.UPDATE,
        RunStatus.ROLLED_BACK,
        reason,
        (),
    )
    assert results[0].lost == 0
    after = served.router()
    assert after.reason.startswith("not-applied")
    assert but_for_epoch(replace(after, reason="")) == but_for_epoch(before)
    assert served.in_instance("r1", "nft", "-s", "list", "ruleset") == rules
    assert resolve(served.lab, "vm1", GATEWAY, "vm1.blue.example") == "10.1.1.11"
