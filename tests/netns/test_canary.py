"""The canary through real instances: what it measures, what it leaves, and when it keeps still."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, inventory, mac_of, machine, spec_of, until
from vrha.errors import StepError
from vrha.linux import names, netns, rtnetlink
from vrha.linux.canary import BASELINE, Canary, remove_leftovers
from vrha.linux.canarypath import paths
from vrha.linux.node import NodeKernel
from vrha.model.evidence import Measured
from vrha.model.spec import (
    Egress,
    Host,
    InstanceRef,
    InstanceSpec,
    Network,
    PortSpec,
    Protocol,
    Rule,
    Subnet,
    Verdict,
)

pytestmark = pytest.mark.root

ETH_P_ALL = 3
FAULT_S = 0.05


@contextmanager
def canary_of(spec: InstanceSpec, prepared: bool = True) -> Iterator[Canary]:
    """A canary through the instance, stopped after the block whatever happens."""
    home = netns.current()
    try:
        with rtnetlink.open_route() as route:
            canary = Canary(spec, route, home)
            if prepared:
                canary.prepare(spec.ref)
            try:
                yield canary
            finally:
                canary.stop()
    finally:
        os.close(home)


def serving(kernel: NodeKernel, spec: InstanceSpec) -> InstanceSpec:
    kernel.build(spec)
    kernel.unmute(spec.ref)
    return spec


def gateway() -> Machine:
    return machine("gw", "br-up", "203.0.113.1/24")


def sent(canary: Canary) -> int:
    return min(measured.sent for measured in canary.measured())


def entries(ref: InstanceRef) -> list[str]:
    """What could be left of a canary: in the instance, and on the bridges."""
    inside = sh(f"ip -n {names.namespace_name(ref)} neigh show nud permanent")
    bridges = sh("bridge fdb show br br-a") + sh("bridge fdb show br br-b")
    return [
        *inside.splitlines(),
        *(line for line in bridges.splitlines() if line.startswith("fa:")),
    ]


def with_egress(spec: InstanceSpec, egress: Egress) -> InstanceSpec:
    return replace(spec, networks=tuple(replace(n, egress=egress) for n in spec.networks))


def reasons(found: tuple[Measured, ...]) -> list[tuple[str, str]]:
    return [(m.stream, m.unavailable) for m in found]


def test_every_probe_through_a_healthy_router_is_answered_once(
    kernel: NodeKernel, state_dir: Path
) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    before = inventory(state_dir), entries(spec.ref)
    with canary_of(spec) as canary:
        began = time.time()
        canary.start()
        assert sent(canary) >= BASELINE
        assert until(lambda: sent(canary) >= 500)
        canary.distrust_lossy()
        found = canary.stop()
    assert reasons(found) == [("canary:red", ""), ("canary:blue", "")]
    for measured in found:
        assert (measured.lost, measured.duplicates, measured.gaps_ms) == (0, 0, ())
        assert measured.sent >= 500
        assert began <= measured.began <= time.time()
    assert (inventory(state_dir), entries(spec.ref)) == before
    assert "canary" not in [thread.name for thread in threading.enumerate()]


def test_a_muted_router_shows_as_one_gap_of_that_length(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    with canary_of(spec) as canary:
        canary.start()
        kernel.mute(spec.ref)
        muted = time.monotonic()
        time.sleep(FAULT_S)
        kernel.unmute(spec.ref)
        length_ms = (time.monotonic() - muted) * 1000
        seen = sent(canary)
        assert until(lambda: sent(canary) > seen + 200)
        while_running = canary.measured()
        found = canary.stop()
    for measured in (*while_running, *found):
        assert (measured.lost + measured.late_ticks) / length_ms > 0.6
        assert measured.lost / length_ms < 1.4
        ((_, gap_ms),) = measured.gaps_ms
        assert 0.7 < gap_ms / length_ms < 1.4


def test_young_probes_are_not_lost_yet(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    with canary_of(spec) as canary:
        canary.start()
        kernel.mute(spec.ref)
        muted = time.monotonic()
        seen = [canary.measured() for _ in range(3)]
        if time.monotonic() - muted < 0.1:
            assert {m.lost for found in seen for m in found} == {0}
        assert until(lambda: all(m.lost > 50 for m in canary.measured()))
        for measured in canary.stop():
            assert measured.lost > 50 + 50, "what is unanswered in the end is lost"


@pytest.mark.parametrize(
    "egress",
    [
        Egress(Verdict.DENY),
        Egress(Verdict.ALLOW, (Rule(Protocol.ICMP),)),
        Egress(Verdict.ALLOW, (Rule(remote=ip_network("203.0.113.0/24")),)),
        Egress(Verdict.DENY, (Rule(Protocol.ICMP, icmp_type=0),)),
    ],
)
def test_a_policy_that_denies_it_is_no_alarm(kernel: NodeKernel, egress: Egress) -> None:
    gateway()
    spec = serving(kernel, with_egress(spec_of(), egress))
    with canary_of(spec) as canary:
        canary.start()
        found = canary.stop()
    assert [m.unavailable for m in found] == ["egress-denied", "egress-denied"]
    assert {(m.sent, m.lost) for m in found} == {(0, 0)}


def test_a_policy_that_lets_it_through_is_measured(kernel: NodeKernel) -> None:
    gateway()
    let = Egress(Verdict.DENY, (Rule(Protocol.ICMP, icmp_type=8),))
    spec = serving(kernel, with_egress(spec_of(), let))
    with canary_of(spec) as canary:
        canary.start()
        assert [(m.unavailable, m.lost) for m in canary.stop()] == [("", 0), ("", 0)]


def test_without_a_way_out_there_is_nothing_to_measure(kernel: NodeKernel) -> None:
    whole = spec_of()
    router = whole.router
    assert router.uplink is not None
    alone = replace(
        whole,
        router=replace(router, uplink=None, source_nat=(), static_nat=(), ingress=()),
        ports=tuple(port for port in whole.ports if not port.is_uplink),
    )
    only_v6 = replace(router.uplink, gateways=(ip_address("2001:db8::1"),))
    taken = Host("odd", "02:00:00:00:00:12", (ip_address("10.1.1.0"),))
    red, blue = whole.networks
    odd = replace(whole, networks=(replace(red, hosts=(taken,)), blue))
    v6_port = replace(whole.ports[0], addresses=whole.ports[0].addresses[1:])
    for spec, wanted in (
        (alone, ["no-uplink", "no-uplink"]),
        (replace(whole, router=replace(router, uplink=only_v6)), ["no-gateway", "no-gateway"]),
        (odd, ["no-spare-address", ""]),
        (replace(whole, ports=(v6_port, *whole.ports[1:])), ["no-ipv4", ""]),
    ):
        assert [way.unavailable for way in paths(spec)] == wanted
    serving(kernel, alone)
    with canary_of(alone) as canary:
        canary.start()
        found = canary.stop()
    assert [(m.unavailable, m.sent, m.lost) for m in found] == [("no-uplink", 0, 0)] * 2


def test_a_gateway_that_does_not_answer_is_no_alarm(kernel: NodeKernel) -> None:
    spec = serving(kernel, spec_of())
    with canary_of(spec) as canary:
        canary.start()
        assert [(m.unavailable, m.lost) for m in canary.stop()] == [("no-reply", 0)] * 2


def test_a_gateway_that_answers_only_so_often_is_found_out_before_the_change(
    kernel: NodeKernel,
) -> None:
    limit = "limit rate over 20/second burst 60 packets drop"
    machine_ = gateway()
    machine_.run("nft", "add table ip t; add chain ip t c { type filter hook input priority 0; }")
    machine_.run("nft", f"add rule ip t c icmp type echo-request {limit}")
    one = spec_of()
    one = replace(one, networks=one.networks[:1], ports=(one.ports[0], one.ports[2]))
    one = replace(one, router=replace(one.router, networks=("red",)))
    serving(kernel, one)
    with canary_of(one) as canary:
        canary.start()
        assert canary.measured()[0].unavailable == ""
        assert until(lambda: canary.measured()[0].lost > 0)
        canary.distrust_lossy()
        (found,) = canary.stop()
    assert (found.unavailable, found.lost) == ("lossy-before", 0)


def test_a_namespace_that_goes_away_in_the_middle_is_loss_and_nothing_more(
    kernel: NodeKernel, state_dir: Path
) -> None:
    gateway()
    before = inventory(state_dir)
    spec = serving(kernel, spec_of())
    with canary_of(spec) as canary:
        canary.start()
        kernel.destroy(spec.ref)
        assert until(lambda: all(m.lost > 20 for m in canary.measured()))
        found = canary.stop()
    for measured in found:
        assert measured.lost > 20
        assert len(measured.gaps_ms) == 1
    assert inventory(state_dir) == before
    assert "\nfa:" not in "\n" + sh("bridge fdb show br br-a")


def test_a_bridge_that_goes_away_is_loss_and_nothing_more(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    with canary_of(spec) as canary:
        canary.start()
        sh("ip link del br-a")
        assert until(lambda: canary.measured()[0].lost > 20)
        red, blue = canary.stop()
    assert red.lost > 20
    assert (blue.unavailable, blue.lost) == ("", 0)


def test_a_missing_bridge_or_instance(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    with canary_of(spec) as canary:
        with pytest.raises(StepError) as refused:
            canary.prepare(InstanceRef("edge", 9))
        assert refused.value.code == "no-instance"
        sh("ip link del br-a")
        canary.start()
        assert reasons(canary.stop()) == [("canary:red", "no-bridge"), ("canary:blue", "")]


def test_it_follows_to_the_successor(kernel: NodeKernel) -> None:
    """A successor with the old MACs takes over within one transaction of the kernel."""
    gateway()
    old = serving(kernel, spec_of(1))
    new = replace(old, ref=InstanceRef("edge", 2), epoch=2)
    kernel.build(new)
    before = entries(old.ref) + entries(new.ref)
    with canary_of(old) as canary:
        canary.prepare(new.ref)
        canary.prepare(new.ref)
        canary.start()
        kernel.swap(old.ref, new.ref)
        seen = sent(canary)
        assert until(lambda: sent(canary) > seen + 200)
        for measured in canary.stop():
            assert measured.lost < 100
            assert sum(length for _, length in measured.gaps_ms) < 200
    assert entries(old.ref) + entries(new.ref) == before


def test_two_owners_show_as_duplicates(kernel: NodeKernel) -> None:
    outside = gateway()
    old = serving(kernel, spec_of(1))
    new = replace(old, ref=InstanceRef("edge", 2), epoch=2)
    kernel.build(new)
    mac = outside.run("cat", "/sys/class/net/e0/address").strip()
    second = names.namespace_name(new.ref)
    sh(f"ip -n {second} neigh add 203.0.113.1 dev u0 lladdr {mac} nud permanent")
    with canary_of(old) as canary:
        canary.prepare(new.ref)
        canary.start()
        for spec in (old, new):
            sh(f"bridge link set dev {names.host_port(spec.ref, 'n0')} learning off")
        sh(f"bridge fdb del {old.ports[0].mac} dev {names.host_port(old.ref, 'n0')} master")
        kernel.unmute(new.ref)
        seen = sent(canary)
        assert until(lambda: sent(canary) > seen + 200)
        red = canary.stop()[0]
    assert red.duplicates > 100


def test_a_busy_process_is_late_and_neither_bursts_nor_loses(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    usual = sys.getswitchinterval()
    with canary_of(spec) as canary:
        canary.start()
        before = canary.measured()
        began = time.monotonic()
        sys.setswitchinterval(0.05)
        try:
            while time.monotonic() - began < 0.3:
                pass
        finally:
            sys.setswitchinterval(usual)
        found = canary.stop()
        ticks = (time.monotonic() - began) * 1000
    for first, last in zip(before, found, strict=True):
        assert last.late_ticks - first.late_ticks > ticks / 3
        assert last.sent - first.sent < ticks / 2
        assert (last.lost, last.gaps_ms) == (0, ())


def test_many_networks_share_the_probes_of_each_tick(kernel: NodeKernel) -> None:
    gateway()
    spec = spec_of()
    u0 = spec.ports[-1]
    networks, ports = [], []
    for number in range(6):
        sh(f"ip link add br-n{number} type bridge")
        sh(f"ip link set br-n{number} up")
        subnet = Subnet(ip_network(f"10.2.{number}.0/24"), ip_address(f"10.2.{number}.1"))
        networks.append(Network(f"net{number}", f"br-n{number}", (subnet,)))
        ports.append(
            PortSpec(
                f"n{number}",
                f"net{number}",
                f"br-n{number}",
                mac_of(7, number),
                (subnet.interface,),
            )
        )
    router = replace(spec.router, networks=tuple(n.name for n in networks), static_nat=())
    router = replace(router, ingress=())
    wide = replace(spec, router=router, networks=tuple(networks), ports=(*ports, u0))
    serving(kernel, wide)
    with canary_of(wide) as canary:
        canary.start()
        assert until(lambda: sent(canary) > 100)
        found = canary.stop()
    assert [(m.unavailable, m.interval_ms, m.lost) for m in found] == [("", 2.0, 0)] * 6


def test_no_tenant_and_no_ip_layer_sees_a_reply(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    sh("sysctl -qw net.ipv4.ip_forward=1")
    sh("ip route add 10.1.1.0/24 dev br-b")
    client = machine("vm", "br-a", "10.1.1.50/24")
    client.run("ip", "link", "set", "e0", "promisc", "on")
    way = paths(spec)[0]
    with client.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
        sock.bind(("e0", ETH_P_ALL))
        sock.settimeout(0.3)
        forwarded = ip_counter("IpForwDatagrams")
        with canary_of(spec) as canary:
            canary.start()
            assert until(lambda: sent(canary) >= 200)
            canary.stop()
        assert ip_counter("IpForwDatagrams") == forwarded
        heard = frames_heard(sock)
    assert [f for f in heard if f[:6] == way.mac] == []


def ip_counter(name: str) -> int:
    lines = [line.split() for line in sh("nstat -asz " + name).splitlines()]
    return next(int(line[1]) for line in lines if line[0] == name)


def frames_heard(sock: socket.socket) -> list[bytes]:
    heard = []
    while True:
        try:
            heard.append(sock.recv(2048))
        except TimeoutError:
            return heard


def test_what_a_killed_process_has_left_is_removed_later(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    clean = entries(spec.ref)
    home = netns.current()
    try:
        with rtnetlink.open_route() as route, canary_of(spec) as canary:
            canary.start()
            assert entries(spec.ref) != clean
            for _ in range(2):
                remove_leftovers(spec, (spec.ref, InstanceRef("edge", 9)), route, home)
                assert entries(spec.ref) == clean
    finally:
        os.close(home)


def test_without_its_neighbour_entry_it_is_unavailable(kernel: NodeKernel) -> None:
    gateway()
    spec = serving(kernel, spec_of())
    with canary_of(spec, prepared=False) as canary:
        canary.start()
        assert {m.unavailable for m in canary.stop()} == {"no-reply"}


def test_stopped_before_it_was_started(kernel: NodeKernel) -> None:
    spec = serving(kernel, spec_of())
    before = entries(spec.ref)
    with canary_of(spec) as canary:
        assert entries(spec.ref) != before
        assert {m.unavailable for m in canary.stop()} == {"not-running"}
    assert entries(spec.ref) == before
