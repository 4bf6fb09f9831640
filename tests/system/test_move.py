"""Routers move to other nodes on real parts: nobody notices, and what fails is taken back."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.system.test_guests import GATEWAY6, GUEST_MAC, slaac
from tests.system.test_handover import assert_known, client, with_address
from tests.system.zonekit import (
    OUTSIDE,
    Places,
    Zone,
    agents_started,
    assert_nothing_lost,
    dead,
    probing,
    wait_for,
    zone,
)
from vrha.core.instance import mac_of
from vrha.lab.scenario import Scenario, parse_scenario
from vrha.lab.zone import SYNC_PORT
from vrha.model.probing import Result, Stream
from vrha.model.runs import RestartOptions, RunKind, RunStatus, Strategy
from vrha.model.views import RouterStatus, RunView

pytestmark = [pytest.mark.root, pytest.mark.system]

GATEWAY, PUBLIC = "10.1.1.1", "203.0.113.11"


def scenario() -> Scenario:
    """Two routers, each with its network, on three nodes."""
    shipped = resources.files("vrha.lab") / "scenarios" / "seed-10x10.yaml"
    document: dict[str, Any] = yaml.safe_load(shipped.read_bytes())
    zone = document["zone"]
    subnet = {"cidr": "10.1.2.0/24", "gateway": "10.1.2.1"}
    host = {"name": "g1", "mac": "02:00:00:01:02:01", "addresses": ["10.1.2.11"]}
    zone["networks"].append(
        {"name": "green", "bridge": "br-green", "subnets": [subnet], "hosts": [host]}
    )
    uplink = {
        "bridge": "br-public",
        "addresses": ["203.0.113.50/24"],
        "gateways": [OUTSIDE],
    }
    zone["routers"].append(
        {"name": "r2", "networks": ["green"], "uplink": uplink, "source_nat": ["203.0.113.50"]}
    )
    document["lab"]["hosts"] = [
        *({"name": name, "network": "blue"} for name in ("vm1", "vm2", "vm11")),
        {"name": "guest", "network": "blue", "mac": GUEST_MAC, "dhcp": True},
        {"name": "g1", "network": "green"},
    ]
    return parse_scenario("two-routers", json.dumps(document).encode())


@pytest.fixture(scope="module")
def places() -> Iterator[Places]:
    with tempfile.TemporaryDirectory(prefix="vrha-test-") as folder:
        yield Places(Path(folder))


@pytest.fixture(scope="module")
def made(places: Places) -> Iterator[Zone]:
    limits = {"check_in_s": 5.0, "step_s": 8.0, "sync_s": 8.0}
    name = f"test-move-{os.getpid()}"
    with zone(scenario(), name, limits, places.env) as made, made.responding():
        yield made


@pytest.fixture
def served(made: Zone, places: Places) -> Iterator[Zone]:
    places.forget()
    yield made
    wait_for(
        lambda: all(r.status is RouterStatus.SERVING for r in made.client.routers()),
        20,
        "serving routers",
    )

    def expected() -> bool:
        hosted = [r.node for r in made.client.routers()]
        wanted = {node: hosted.count(node) * made.expected_objects() for node in made.lab.nodes}
        return {node: len(found) for node, found in made.objects().items()} == wanted

    wait_for(expected, 15, "one instance of each router and nothing else")
    for node in made.lab.nodes:
        relays = made.lab.run(node, ["nft", "list", "set", "bridge", "vrha", "relay"])
        assert "elements" not in relays


def elsewhere(made: Zone, router: str = "r1") -> str:
    """A node on which no router is."""
    taken = {r.node for r in made.client.routers()}
    return next(node for node in made.lab.nodes if node not in taken)


def begin(made: Zone, node: str, router: str = "r1") -> RunView:
    return made.client.move_router(router, RestartOptions(node=node))


def moved(made: Zone, node: str, router: str = "r1") -> RunView:
    return made.await_run(begin(made, node, router).id)


def assert_unharmed(made: Zone, node: str, run: RunView, reason: str, result: Result) -> None:
    """The run was taken back, and nobody has noticed."""
    assert (run.status, run.reason, run.leftovers) == (RunStatus.ROLLED_BACK, reason, ())
    assert made.router("r1").node == node
    assert_nothing_lost(result)


def test_there_and_back_and_nobody_notices(served: Zone, places: Places) -> None:
    home, away = served.router("r1").node, elsewhere(served)
    refs = [served.ref("r1")]
    with (
        served.asking("vm2", GATEWAY) as tenants,
        served.asking("outside", PUBLIC) as neighbours,
        probing(served.all_streams()) as results,
    ):
        for node in (away, home, away):
            run = moved(served, node)
            assert (run.kind, run.strategy, run.status) == (
                RunKind.MOVE,
                Strategy.HANDOVER,
                RunStatus.DONE,
            )
            assert served.router("r1").node == node
            refs.append(served.ref("r1"))
    assert_nothing_lost(results[0])
    for answers, port in (
        (tenants.results()[GATEWAY], "n0"),
        (neighbours.results()[PUBLIC], "u0"),
    ):
        assert (answers.doubles, answers.overlap_ms) == (0, 0.0)
        assert list(answers.turns) == [mac_of(ref, port) for ref in refs]


def test_a_guest_keeps_what_it_was_given(served: Zone, places: Places) -> None:
    """A lease granted when the replacement was complete; and an address by SLAAC."""
    served.lab.run("guest", ["ip", "link", "set", "eth0", "up"])
    wait_for(lambda: slaac(served), 10, "an address by SLAAC")
    before = served.lab.run("guest", ["ip", "-6", "-o", "addr", "show", "scope", "global"])
    guest = client(served)
    with places.stopped("agent.flip.before", lambda: with_address(served, guest)):
        run = begin(served, elsewhere(served))
    assert served.await_run(run.id).status is RunStatus.DONE
    assert_known(served, guest)
    after = served.lab.run("guest", ["ip", "-6", "-o", "addr", "show", "scope", "global"])
    assert before.split()[3] == after.split()[3]
    assert served.unreached({"guest": (GATEWAY6,)}) == []


def test_two_routers_change_places_at_the_same_time(served: Zone) -> None:
    """Each agent gives one router and takes the other, so each asks the other."""
    extra = Stream("other", "icmp", OUTSIDE, netns=served.lab.netns_path("g1"))
    with probing((*served.all_streams(), extra)) as results:
        for _ in range(3):
            one, two = served.router("r1").node, served.router("r2").node
            assert one != two
            runs = [begin(served, two, "r1"), begin(served, one, "r2")]
            ended = [served.await_run(run.id) for run in runs]
            assert [run.status for run in ended] == [RunStatus.DONE] * 2, [r.reason for r in ended]
            assert (served.router("r1").node, served.router("r2").node) == (two, one)
    assert_nothing_lost(results[0])


@contextmanager
def fixed_neighbour(made: Zone, machine: str) -> Iterator[None]:
    """The machine believes no announcement of the gateway."""
    mac = mac_of(made.ref("r1"), "n0")
    neighbour = ["ip", "neigh", "replace", GATEWAY, "dev", "eth0", "lladdr", mac]
    made.lab.run(machine, [*neighbour, "nud", "permanent"])
    try:
        yield
    finally:
        made.lab.run(machine, ["ip", "neigh", "del", GATEWAY, "dev", "eth0"])


def test_a_machine_that_goes_on_sending_to_the_old_one_is_found(
    served: Zone, places: Places
) -> None:
    """And a lease that the new one has granted by then is not forgotten."""
    node, old = served.router("r1").node, served.ref("r1")
    guest = client(served)
    stubborn = Stream("stubborn", "icmp", OUTSIDE, netns=served.lab.netns_path("vm2"))
    with fixed_neighbour(served, "vm2"), probing((*served.all_streams(), stubborn)) as results:
        with places.stopped("agent.verify.before", lambda: with_address(served, guest)):
            run = begin(served, elsewhere(served))
        ended = served.await_run(run.id)
    assert_unharmed(served, node, ended, "relay-busy", results[0])
    assert f"still send to {old}" in ended.detail
    assert_known(served, guest)


def test_connections_that_begin_while_a_move_is_taken_back_get_through(
    served: Zone, places: Places
) -> None:
    """Those that begin at the new one in its last moment are answered through the old one."""
    moved(served, elsewhere(served))
    node, hidden = served.router("r1").node, served.lab.netns_path("vm11")
    fresh = [Stream(f"fresh{i}", "udp-fresh", OUTSIDE, netns=hidden) for i in range(3)]
    for _ in range(3):
        with probing(fresh) as results, places.failing("agent.verify.before"):
            ended = served.await_run(begin(served, elsewhere(served)).id)
        assert_unharmed(served, node, ended, "failpoint", results[0])


@contextmanager
def cut_off(made: Zone, node: str) -> Iterator[None]:
    """Agents do not reach that of the node; the broker does."""
    cut(made, node)
    try:
        yield
    finally:
        heal(made, node)


def heal(made: Zone, node: str) -> None:
    made.lab.run(node, ["nft", "add table inet cut; delete table inet cut"])


def cut(made: Zone, node: str) -> None:
    chain = f"policy accept; tcp dport {SYNC_PORT} drop; tcp sport {SYNC_PORT} drop;"
    hooks = "".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; {chain} }}; "
        for hook in ("input", "output")
    )
    made.lab.run(node, ["nft", f"table inet cut {{ {hooks} }}"])


def test_an_agent_that_cannot_be_reached_takes_nothing(served: Zone) -> None:
    node, away = served.router("r1").node, elsewhere(served)
    with probing(served.all_streams()) as results, cut_off(served, away):
        run = moved(served, away)
    assert_unharmed(served, node, run, "peer-unreachable", results[0])


@pytest.mark.long
def test_a_stream_that_breaks_before_the_flip(served: Zone, places: Places) -> None:
    node, away = served.router("r1").node, elsewhere(served)
    with probing(served.all_streams()) as results, cut_off(served, away):
        heal(served, away)
        with places.stopped("agent.flip.before", lambda: cut(served, away)):
            run = begin(served, away)
        ended = served.await_run(run.id)
    assert ended.reason in ("peer-silent", "peer-lost", "peer-failed")
    assert_unharmed(served, node, ended, ended.reason, results[0])


def test_a_stream_that_breaks_inside_the_flip(served: Zone, places: Places) -> None:
    """The old one is silent already, so the new one speaks and stays; the old one forwards on."""
    away = elsewhere(served)
    with (
        served.asking("vm2", GATEWAY) as tenants,
        probing(served.all_streams()) as results,
        cut_off(served, away),
    ):
        heal(served, away)
        with places.stopped("flip.inside", lambda: cut(served, away)):
            run = begin(served, away)
        ended = served.await_run(run.id)
    assert (ended.status, ended.leftovers) == (RunStatus.DONE, ())
    assert served.router("r1").node == away
    assert dead(results[0]) == {}
    assert not results[0].unrestored
    assert tenants.results()[GATEWAY].doubles == 0
    # Held for at most 50 ms; what the new one never heard of it drops.
    assert results[0].longest_gap_ms < 500


def test_an_agent_with_another_certificate_is_refused(served: Zone, places: Places) -> None:
    """The taker starts anew, with another identity, after the plan was made."""
    node, away = served.router("r1").node, elsewhere(served)
    agent = served.lab.agent(away)

    def again() -> None:
        before = agents_started(served)
        agent.kill()
        agent.start()
        wait_for(lambda: agents_started(served) > before, 20, "the other agent")

    with probing(served.all_streams()) as results:
        with places.stopped("agent.offer.before", again):
            run = begin(served, away)
        ended = served.await_run(run.id)
    assert_unharmed(served, node, ended, "peer-refused", results[0])


def test_a_node_without_the_bridge(served: Zone) -> None:
    node, away = served.router("r1").node, elsewhere(served)

    def rename(old: str, new: str) -> None:
        served.lab.run(away, ["ip", "link", "set", old, "down"])
        served.lab.run(away, ["ip", "link", "set", old, "name", new])
        served.lab.run(away, ["ip", "link", "set", new, "up"])

    rename("br-blue", "br-lost")
    try:
        with probing(served.all_streams()) as results:
            run = moved(served, away)
    finally:
        rename("br-lost", "br-blue")
    assert_unharmed(served, node, run, "bridge-missing", results[0])
