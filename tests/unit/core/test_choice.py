"""Which strategy a restart takes, by what the agents and the instance are capable of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.core.test_run import LIVE, NEW, spec
from vrha.core.choice import choose, handover_obstacle
from vrha.model.runs import Strategy
from vrha.model.spec import Backend, InstanceSpec
from vrha.model.state import NodeState

CAPABLE = ("serial", "parallel", "handover", "move")
N1 = NodeState("n1", "life", "0.2.0", CAPABLE, (), 0.0, (), "192.0.2.1:7443", "PEM")
N2 = replace(N1, name="n2", sync_address="192.0.2.2:7443")
OF_0_1_0 = replace(N1, version="0.1.0", capabilities=("serial", "parallel"), sync_address="")
MIXED = replace(N1, capabilities=("serial", "parallel", "handover"), sync_address="")


def renamed() -> InstanceSpec:
    wanted = spec(NEW)
    return replace(wanted, ports=(replace(wanted.ports[0], network="green"),))


def other_backend() -> InstanceSpec:
    wanted = spec(NEW)
    other = next(b for b in Backend if b is not wanted.router.backend)
    return replace(wanted, router=replace(wanted.router, backend=other))


@pytest.mark.parametrize(
    ("old", "new", "wanted", "why"),
    [
        (N1, N1, spec(NEW), ""),
        (N1, N2, spec(NEW), ""),
        (MIXED, MIXED, spec(NEW), ""),
        (OF_0_1_0, OF_0_1_0, spec(NEW), "the agent of n1 (version 0.1.0) lacks 'handover'"),
        (OF_0_1_0, N2, spec(NEW), "the agent of n1 (version 0.1.0) lacks 'move'"),
        (N2, OF_0_1_0, spec(NEW), "the agent of n1 (version 0.1.0) lacks 'move'"),
        (MIXED, N2, spec(NEW), "the agent of n1 (version 0.2.0) lacks 'move'"),
        (None, N2, spec(NEW), "the agent of a node was never heard"),
        (N1, None, spec(NEW), "the agent of a node was never heard"),
        (replace(N1, sync_address=""), N1, spec(NEW), ""),
        (replace(N1, sync_address=""), N2, spec(NEW), "the agent of n1 does not say where"),
        (N1, replace(N2, certificate=""), spec(NEW), "the agent of n2 does not say where"),
        (N1, N1, renamed(), "the ports or the rules' backend of the router have changed"),
        (N1, N2, renamed(), "the ports or the rules' backend of the router have changed"),
        (N1, N1, other_backend(), "the ports or the rules' backend of the router have changed"),
    ],
)
def test_what_stands_in_the_way_of_a_handover(
    old: NodeState | None, new: NodeState | None, wanted: InstanceSpec, why: str
) -> None:
    found = handover_obstacle(LIVE, wanted, old, new)
    assert found.startswith(why)
    assert bool(found) is bool(why)
    choice = choose(Strategy.HANDOVER, LIVE, wanted, old, new)
    assert choice.strategy is (Strategy.PARALLEL if why else Strategy.HANDOVER)
    assert choice.why == found


@pytest.mark.parametrize("strategy", [Strategy.SERIAL, Strategy.PARALLEL])
def test_what_works_with_every_agent_is_taken_as_it_is_preferred(strategy: Strategy) -> None:
    for old, new in ((N1, N2), (OF_0_1_0, None), (None, None)):
        choice = choose(strategy, LIVE, renamed(), old, new)
        assert (choice.strategy, choice.why) == (strategy, "")
