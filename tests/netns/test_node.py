"""Build, observe, adopt, configure and destroy instances on a real node."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import inventory, machine, spec_of, until, with_uplink_address
from vrha.core import names
from vrha.errors import StepError
from vrha.linux import rtnetlink, upstream
from vrha.linux.node import NodeKernel
from vrha.model.spec import Backend, Host, InstanceRef, InstanceSpec, Route
from vrha.model.state import Activity, Upstream
from vrha.render.digest import expected_digest

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


def in_instance(ref: InstanceRef, command: str) -> str:
    return sh(f"ip netns exec {names.namespace_name(ref)} {command}")


def host_ends() -> list[tuple[str, int, str]]:
    """Name, index and tag of the host-side port ends: what a touched port would change."""
    with rtnetlink.open_route() as route:
        return [(n.name, n.index, n.alias) for n in rtnetlink.links(route) if n.alias]


def dnsmasq_pid(state_dir: Path, spec: InstanceSpec) -> int:
    return int((state_dir / f"instances/edge-{spec.ref.generation}/dnsmasq.pid").read_text())


@pytest.mark.parametrize("backend", list(Backend))
def test_a_built_instance_is_complete_and_muted_and_goes_without_a_trace(
    kernel: NodeKernel, state_dir: Path, backend: Backend
) -> None:
    machine("gw", "br-up", "203.0.113.1/24", "2001:db8::1/64")
    before = inventory(state_dir)
    spec = spec_of(backend=backend)
    kernel.build(spec)
    (found,) = kernel.observe()
    assert (found.ref, found.epoch, found.activity) == (spec.ref, 1, Activity.MUTED)
    assert found.dnsmasq_alive
    test = kernel.self_test(spec)
    assert (test.forwarding, test.not_forwarding) == (("n0", "n1", "u0"), ())
    assert test.rules == expected_digest(spec)
    assert test.dns_answered
    assert test.upstream is Upstream.REACHABLE
    kernel.destroy(spec.ref)
    assert kernel.observe() == ()
    assert inventory(state_dir) == before


def test_a_destroyed_or_unknown_instance_can_be_destroyed_again(kernel: NodeKernel) -> None:
    spec = spec_of()
    kernel.build(spec)
    kernel.destroy(spec.ref)
    kernel.destroy(spec.ref)
    kernel.destroy(InstanceRef("never-was", 7))


def test_addresses_routes_and_parameters_of_an_instance(kernel: NodeKernel) -> None:
    spec = replace(
        spec_of(),
        router=replace(
            spec_of().router, routes=(Route(ip_network("10.9.0.0/16"), ip_address("10.1.2.9")),)
        ),
    )
    kernel.build(spec)
    addresses = in_instance(spec.ref, "ip -o addr")
    for wanted in (
        "n0    inet 10.1.1.1/24",
        "n0    inet6 fd00:1::1/64",
        "n0    inet6 fe80::1/64",
        "n1    inet 10.1.2.1/24",
        "u0    inet 203.0.113.10/24",
        "u0    inet 203.0.113.11/24",
        "u0    inet6 2001:db8::10/64",
        "u0    inet6 fe80::76:ff:fe00:102/64",
    ):
        assert wanted in addresses
    assert "tentative" not in addresses
    assert "dadfailed" not in addresses
    assert "n1    inet6" not in addresses
    routes = in_instance(spec.ref, "ip route")
    assert "default via 203.0.113.1 dev u0" in routes
    assert "10.9.0.0/16 via 10.1.2.9 dev n1" in routes
    assert "default via 2001:db8::1 dev u0" in in_instance(spec.ref, "ip -6 route")
    for name, value in (
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.ipv6.conf.n0.accept_dad", "0"),
        ("net.ipv6.conf.n0.accept_ra", "0"),
        ("net.netfilter.nf_conntrack_events", "1"),
        ("net.ipv4.conf.n0.rp_filter", "1"),
        ("net.ipv4.conf.u0.rp_filter", "2"),
    ):
        assert in_instance(spec.ref, f"sysctl -n {name}").strip() == value, name


def test_upstream_that_does_not_answer_is_reported(kernel: NodeKernel) -> None:
    spec = spec_of()
    kernel.build(spec)
    assert kernel.self_test(spec).upstream is Upstream.UNREACHABLE
    machine("gw", "br-up", "203.0.113.1/24")
    assert kernel.self_test(spec).upstream is Upstream.UNREACHABLE, "IPv6 gateway is missing"
    machine("gw6", "br-up", "2001:db8::1/64")
    assert kernel.self_test(spec).upstream is Upstream.REACHABLE


def test_what_the_upstream_has_answered_holds_for_a_moment_and_no_longer(
    kernel: NodeKernel,
) -> None:
    spec = spec_of()
    kernel.build(spec)
    machine("gw", "br-up", "203.0.113.1/24", "2001:db8::1/64")
    asked = time.monotonic()
    assert kernel.self_test(spec).upstream is Upstream.REACHABLE
    sh("ip link set p-gw down")
    if kernel.self_test(spec).upstream is not Upstream.REACHABLE:
        assert time.monotonic() - asked > upstream.FRESH_S
    assert until(lambda: kernel.self_test(spec).upstream is Upstream.UNREACHABLE)


def test_building_twice_changes_nothing_and_a_new_process_adopts(
    kernel: NodeKernel, state_dir: Path
) -> None:
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    pid = dnsmasq_pid(state_dir, spec)
    before = inventory(state_dir), host_ends()
    assert kernel.build(spec) == ()
    other = NodeKernel(state_dir)
    try:
        (found,) = other.observe()
        assert found.activity is Activity.ACTIVE
        assert other.build(spec) == ()
    finally:
        other.close()
    assert (inventory(state_dir), host_ends()) == before
    assert dnsmasq_pid(state_dir, spec) == pid


def test_a_different_instance_is_rebuilt_when_muted_and_refused_when_active(
    kernel: NodeKernel,
) -> None:
    spec = spec_of()
    other = with_uplink_address(spec, "203.0.113.77/24")
    kernel.build(spec)
    kernel.unmute(spec.ref)
    with pytest.raises(StepError) as refused:
        kernel.build(other)
    assert refused.value.code == "instance-active"
    kernel.mute(spec.ref)
    kernel.build(other)
    assert kernel.self_test(other).rules == expected_digest(other)
    assert "203.0.113.77" in in_instance(spec.ref, "ip -o addr")


def test_two_generations_stand_side_by_side(kernel: NodeKernel) -> None:
    old, new = spec_of(1), spec_of(2)
    kernel.build(old)
    kernel.unmute(old.ref)
    kernel.build(new)
    kernel.swap(old.ref, new.ref)
    assert [(i.ref, i.activity) for i in kernel.observe()] == [
        (old.ref, Activity.MUTED),
        (new.ref, Activity.ACTIVE),
    ]
    kernel.destroy(old.ref)
    (left,) = kernel.observe()
    assert (left.ref, left.activity, left.dnsmasq_alive) == (new.ref, Activity.ACTIVE, True)
    assert kernel.self_test(new).not_forwarding == ()


def test_destroy_spares_a_foreign_link_that_took_the_same_group(kernel: NodeKernel) -> None:
    spec = spec_of()
    kernel.build(spec)
    sh(f"ip link add stranger group {names.link_group(spec.ref)} type veth")
    kernel.destroy(spec.ref)
    assert "stranger" in sh("ip -o link")
    assert names.host_port_prefix(spec.ref) not in sh("ip -o link")


@pytest.mark.parametrize("how", ["umount -l /run/netns/{0}", "ip netns delete {0}"])
def test_destroy_ends_what_lives_in_a_namespace_whose_name_is_gone(
    kernel: NodeKernel, state_dir: Path, how: str
) -> None:
    before = inventory(state_dir)
    spec = spec_of()
    kernel.build(spec)
    sh(how.format(names.namespace_name(spec.ref)))
    kernel.destroy(spec.ref)
    assert inventory(state_dir) == before


def test_leases_are_carried_over(kernel: NodeKernel, state_dir: Path) -> None:
    old, new = spec_of(1), spec_of(2)
    kernel.build(old)
    lease = "4102444800 02:00:00:00:00:42 10.1.1.142 guest 01:02:00:00:00:00:42\n"
    (state_dir / "instances/edge-1/leases").write_text(lease)
    kernel.build(new, leases_from=old.ref)
    assert lease in (state_dir / "instances/edge-2/leases").read_text()
    kernel.build(spec_of(3), leases_from=InstanceRef("edge", 99))


def test_configure_changes_a_live_instance_in_place(kernel: NodeKernel, state_dir: Path) -> None:
    first = spec_of()
    kernel.build(first)
    kernel.unmute(first.ref)
    pid, ports = dnsmasq_pid(state_dir, first), host_ends()
    second = with_uplink_address(replace(first, epoch=2), "203.0.113.77/24")
    red = replace(
        second.networks[0], hosts=(Host("vm9", "02:00:00:00:00:99", (ip_address("10.1.1.99"),)),)
    )
    routed = replace(
        second.router, routes=(Route(ip_network("10.9.0.0/16"), ip_address("10.1.2.9")),)
    )
    second = replace(second, networks=(red, second.networks[1]), router=routed)
    client = machine("vm", "br-a", "10.1.1.50/24", via="10.1.1.1")
    for _ in range(2):
        kernel.configure(second)
        assert kernel.self_test(second).rules == expected_digest(second)
        assert "203.0.113.77/24" in in_instance(first.ref, "ip -o addr")
        assert "10.9.0.0/16 via 10.1.2.9 dev n1" in in_instance(first.ref, "ip route")
        (found,) = kernel.observe()
        assert (found.epoch, found.activity) == (2, Activity.ACTIVE)
    assert until(lambda: client.resolve("10.1.1.1", "vm9.red.example") == "10.1.1.99")
    assert dnsmasq_pid(state_dir, first) == pid
    kernel.configure(first)
    assert "203.0.113.77/24" not in in_instance(first.ref, "ip -o addr")
    assert "10.9.0.0/16" not in in_instance(first.ref, "ip route")
    assert "default via 203.0.113.1 dev u0" in in_instance(first.ref, "ip route")
    assert host_ends() == ports


def test_a_dnsmasq_that_died_comes_back_with_its_leases(
    kernel: NodeKernel, state_dir: Path
) -> None:
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    leases = state_dir / "instances" / "edge-1" / "leases"
    leases.write_text("4102444800 02:00:00:00:00:77 10.1.1.177 guest *\n")
    pid = int((state_dir / "instances" / "edge-1" / "dnsmasq.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: not kernel.observe()[0].dnsmasq_alive)
    assert not kernel.self_test(spec).dns_answered
    kernel.revive(spec.ref)
    assert kernel.observe()[0].dnsmasq_alive
    assert kernel.self_test(spec).dns_answered
    assert "10.1.1.177" in leases.read_text()
    second = int((state_dir / "instances" / "edge-1" / "dnsmasq.pid").read_text())
    kernel.revive(spec.ref)
    assert int((state_dir / "instances" / "edge-1" / "dnsmasq.pid").read_text()) == second
