"""DHCP over the loss of a node: no client is refused, and none is offered what another one has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.netns.dhcpkit import NO_BINDING, REPLY, Dhcp6, guest, mac_of_guest, settle
from tests.netns.nodekit import spec_of, until
from tests.system.guestkit import ACK
from vrha.agent import leases as telling
from vrha.agent.leases import LeaseTeller
from vrha.core.leases import cleaned
from vrha.errors import UnreachableError
from vrha.linux.node import NodeKernel
from vrha.model.messages import Leases
from vrha.model.spec import DhcpRange, InstanceRef, InstanceSpec

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

OLD, NEW = InstanceRef("edge", 1), InstanceRef("edge", 2)


def both(generation: int) -> InstanceSpec:
    """A router with a range in IPv4 and one in IPv6."""
    spec = spec_of(generation)
    red, blue = spec.networks
    wide = DhcpRange(ip_address("fd00:1::1000"), ip_address("fd00:1::1fff"))
    subnets = (red.subnets[0], replace(red.subnets[1], dhcp=wide))
    return replace(spec, networks=(replace(red, subnets=subnets), blue))


def serve(kernel: NodeKernel, spec: InstanceSpec, leases: str = "") -> None:
    """An instance as it is built on a node that knows no other one of the router."""
    kernel.build(spec, leases=leases)
    kernel.unmute(spec.ref)


def kept(kernel: NodeKernel, ref: InstanceRef) -> str:
    return kernel.instances.leases(ref).decode()


Story = Callable[[str], str]
STORIES: dict[str, Story] = {
    "all": lambda leases: leases,
    "old": lambda leases: "".join(leases.splitlines(keepends=True)[:1]),
    "none": lambda leases: "",
}


@pytest.mark.parametrize("story", STORIES)
def test_no_client_is_refused_after_a_failover(kernel: NodeKernel, story: str) -> None:
    """With the leases, with those of before the second client came, with none at all."""
    serve(kernel, spec_of(1))
    clients = [guest(1), guest(2)]
    assert [client.discover() for client in clients] == [ACK, ACK]
    for client in clients:
        settle(client)
    had = [client.address for client in clients]
    known = STORIES[story](kept(kernel, OLD))
    kernel.destroy(OLD)
    for generation, ask in enumerate(("renew", "rebind", "reboot"), 2):
        # A new one each time: what was asked before must be unknown to it.
        spec = spec_of(generation)
        serve(kernel, spec, known)
        assert [getattr(client, ask)() for client in clients] == [ACK, ACK], ask
        assert [client.address for client in clients] == had
        assert len(kept(kernel, spec.ref).splitlines()) == 2
        kernel.destroy(spec.ref)


def test_nobody_is_offered_what_a_client_has(kernel: NodeKernel) -> None:
    serve(kernel, spec_of(1))
    living, other, third = guest(1), guest(2), guest(3)
    assert living.discover() == ACK
    settle(living)
    kernel.destroy(OLD)
    serve(kernel, spec_of(2))
    assert other.discover(wanted=living.address) == ACK
    assert other.address != living.address
    # Another node's word that there are no more leases: it offers at once again.
    kernel.mute(NEW)
    kernel.instances.put_leases(NEW, kept(kernel, NEW).encode(), complete=True)
    kernel.unmute(NEW)
    began = time.monotonic()
    assert third.discover() == ACK
    assert time.monotonic() - began < 2
    assert living.renew() == ACK


def test_a_first_instance_and_one_beside_the_old_one_offer_at_once(kernel: NodeKernel) -> None:
    clients = iter((guest(1), guest(2)))
    serve(kernel, spec_of(1))
    for ref in (OLD, NEW):
        began = time.monotonic()
        assert next(clients).discover() == ACK
        assert time.monotonic() - began < 2
        if ref == OLD:
            kernel.build(spec_of(2), leases_from=OLD)
            kernel.swap(OLD, NEW)


def test_ipv6_clients_keep_their_address(kernel: NodeKernel) -> None:
    """Without leases a new server's identity is unknown: the client rebinds (RFC 8415 18.2.5)."""
    serve(kernel, both(1))
    guest(1)
    client = Dhcp6("g1", mac_of_guest(1))
    assert client.solicit() == REPLY
    address = client.address
    # Unlike that for IPv4, this answer comes before the file is written.
    assert until(lambda: address in kept(kernel, OLD))
    known = kept(kernel, OLD)
    identity = next(line for line in known.splitlines(keepends=True) if line.startswith("duid"))
    kernel.destroy(OLD)
    for generation, leases in enumerate((known, identity, ""), 2):
        spec = both(generation)
        serve(kernel, spec, leases)
        if leases == identity:
            assert (client.renew(), client.status) == (REPLY, NO_BINDING)
            assert (client.request(), client.status) == (REPLY, 0)
        elif leases:
            assert (client.renew(), client.status) == (REPLY, 0)
        assert (client.rebind(), client.status, client.address) == (REPLY, 0, address)
        kernel.destroy(spec.ref)


def test_a_standby_takes_leases_while_it_is_muted_only(kernel: NodeKernel) -> None:
    lease = "4102444800 02:00:00:00:00:42 10.1.1.142 guest 01:02:00:00:00:00:42\n"
    kernel.build(spec_of(1))
    kernel.instances.refresh_leases(OLD, lease.encode())
    assert kept(kernel, OLD) == lease
    kernel.unmute(OLD)
    kernel.instances.refresh_leases(OLD, lease.replace("142", "143").encode())
    assert kept(kernel, OLD) == lease


class Told:
    """An orchestrator that hears of leases, or does not."""

    def __init__(self) -> None:
        self.messages: list[Leases] = []
        self.away = False

    def hear(self, message: Leases) -> None:
        if self.away:
            raise UnreachableError("unreachable", "nobody is there")
        self.messages.append(message)

    def last(self, ref: InstanceRef) -> str | None:
        found = [message.body for message in self.messages if message.instance == ref]
        return found[-1] if found else None


def has_told(told: Told, leases: str) -> bool:
    return told.last(OLD) == leases


@contextmanager
def teller(kernel: NodeKernel, told: Told) -> Iterator[None]:
    one = LeaseTeller(kernel.instances, "n1", "life", told.hear)
    stop = threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_every_new_lease_is_told_and_all_of_them_after_a_start(kernel: NodeKernel) -> None:
    serve(kernel, spec_of(1))
    clients = [guest(number) for number in range(1, 6)]
    told = Told()
    with teller(kernel, told):
        assert until(lambda: told.last(OLD) == "")
        for client in clients:
            assert client.discover() == ACK
        assert until(lambda: told.last(OLD) == cleaned(kept(kernel, OLD)))
        assert all(client.address in str(told.last(OLD)) for client in clients)
        numbers = [message.number for message in told.messages]
        assert numbers == sorted(set(numbers))
        told.away = True
        assert clients[0].release() is None
        assert until(lambda: clients[0].address not in kept(kernel, OLD))
        told.away = False
        assert until(lambda: clients[0].address not in str(told.last(OLD)))
    again = Told()
    with teller(kernel, again):
        assert until(lambda: again.last(OLD) == told.last(OLD))
    assert (again.messages[0].epoch, again.messages[0].node) == (1, "n1")


def test_a_new_instance_is_told_of_and_one_that_is_gone_forgotten(
    kernel: NodeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "FRESH_S", 0.0)
    told = Told()
    lease = "4102444800 02:00:00:00:00:42 10.1.1.142 guest 01:02:00:00:00:00:42\n"
    with teller(kernel, told):
        for name in ("guest", "other"):
            had = lease.replace("guest", name)
            kernel.build(spec_of(1), leases=had)
            assert until(partial(has_told, told, had))
            kernel.destroy(OLD)
        kernel.build(spec_of(2))
        kernel.build(spec_of(3), leases=lease)
        assert until(lambda: told.last(InstanceRef("edge", 3)) == lease)
        # Nothing to tell of one that has none and never had.
        assert told.last(NEW) is None


def test_renewals_alone_are_told_seldom(kernel: NodeKernel, state_dir: Path) -> None:
    serve(kernel, spec_of(1))
    told = Told()
    path = state_dir / "instances/edge-1/leases"
    line = "02:00:00:00:00:42 10.1.1.142 guest 01:02:00:00:00:00:42\n"
    path.write_text(f"4102444800 {line}")
    with teller(kernel, told):
        assert until(lambda: told.last(OLD) is not None)
        path.write_text(f"4102444900 {line}")
        other = line.replace("42", "43")
        assert not until(lambda: len(told.messages) > 1, 1.0)
        path.write_text(f"4102444900 {line}4102444900 {other}")
        assert until(lambda: other in str(told.last(OLD)))
    assert len(told.messages) == 2
