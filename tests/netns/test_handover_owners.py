"""The watch that counts owners sees two of them when there are two."""

from __future__ import annotations

import time

import pytest

from tests.netns.handoverkit import GATEWAY, asking, twin_of
from tests.netns.nodekit import mac_of, machine, spec_of
from vrha.linux.node import NodeKernel
from vrha.model.spec import InstanceSpec

pytestmark = pytest.mark.root

BOTH_S = 0.1


@pytest.mark.parametrize("same_macs", [True, False])
def test_two_owners_are_seen(kernel: NodeKernel, same_macs: bool) -> None:
    vm = machine("vm", "br-a", "10.1.1.50/24")
    old = spec_of()
    new: InstanceSpec = twin_of(old) if same_macs else spec_of(2)
    kernel.build(old)
    kernel.build(new)
    kernel.unmute(old.ref)
    with asking(vm, GATEWAY) as watch:
        time.sleep(BOTH_S)
        kernel.unmute(new.ref)
        time.sleep(BOTH_S)
        kernel.mute(old.ref)
        time.sleep(BOTH_S)
    answers = watch.results()[GATEWAY]
    assert 10 < answers.doubles < answers.asked
    # A starved thread may break the row, and add some of its own time.
    assert 1000 * BOTH_S / 10 < answers.overlap_ms < 1000 * BOTH_S * 10
    assert {answers.turns[0], answers.turns[-1]} == {mac_of(1, 0), mac_of(1 if same_macs else 2, 0)}


def test_one_owner_is_one(kernel: NodeKernel) -> None:
    vm = machine("vm", "br-a", "10.1.1.50/24")
    spec = spec_of()
    kernel.build(spec)
    kernel.unmute(spec.ref)
    with asking(vm, GATEWAY, "10.1.1.77") as watch:
        time.sleep(BOTH_S)
    answers = watch.results()[GATEWAY]
    assert (answers.doubles, answers.overlap_ms) == (0, 0.0)
    assert answers.turns == (mac_of(1, 0),)
    assert answers.answered == answers.asked > 10
    nobody = watch.results()["10.1.1.77"]
    assert (nobody.answered, nobody.turns) == (0, ())
