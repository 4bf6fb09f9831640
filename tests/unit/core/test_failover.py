"""Which uplinks count as lost."""

from __future__ import annotations

import pytest

from vrha.core.failover import by_priority, dead_uplinks
from vrha.model.spec import Router
from vrha.model.state import NodeState, Upstream

UP, DOWN = Upstream.REACHABLE, Upstream.UNREACHABLE


def node(name: str, **uplinks: Upstream) -> NodeState:
    return NodeState(name, "", "", (), (), 0.0, uplinks=tuple(uplinks.items()))


@pytest.mark.parametrize(
    ("nodes", "dead"),
    [
        ([], set()),
        ([node("n1", pub=UP)], set()),
        # The self-test of the replacement is the second view.
        ([node("n1", pub=DOWN)], {("n1", "pub")}),
        ([node("n1", pub=DOWN), node("n2")], {("n1", "pub")}),
        ([node("n1", pub=DOWN), node("n2", pub=UP)], {("n1", "pub")}),
        # It is the gateway itself.
        ([node("n1", pub=DOWN), node("n2", pub=DOWN)], set()),
        (
            [node("n1", pub=DOWN), node("n2", pub=DOWN), node("n3", pub=UP)],
            {("n1", "pub"), ("n2", "pub")},
        ),
        # Another bridge says nothing about this one.
        ([node("n1", pub=DOWN), node("n2", pub=DOWN, other=UP)], set()),
        ([node("n1", pub=UP, other=DOWN), node("n2", pub=UP, other=UP)], {("n1", "other")}),
    ],
)
def test_a_second_view_decides(nodes: list[NodeState], dead: set[tuple[str, str]]) -> None:
    assert dead_uplinks(nodes) == dead


def test_a_higher_priority_comes_first_and_then_the_name() -> None:
    routers = [Router("b", ()), Router("a", ()), Router("low", (), priority=-1)]
    routers.append(Router("z", (), priority=7))
    assert [r.name for r in sorted(routers, key=by_priority)] == ["z", "a", "b", "low"]
