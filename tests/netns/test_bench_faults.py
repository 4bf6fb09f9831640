"""The faults of the ping-gap bench: packets die from the noted instant on to the noted instant."""

from __future__ import annotations

import pytest

from tests.netns.probekit import B4, Pair
from tools.benchmarks.gapscore import judge, outages_of
from tools.benchmarks.gapwire import Dropper, Planned, play
from vrha.model.probing import Stream
from vrha.probe.kernel import Namespace
from vrha.probe.process import ProbeProcess

pytestmark = pytest.mark.root


def test_a_prober_sees_each_fault_of_either_way(pair: Pair) -> None:
    with Namespace(pair.b):
        forth = Dropper("vb")
    with Namespace(pair.a):
        back = Dropper("va")
    wanted = [Planned("forth", 30.0, 50.0), Planned("back", 60.0, 50.0)]
    try:
        with ProbeProcess([Stream("x", "icmp", B4, netns=pair.a)], require_reply_s=2.0) as probes:
            sure, unsure = play(wanted, {"forth": forth, "back": back})
            result = probes.stop()
    finally:
        forth.close()
        back.close()
    one = result.stream("x")
    rows, _ = judge([*sure, *unsure], outages_of(one, result.t0_monotonic_ns))
    assert len(sure) + len(unsure) >= len(wanted)
    for row in rows:
        assert row["seen"]
        # A fault takes one probe of each millisecond, but those that a busy machine never sent.
        slack = row["unsure_ms"] + 2
        assert row["true_ms"] - slack - one.late_ticks <= row["lost"] <= row["true_ms"] + slack
    assert sum(fault.length_ms for fault in sure + unsure) > 80
