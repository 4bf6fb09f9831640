"""Whether neighbours answer an instance: seen by real machines on its bridges."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Interface, ip_address

import pytest

from tests.netns.conftest import sh
from tests.netns.nodekit import Machine, mac_of, machine, spec_of, until
from vrha.core import names
from vrha.errors import StepError
from vrha.linux import netns
from vrha.linux.closing import SlowCloser
from vrha.linux.neighbour_check import NEIGHBOURS, PortAnswers, neighbour_check
from vrha.linux.node import NodeKernel
from vrha.model.spec import InstanceSpec

pytestmark = [pytest.mark.root, pytest.mark.unhurried]


def check(spec: InstanceSpec) -> dict[str, PortAnswers]:
    home = netns.current()
    inner = netns.open_named(names.namespace_name(spec.ref))
    closer = SlowCloser()
    try:
        return {found.port: found for found in neighbour_check(spec, inner, home, closer)}
    finally:
        closer.drain()
        os.close(inner)
        os.close(home)


def addresses(*texts: str) -> set[object]:
    return {ip_address(text) for text in texts}


def acquainted(kernel: NodeKernel, spec: InstanceSpec) -> tuple[Machine, Machine]:
    """A tenant machine and a gateway that the serving instance has got to know."""
    client = machine("vm", "br-a", "10.1.1.50/24", "fd00:1::50/64", via="10.1.1.1")
    outside = machine("gw", "br-up", "203.0.113.1/24", "2001:db8::1/64")
    kernel.build(spec)
    kernel.unmute(spec.ref)
    assert until(lambda: client.pings("203.0.113.1") and client.pings("fd00:1::1"))
    return client, outside


def test_all_neighbours_answer(kernel: NodeKernel) -> None:
    spec = spec_of()
    acquainted(kernel, spec)
    found = check(spec)
    assert set(found) == {"n0", "n1", "u0"}
    assert addresses("10.1.1.50", "fd00:1::50") <= set(found["n0"].answered)
    assert addresses("203.0.113.1", "2001:db8::1") <= set(found["u0"].answered)
    assert all(answers.silent == () for answers in found.values())
    assert found["n1"] == PortAnswers("n1", (), ())


@pytest.mark.parametrize("down", ["vm", "gw"])
def test_a_machine_that_is_gone_is_named(kernel: NodeKernel, down: str) -> None:
    spec = spec_of()
    acquainted(kernel, spec)
    second = machine("vm2", "br-a", "10.1.1.51/24", "fd00:1::51/64")
    assert until(lambda: second.pings("10.1.1.1") and second.pings("fd00:1::1"))
    sh(f"ip link set p-{down} down")
    found = check(spec)
    silent = {address for answers in found.values() for address in answers.silent}
    answered = {address for answers in found.values() for address in answers.answered}
    inside, outside = (
        addresses("10.1.1.50", "fd00:1::50"),
        addresses("203.0.113.1", "2001:db8::1"),
    )
    gone, there = (inside, outside) if down == "vm" else (outside, inside)
    there |= addresses("10.1.1.51", "fd00:1::51")
    assert gone <= silent
    assert there <= answered
    assert not gone & answered
    assert not there & silent


def test_the_question_tells_the_neighbours_the_macs_of_the_successor(kernel: NodeKernel) -> None:
    old, new = spec_of(1), spec_of(2)
    client, outside = acquainted(kernel, old)
    kernel.build(new)
    for line in (
        f"n {names.namespace_name(new.ref)} neigh add 10.1.1.50 dev n0 nud reachable lladdr ",
        f"n {names.namespace_name(new.ref)} neigh add fd00:1::50 dev n0 nud reachable lladdr ",
    ):
        sh("ip -" + line + client.run("cat", "/sys/class/net/e0/address").strip())
    for port, other in ((p.name, names.host_port(new.ref, p.name)) for p in new.ports):
        sh(f"nft delete element bridge vrha active {{ {names.host_port(old.ref, port)} }}")
        sh(f"nft add element bridge vrha active {{ {other} }}")
    assert client.neighbour("10.1.1.1") == mac_of(1, 0)
    found = check(new)
    assert addresses("10.1.1.50", "fd00:1::50") == set(found["n0"].answered)
    assert addresses("203.0.113.1", "2001:db8::1") == set(found["u0"].answered)
    assert client.neighbour("10.1.1.1") == mac_of(2, 0)
    assert client.neighbour("fd00:1::1") == mac_of(2, 0)
    assert outside.neighbour("203.0.113.10") == mac_of(2, 2)


def test_a_muted_instance_gets_no_answer(kernel: NodeKernel) -> None:
    spec = spec_of()
    acquainted(kernel, spec)
    kernel.mute(spec.ref)
    assert {len(answers.answered) for answers in check(spec).values()} == {0}


def test_the_last_confirmed_neighbours_are_asked(kernel: NodeKernel) -> None:
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    space = names.namespace_name(spec.ref)
    for number in range(NEIGHBOURS + 4):
        state = "permanent" if number < 2 else "reachable"
        mac = f"02:00:00:00:01:{number:02x}"
        sh(f"ip -n {space} neigh add 10.1.2.{100 + number} dev n1 lladdr {mac} nud {state}")
    sh(f"ip -n {space} neigh add 10.1.2.99 dev n1 nud failed")
    silent = set(check(spec)["n1"].silent)
    assert len(silent) == NEIGHBOURS
    assert not silent & addresses("10.1.2.99", "10.1.2.100", "10.1.2.101")


def test_a_port_that_is_missing_is_an_error(kernel: NodeKernel) -> None:
    spec = spec_of()
    kernel.build(spec)
    extra = replace(spec.ports[0], name="n9", addresses=(IPv4Interface("10.9.9.1/24"),))
    with pytest.raises(StepError) as refused:
        check(replace(spec, ports=(*spec.ports, extra)))
    assert refused.value.code == "neighbour-check-failed"
