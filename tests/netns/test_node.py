"""Build, observe, adopt, configure and destroy instances on a real node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.nodekit import inventory, spec_of
from vrha.linux.node import NodeKernel
from vrha.model.state import Activity
from vrha.render.digest import expected_digest

pytestmark = pytest.mark.root


@pytest.fixture
def kernel(node: None, state_dir: Path) -> Iterator[NodeKernel]:
    made = NodeKernel(state_dir)
    try:
        yield made
    finally:
        for instance in made.observe():
            made.destroy(instance.ref)
        made.close()


def test_a_built_instance_is_complete_and_muted_and_goes_without_a_trace(
    kernel: NodeKernel, state_dir: Path
) -> None:
    before = inventory(state_dir)
    spec = spec_of()
    print(kernel.build(spec))
    (found,) = kernel.observe()
    assert (found.ref, found.epoch, found.activity) == (spec.ref, 1, Activity.MUTED)
    assert found.dnsmasq_alive
    test = kernel.self_test(spec)
    assert test.forwarding == ("n0", "n1", "u0")
    assert test.rules == expected_digest(spec)
    assert test.dns_answered
    kernel.destroy(spec.ref)
    assert kernel.observe() == ()
    assert inventory(state_dir) == before
