"""A handover on one node, step by step: what tenants notice, and what the wire sees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.handoverkit import (
    GATEWAY,
    PUBLIC,
    UPSTREAM6,
    Street,
    asking,
    assert_nothing_lost,
    connected,
    probing,
    street,
)
from vrha.linux.node import NodeKernel
from vrha.model.spec import Backend
from vrha.model.state import Activity

pytestmark = pytest.mark.root


@pytest.fixture
def served(kernel: NodeKernel) -> Iterator[Street]:
    with street(kernel) as made:
        yield made


@pytest.mark.parametrize(
    ("backend", "hold"), [(Backend.NFTABLES, False), (Backend.IPTABLES, True)]
)
def test_nothing_is_lost_and_every_step_may_be_repeated(
    kernel: NodeKernel, backend: Backend, hold: bool
) -> None:
    with street(kernel, backend) as served:
        old, new = served.old, served.twin()
        steps = kernel.handovers
        with (
            asking(served.inside, GATEWAY) as tenants,
            asking(served.outside, PUBLIC) as neighbours,
            probing() as results,
        ):
            for _ in range(2):
                _, copied = steps.sync(old.ref, new.ref)
            for _ in range(2):
                steps.flip(old.ref, new.ref, hold)
                assert served.activities() == {1: Activity.RELAY, 2: Activity.ACTIVE}
            _, seen = steps.verify(old.ref, new.ref, max_lost=0)
            steps.verify(old.ref, new.ref, max_lost=0)
            for _ in range(2):
                kernel.destroy(old.ref)
        served.assert_only(new)
        assert_nothing_lost(results[0])
    assert {carried.what: carried.taken > 0 for carried in copied.carried} == {
        "neighbours": True,
        "conntrack": True,
    }
    assert [(stream.lost, stream.duplicates) for stream in seen.measured] == [(0, 0), (0, 0)]
    for answers in (tenants.results()[GATEWAY], neighbours.results()[PUBLIC]):
        assert answers.doubles == 0
        assert answers.asked - answers.answered <= 2
        assert answers.asked > 500
