"""A warm standby on real parts: complete, silent, and as knowing as the instance that serves."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.system.test_move import scenario
from tests.system.zonekit import (
    OUTSIDE,
    Places,
    Zone,
    agents_started,
    assert_nothing_lost,
    probing,
    wait_for,
    zone,
)
from vrha.core.names import host_port_prefix, namespace_name
from vrha.model.probing import Stream
from vrha.model.runs import RestartOptions, RunKind, RunStatus
from vrha.model.spec import InstanceRef, Policy
from vrha.model.views import RouterStatus, RouterView, StandbyView
from vrha.probe.process import ProbeProcess

pytestmark = [pytest.mark.root, pytest.mark.system]


@pytest.fixture(scope="module")
def made() -> Iterator[Zone]:
    with tempfile.TemporaryDirectory(prefix="vrha-test-") as folder:
        places = Places(Path(folder))
        name = f"test-standby-{os.getpid()}"
        with zone(scenario(), name, env=places.env) as made, made.responding():
            yield made


@pytest.fixture
def standing(made: Zone) -> Iterator[Zone]:
    """Router r1 with a standby, which is gone afterwards, and nothing of it is left."""
    made.client.set_router("r1", Policy.STANDBY)
    await_in_sync(made)
    yield made
    made.client.set_router("r1", Policy.RESURRECT)
    wait_for(lambda: made.router("r1").standby is None, 20, "no standby")

    def expected() -> bool:
        hosted = [r.node for r in made.client.routers()]
        wanted = {node: hosted.count(node) * made.expected_objects() for node in made.lab.nodes}
        return {node: len(found) for node, found in made.objects().items()} == wanted

    wait_for(expected, 20, "one instance of each router and nothing else")


def standby(made: Zone) -> StandbyView:
    found = made.router("r1").standby
    assert found is not None
    return found


def await_in_sync(made: Zone) -> RouterView:
    def in_sync() -> bool:
        found = made.router("r1")
        return found.standby is not None and found.standby.in_sync

    wait_for(in_sync, 30, "a standby that is in sync")
    found = made.router("r1")
    assert found.status is RouterStatus.SERVING
    assert standby(made).node != found.node
    return found


def standby_ref(made: Zone) -> InstanceRef:
    router, generation = standby(made).instance.split("#")
    return InstanceRef(router, int(generation))


def entries(made: Zone, port: int, ref: InstanceRef, node: str) -> list[str]:
    """TCP connections to `port` as the instance knows them: tuples and state."""
    netns = namespace_name(ref)
    argv = ["ip", "netns", "exec", netns, "conntrack", "-L", "-p", "tcp", "--dport", str(port)]
    lines = made.lab.run(node, argv).splitlines()
    # Without what differs from moment to moment: the seconds left.
    return sorted(" ".join([*line.split()[:2], *line.split()[3:]]) for line in lines if line)


def known(made: Zone, port: int) -> list[str]:
    return entries(made, port, standby_ref(made), standby(made).node)


def served(made: Zone, port: int) -> list[str]:
    return entries(made, port, made.ref("r1"), made.router("r1").node)


@contextlib.contextmanager
def connections(made: Zone, port: int, count: int = 5) -> Iterator[None]:
    """Established through NAT from a machine without a public address of its own."""
    kind = "tcp-echo" if port == 8 else "tcp-push"
    hidden = made.lab.netns_path("vm11")
    stream = Stream("held", kind, OUTSIDE, port, netns=hidden, interval_ms=20, count=count)
    with ProbeProcess([stream], require_reply_s=5) as child:
        wait_for(
            lambda: len([e for e in served(made, port) if "ESTABLISHED" in e]) >= count,
            10,
            "connections",
        )
        yield
        child.stop()


def test_it_is_complete_silent_and_knows_every_connection(standing: Zone) -> None:
    found = await_in_sync(standing)
    ref, node = standby_ref(standing), standby(standing).node
    for name in ("active", "relay"):
        ports = standing.lab.run(node, ["nft", "list", "set", "bridge", "vrha", name])
        assert host_port_prefix(ref) not in ports
    assert str(ref).replace("#", "-") in standing.dnsmasqs(node)
    with connections(standing, 8), standing.asking("vm2", "10.1.1.1") as tenants:
        wait_for(lambda: known(standing, 8) == served(standing, 8) != [], 1, "all that is served")
        wait_for(lambda: tenants.results()["10.1.1.1"].turns, 5, "an answer for the gateway")
    assert len(tenants.results()["10.1.1.1"].turns) == 1
    assert standby(standing).memory_kib > 0
    # Closed by both ends, they go once the kernel forgets them; those that go there go here.
    standing.in_instance("r1", "conntrack", "-D", "-p", "tcp", "--dport", "8")
    wait_for(lambda: known(standing, 8) == [], 1, "none where none is served")
    assert standing.router("r1").instance == found.instance


@pytest.mark.parametrize("whose", ["serving", "standby"])
def test_it_catches_up_after_an_agent_was_killed(standing: Zone, whose: str) -> None:
    found = await_in_sync(standing)
    node = found.node if whose == "serving" else standby(standing).node
    ref, started = standby_ref(standing), agents_started(standing)
    agent = standing.lab.agent(node)
    with connections(standing, 9):
        wait_for(lambda: known(standing, 9) == served(standing, 9), 2, "all that is served")
        agent.kill()
        with connections(standing, 8):
            standing.in_instance("r1", "conntrack", "-D", "-p", "tcp", "--dport", "9")
            agent.start()
            wait_for(lambda: agents_started(standing) > started, 20, "the agent")
            wait_for(
                lambda: known(standing, 8) == served(standing, 8) != [], 20, "what began meanwhile"
            )
            # What ended meanwhile is gone, too; who still sends begins anew.
            wait_for(lambda: known(standing, 9) == served(standing, 9), 5, "what ended meanwhile")
            await_in_sync(standing)
    assert standby_ref(standing) == ref


@pytest.mark.long
def test_it_follows_the_next_generation_after_a_restart(standing: Zone) -> None:
    ref = standby_ref(standing)
    with connections(standing, 9), probing(standing.streams()) as results:
        run = standing.restart()
        assert run.status is RunStatus.DONE
        with connections(standing, 8):
            wait_for(
                lambda: known(standing, 8) == served(standing, 8) != [], 10, "what began afterwards"
            )
        await_in_sync(standing)
        assert [e for e in known(standing, 9) if "ESTABLISHED" in e]
    assert standby_ref(standing) == ref
    assert_nothing_lost(results[0])


def test_a_move_to_its_node_puts_it_elsewhere(standing: Zone) -> None:
    """And nobody notices."""
    node = standby(standing).node
    with probing(standing.all_streams()) as results:
        run = standing.client.move_router("r1", RestartOptions(node=node))
        assert standing.await_run(run.id).status is RunStatus.DONE
        wait_for(lambda: standby(standing).node != node, 20, "a standby elsewhere")
        assert await_in_sync(standing).node == node
    assert_nothing_lost(results[0])


@pytest.mark.long
def test_it_is_configured_in_place_when_the_router_changes(standing: Zone) -> None:
    ref = standby_ref(standing)
    desired = standing.client.desired()
    networks = tuple(replace(n, lease_seconds=7200) for n in desired.networks)
    standing.apply(replace(desired, networks=networks))
    path = standing.lab.folder / "state" / f"agent-{standby(standing).node}" / "instances"
    config = path / f"{ref.router}-{ref.generation}" / "dnsmasq.conf"
    wait_for(lambda: "7200" in config.read_text(), 10, "the new lease time")
    assert standby_ref(standing) == ref
    await_in_sync(standing)
    standing.apply(desired)


@pytest.mark.long
def test_one_that_has_lost_a_port_is_built_again(standing: Zone) -> None:
    ref, node = standby_ref(standing), standby(standing).node
    standing.lab.run(node, ["ip", "link", "del", f"{host_port_prefix(ref)}n0"])
    wait_for(lambda: standby_ref(standing) != ref, 30, "another standby")
    await_in_sync(standing)
    kinds = [run.kind for run in standing.client.runs(limit=20)]
    assert RunKind.STANDBY in kinds


def test_a_watcher_permits_it_nothing() -> None:
    """Not even at the time of its build, and it is no less complete for that. When somebody flushed
    the rules of its node it is ready again before it is needed."""
    with zone(scenario(), f"test-standby-w-{os.getpid()}", watched=True) as made:
        made.client.set_router("r1", Policy.STANDBY)
        await_in_sync(made)
        granted = {
            node: made.lab.run(node, ["nft", "list", "set", "bridge", "vrha", "granted"])
            for node in made.lab.nodes
        }
        assert host_port_prefix(made.ref("r1")) in granted[made.router("r1").node]
        prefix = host_port_prefix(standby_ref(made))
        assert not [node for node, ports in granted.items() if prefix in ports]
        node = standby(made).node
        asked = ["sh", "-c", "nft list set bridge vrha active || true"]
        assert prefix in made.lab.run(node, asked)
        made.lab.run(node, ["nft", "delete", "table", "bridge", "vrha"])
        wait_for(lambda: prefix in made.lab.run(node, asked), 30, "a standby that is ready again")
