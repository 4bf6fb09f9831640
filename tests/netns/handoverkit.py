"""A router that serves, its replacement beside it, and what tenants notice of a handover."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.netns.nodekit import Machine, machine, spec_of, until
from vrha.lab.owners import OwnerWatch
from vrha.linux import mute, netns
from vrha.linux.build import host_ports
from vrha.linux.node import NodeKernel
from vrha.model.probing import ConnectionsResult, Result, Stream
from vrha.model.spec import Backend, InstanceSpec
from vrha.model.state import Activity
from vrha.probe.process import ProbeProcess, serving

GATEWAY, PUBLIC, UPSTREAM = "10.1.1.1", "203.0.113.11", "203.0.113.1"
UPSTREAM6 = "2001:db8::1"
ECHO, PUSH = 8, 9
"""Ports of long connections."""


def twin_of(spec: InstanceSpec, generation: int = 2) -> InstanceSpec:
    """A replacement with the same MACs."""
    ref = replace(spec.ref, generation=generation)
    return replace(spec, ref=ref, epoch=generation)


@dataclass
class Street:
    """Two tenants, the outside, and the router between them."""

    kernel: NodeKernel
    old: InstanceSpec
    inside: Machine
    other: Machine
    outside: Machine
    made: int = field(default=1)

    def twin(self) -> InstanceSpec:
        """The next replacement, built."""
        self.made += 1
        spec = twin_of(self.old, self.made)
        self.kernel.build(spec)
        return spec

    def hand_over(self, new: InstanceSpec, hold: bool = False, max_lost: int | None = None) -> None:
        """All steps, with the old one destroyed at the end."""
        handovers, old = self.kernel.handovers, self.old
        handovers.sync(old.ref, new.ref)
        handovers.flip(old.ref, new.ref, hold)
        handovers.verify(old.ref, new.ref, max_lost)
        self.kernel.destroy(old.ref)
        self.old = new

    def activities(self) -> dict[int, Activity]:
        """What each generation does."""
        return {found.ref.generation: found.activity for found in self.kernel.observe()}

    def assert_only(self, spec: InstanceSpec) -> None:
        """This instance serves, and nothing else is in any set."""
        switch = mute.Switch("/usr/sbin/nft")
        try:
            assert switch.active() == frozenset(host_ports(spec))
            assert switch.relays() == frozenset()
        finally:
            switch.close()


@contextmanager
def street(kernel: NodeKernel, backend: Backend = Backend.NFTABLES) -> Iterator[Street]:
    """The router serves, and everything on both sides of it is reachable."""
    inside = machine("vm", "br-a", "10.1.1.11/24", "fd00:1::11/64", via=GATEWAY, via6="fe80::1")
    other = machine("vm2", "br-b", "10.1.2.12/24", via="10.1.2.1")
    outside = machine("gw", "br-up", f"{UPSTREAM}/24", f"{UPSTREAM6}/64")
    outside.run("ip", "route", "add", "fd00:1::/64", "via", "2001:db8::10")
    spec = spec_of(backend=backend)
    kernel.build(spec)
    kernel.unmute(spec.ref)
    with serving(7, [str(netns.path_of(name)) for name in ("vm", "gw")]):
        for target in (UPSTREAM, UPSTREAM6):
            assert until(lambda target=target: inside.pings(target, 1))
        assert other.pings(UPSTREAM)
        assert outside.pings(PUBLIC)
        yield Street(kernel, spec, inside, other, outside)


def streams() -> tuple[Stream, ...]:
    """Probes both ways, fresh flows, and long connections through both kinds of NAT and IPv6."""
    vm, vm2, gw = (str(netns.path_of(name)) for name in ("vm", "vm2", "gw"))
    return (
        Stream("egress", "icmp", UPSTREAM, netns=vm2),
        Stream("ingress", "udp", PUBLIC, netns=gw),
        Stream("fresh", "udp-fresh", UPSTREAM, netns=vm2, interval_ms=2),
        Stream("egress6", "icmp", UPSTREAM6, netns=vm),
        Stream("echo", "tcp-echo", UPSTREAM, ECHO, netns=vm2, interval_ms=5, count=5),
        Stream("static", "tcp-echo", UPSTREAM, ECHO, netns=vm, interval_ms=5, count=3),
        Stream("push", "tcp-push", UPSTREAM, PUSH, netns=vm2, count=5),
        Stream("echo6", "tcp-echo", UPSTREAM6, ECHO, netns=vm, interval_ms=5, count=3),
    )


@contextmanager
def probing(of: Sequence[Stream] = ()) -> Iterator[list[Result]]:
    """Probes during the block; the list holds the result afterwards."""
    results: list[Result] = []
    with ProbeProcess(of or streams(), require_reply_s=5) as probes:
        yield results
        results.append(probes.stop())


def assert_nothing_lost(result: Result, not_held: int = 0) -> None:
    """Every probe was answered and every connection lives.

    In each of `not_held` flips without a hold one flow that is just beginning may lose its first
    answer: it comes to an instance that has not been told of it yet.
    """
    lost = {
        one.stream.name: one.loss.gaps
        for one in result.streams
        if one.loss.lost > (not_held if one.stream.name == "fresh" else 0)
    }
    assert lost == {}, f"{lost} of {result.duration_ms:.0f} ms"
    assert dead(result.connections) == {}


def dead(connections: Sequence[ConnectionsResult]) -> dict[str, int]:
    """Connections of each stream that did not live to the end."""
    return {c.stream.name: c.total - c.alive for c in connections if c.alive < c.total}


@contextmanager
def asking(on: Machine, *addresses: str) -> Iterator[OwnerWatch]:
    """Asks the machine's segment, every millisecond, who has the addresses."""
    home = netns.current()
    try:
        with netns.entered_named(on.name, home):
            watch = OwnerWatch(addresses, "e0")
        with watch:
            yield watch
    finally:
        os.close(home)


@contextmanager
def in_background(work: Callable[[], None], pause_s: float = 0) -> Iterator[list[str]]:
    """Repeats `work` in a thread; the list holds what went wrong."""
    wrong: list[str] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            try:
                work()
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
            time.sleep(pause_s)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        thread.join()


@dataclass
class Connection:
    """A connection of a tenant to the outside; either end may speak."""

    near: socket.socket
    far: socket.socket

    def carries(self) -> bool:
        """Whether it lives, in both directions; the outside speaks first."""
        try:
            for one, other in ((self.far, self.near), (self.near, self.far)):
                one.sendall(b"x")
                if other.recv(1) != b"x":
                    return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        self.near.close()
        self.far.close()


@contextmanager
def connected(inside: Machine, outside: Machine, target: str = UPSTREAM) -> Iterator[Connection]:
    """A new connection from `inside` to `target`, an address of `outside`."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with outside.socket(family, socket.SOCK_STREAM) as server:
        server.bind((target, 0))
        server.listen()
        near = inside.socket(family, socket.SOCK_STREAM)
        near.settimeout(3)
        near.connect(server.getsockname()[:2])
        far, _ = server.accept()
    far.settimeout(3)
    connection = Connection(near, far)
    try:
        yield connection
    finally:
        connection.close()
