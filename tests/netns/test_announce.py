"""Announcements as neighbours take them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.netns.nodekit import Machine, mac_of, machine, spec_of, until
from vrha.errors import StepError
from vrha.linux.node import NodeKernel
from vrha.model.spec import InstanceRef

pytestmark = [pytest.mark.root, pytest.mark.unhurried]

STALE = "02:de:ad:00:00:01"


def test_neighbours_learn_the_new_macs_of_all_addresses(kernel: NodeKernel) -> None:
    client = machine("vm", "br-a", "10.1.1.50/24", "fd00:1::50/64")
    outside = machine("out", "br-up", "203.0.113.1/24", "2001:db8::1/64")
    inside = ("10.1.1.1", "fd00:1::1", "fe80::1")
    public = ("203.0.113.10", "203.0.113.11", "2001:db8::10")
    entries = [(client, a, mac_of(1, 0)) for a in inside]
    entries += [(outside, a, mac_of(1, 2)) for a in public]
    spec = spec_of()
    kernel.build(spec)
    make_stale(entries)
    kernel.unmute(spec.ref)
    assert learned(entries), "unmuting announces at once"
    make_stale(entries)
    kernel.announce(spec.ref, delays_ms=(0,))
    assert learned(entries)


Entries = list[tuple[Machine, str, str]]
"""Machines with the addresses they have as neighbours, and the MACs these should have."""


def make_stale(entries: Entries) -> None:
    for host, address, _ in entries:
        line = f"ip neigh replace {address} lladdr {STALE} dev e0 nud stale"
        host.run(*line.split())


def learned(entries: Entries) -> bool:
    return until(lambda: all(host.neighbour(a) == mac for host, a, mac in entries))


def test_a_muted_or_unknown_instance_does_not_announce(kernel: NodeKernel) -> None:
    spec = spec_of()
    kernel.build(spec)
    with pytest.raises(StepError, match="not-active"):
        kernel.announce(spec.ref)
    with pytest.raises(StepError, match="no-instance"):
        kernel.announce(InstanceRef("unknown", 1))


def test_it_falls_silent_when_muted_between_two_bursts(kernel: NodeKernel, state_dir: Path) -> None:
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    second = NodeKernel(state_dir)
    before = kernel.counters(spec.ref)["n0"]["tx_packets"]

    def mute_after_the_first_burst() -> None:
        until(lambda: second.counters(spec.ref)["n0"]["tx_packets"] > before)
        second.mute(spec.ref)

    thread = threading.Thread(target=mute_after_the_first_burst)
    thread.start()
    try:
        with pytest.raises(StepError, match="not-active"):
            kernel.announce(spec.ref, delays_ms=(0, 1000, 5000))
    finally:
        thread.join()
        second.close()
