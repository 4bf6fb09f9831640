"""The canary through real instances: what it measures, and when it keeps still."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.netns.canarykit import canary_of, entries, gateway, sent, serving
from tests.netns.conftest import sh
from tests.netns.nodekit import inventory, mac_of, machine, spec_of, until
from vrha.linux.canary import BASELINE
from vrha.linux.canarypath import paths
from vrha.linux.node import NodeKernel
from vrha.model.evidence import Measured
from vrha.model.spec import (
    Egress,
    Host,
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
