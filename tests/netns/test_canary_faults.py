"""The canary while something happens to the router, the bridge or its own process."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.netns.canarykit import canary_of, entries, gateway, sent, serving
from tests.netns.conftest import sh
from tests.netns.nodekit import inventory, spec_of, until
from vrha.core import names
from vrha.errors import StepError
from vrha.linux import frames, netns, rtnetlink
from vrha.linux.canary import remove_leftovers
from vrha.linux.node import NodeKernel
from vrha.model.spec import (
    InstanceRef,
)

pytestmark = pytest.mark.root

FAULT_S = 0.05


@contextmanager
def late_gateway(delay_s: float) -> Iterator[None]:
    """A gateway that answers echo requests only after some time."""
    outside = gateway()
    outside.run("sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1")
    waiting: deque[tuple[float, bytes]] = deque()
    stop = threading.Event()
    with outside.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("e0", frames.ETH_P_IP))
        sock.settimeout(0.001)

        def answer() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    frame = sock.recv(2048)
                    waiting.append((time.monotonic() + delay_s, frame))
                while waiting and waiting[0][0] <= time.monotonic():
                    sock.send(echo_reply_to(waiting.popleft()[1]))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def echo_reply_to(frame: bytes) -> bytes:
    """The same with its ends exchanged, as a reply: type 0 for 8, so 8 more in the checksum."""
    checksum = int.from_bytes(frame[36:38], "big") + 0x0800
    checksum = (checksum & 0xFFFF) + (checksum >> 16)
    head = frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
    return head + b"\0\0" + checksum.to_bytes(2, "big") + frame[38:]


def test_replies_that_are_under_way_at_the_end_count(kernel: NodeKernel) -> None:
    with late_gateway(0.03):
        spec = serving(kernel, spec_of())
        with canary_of(spec) as canary:
            canary.start()
            assert until(lambda: sent(canary) >= 200)
            assert {m.lost for m in canary.measured()} == {0}
            assert [(m.unavailable, m.lost) for m in canary.stop()] == [("", 0), ("", 0)]


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
        red, blue = canary.stop()
    assert (red.unavailable, blue.unavailable) == ("no-bridge", "")


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
        seen = sent(canary)
        # What it missed is counted when it runs again.
        assert until(lambda: sent(canary) > seen + 10)
        found = canary.stop()
        ticks = (time.monotonic() - began) * 1000
    for first, last in zip(before, found, strict=True):
        assert last.late_ticks - first.late_ticks > ticks / 3
        assert last.sent - first.sent < ticks / 2
        assert (last.lost, last.gaps_ms) == (0, ())


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
