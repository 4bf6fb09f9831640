"""Which pause holds a move."""

from __future__ import annotations

import pytest

from vrha.core.pauses import paused_by
from vrha.model.pauses import Pause, PauseScope, PauseTarget


def of(scope: PauseScope, name: str = "") -> Pause:
    return Pause(PauseTarget(scope, name), "2026-03-01T10:00:00Z", "ann", "")


@pytest.mark.parametrize(
    ("pause", "held"),
    [
        (of(PauseScope.ALL), True),
        (of(PauseScope.ZONE, "east"), True),
        (of(PauseScope.ZONE, "west"), False),
        (of(PauseScope.ZONE, "n1"), False),
        (of(PauseScope.NODE, "n1"), True),
        (of(PauseScope.NODE, "n2"), False),
        (of(PauseScope.ROUTER, "r1"), True),
        (of(PauseScope.ROUTER, "r2"), False),
    ],
)
def test_each_scope(pause: Pause, held: bool) -> None:
    found = paused_by([pause], zone="east", node="n1", router="r1")
    assert found == (pause if held else None)


def test_of_a_node_without_a_router() -> None:
    assert paused_by([of(PauseScope.ROUTER, "r1")], zone="east", node="n1") is None


def test_the_widest_is_named() -> None:
    pauses = [of(PauseScope.NODE, "n1"), of(PauseScope.ALL), of(PauseScope.ZONE, "east")]
    assert paused_by(pauses, zone="east", node="n1") == pauses[1]
