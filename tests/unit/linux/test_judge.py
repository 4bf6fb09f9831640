"""What a verification makes of what was measured and of who answered."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from tests.unit.render.render_specs import small
from vrha.errors import StepError
from vrha.linux.handover import judge, judge_answers
from vrha.linux.neighbour_check import PortAnswers
from vrha.model.evidence import Measured

FINE = Measured("canary:net-a", 0.0, 1.0, sent=300, lost=0)
SILENT = replace(FINE, lost=100, gaps_ms=((200.0, 100.0),))
DENT = replace(FINE, lost=20, gaps_ms=((100.0, 20.0),))
STARVED = replace(DENT, sent=100, late_ticks=200)
SHORT = replace(FINE, lost=5, gaps_ms=((295.0, 5.0),))
GATEWAY, ONE, TWO = map(ip_address, ("198.51.100.1", "10.1.0.5", "10.1.0.6"))


@pytest.mark.parametrize(
    ("measured", "max_lost", "code"),
    [
        (FINE, 0, ""),
        (SILENT, None, "canary-silent"),
        (SILENT, 100, "canary-silent"),
        (DENT, None, ""),
        (DENT, 20, ""),
        (DENT, 19, "too-many-lost"),
        (STARVED, None, ""),
        (SHORT, None, ""),
        (replace(FINE, sent=0, unavailable="no-reply"), 0, ""),
    ],
)
def test_measured(measured: Measured, max_lost: int | None, code: str) -> None:
    if not code:
        judge((measured,), max_lost)
        return
    with pytest.raises(StepError) as caught:
        judge((FINE, measured), max_lost)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("before", "after", "is_fine"),
    [
        (((GATEWAY,), ()), ((GATEWAY,), ()), True),
        (((GATEWAY,), ()), ((), (GATEWAY,)), False),
        (((), (GATEWAY,)), ((), (GATEWAY,)), True),
        (((ONE, TWO), ()), ((ONE,), (TWO,)), True),
        (((ONE, TWO), ()), ((), (ONE, TWO)), False),
        (((ONE, GATEWAY), ()), ((ONE,), (GATEWAY,)), False),
    ],
)
def test_answers(
    before: tuple[tuple[object, ...], ...], after: tuple[tuple[object, ...], ...], is_fine: bool
) -> None:
    then, now = PortAnswers("u0", *before), PortAnswers("u0", *after)  # type: ignore[arg-type]
    if is_fine:
        judge_answers(small(), (then,), (now,))
        return
    with pytest.raises(StepError, match="answered before") as caught:
        judge_answers(small(), (then,), (now,))
    assert caught.value.code == "neighbours-silent"
