"""Penalties fade, suppression has two thresholds, and clocks may be set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.core.damping import (
    LONGEST_S,
    Damping,
    came_back,
    failed_over,
    fell_silent,
    is_delayed,
    is_suppressed,
    penalty_at,
)
from vrha.model.health import NodeHealth

NOW = 1.8e9
RULE = Damping()
FRESH = NodeHealth("n1")


def after(*silences: float) -> NodeHealth:
    health = FRESH
    for at in silences:
        health = fell_silent(health, at, RULE)
    return health


def test_a_penalty_halves_every_ten_minutes() -> None:
    once = after(NOW)
    assert [penalty_at(once, NOW + s, RULE) for s in (0, 600, 1200)] == [1000, 500, 250]
    assert penalty_at(once, NOW + 1e12, RULE) == 0


def test_one_silence_suppresses_nobody_and_three_in_a_row_do() -> None:
    assert not is_suppressed(after(NOW), NOW)
    assert not is_suppressed(after(NOW, NOW + 60), NOW + 60)
    flapping = after(NOW, NOW + 60, NOW + 120)
    assert is_suppressed(flapping, NOW + 120)
    assert penalty_at(flapping, flapping.suppressed_until, RULE) == pytest.approx(RULE.reuse)
    assert not is_suppressed(flapping, flapping.suppressed_until)


def test_between_the_thresholds_it_depends_on_where_it_comes_from() -> None:
    """Suppressed at 2,000 or more; then a silence that leaves it below goes on with that."""
    flapping = after(NOW, NOW, NOW + 1)
    assert is_suppressed(flapping, NOW + 1)
    late = flapping.suppressed_until - 1
    again = fell_silent(flapping, late, RULE)
    assert penalty_at(again, late, RULE) < RULE.suppress
    assert is_suppressed(again, late + 300)


def test_no_suppression_lasts_longer_than_its_cap() -> None:
    worst = after(*(NOW + second for second in range(1000)))
    assert worst.suppressed_until == NOW + 999 + RULE.longest_s


def test_the_delay_counts_from_the_return() -> None:
    away = failed_over(FRESH, NOW, RULE)
    assert is_delayed(away, NOW + 899)
    back = came_back(away, NOW + 3600, RULE)
    assert is_delayed(back, NOW + 3600 + 899)
    assert not is_delayed(back, NOW + 3600 + 900)
    assert came_back(back, NOW + 9999, RULE) == back
    assert came_back(FRESH, NOW, RULE) == FRESH


def test_a_silence_within_the_delay_begins_it_anew() -> None:
    """Also of a node that hosts nothing, and so is not failed over again."""
    health = came_back(failed_over(FRESH, NOW, RULE), NOW + 10, RULE)
    for later in range(600, 20 * 600, 600):
        health = came_back(fell_silent(health, NOW + later, RULE), NOW + later + 10, RULE)
        assert is_delayed(health, NOW + later + 600)
    quiet = NOW + 19 * 600 + 10 + 900
    assert not is_delayed(health, quiet)
    health = came_back(fell_silent(health, quiet, RULE), quiet + 10, RULE)
    assert not is_delayed(health, quiet + 10)


def test_without_a_delay() -> None:
    rule = Damping(fail_back_s=0)
    assert not is_delayed(came_back(failed_over(FRESH, NOW, rule), NOW, rule), NOW)


def test_a_clock_that_is_set_back_keeps_nobody_out_for_ever() -> None:
    flapping = failed_over(after(NOW, NOW, NOW), NOW, RULE)
    before = NOW - 30 * 86_400
    assert not is_suppressed(flapping, before)
    assert not is_delayed(flapping, before)
    assert penalty_at(flapping, before, RULE) == 3000


@given(
    st.lists(st.floats(0, 7200), max_size=30),
    st.builds(
        Damping,
        half_life_s=st.floats(10, 3600),
        suppress=st.floats(1000, 10_000),
        reuse=st.floats(1, 999),
        longest_s=st.floats(1, 3600),
        fail_back_s=st.floats(0, LONGEST_S),
    ),
)
def test_whatever_happens_everything_ends(steps: list[float], rule: Damping) -> None:
    health, now = FRESH, NOW
    for step in steps:
        now += step
        health = failed_over(fell_silent(health, now, rule), now, rule)
        assert penalty_at(health, now, rule) >= 1000
        assert is_suppressed(health, now) or penalty_at(health, now, rule) < rule.suppress
        health = came_back(health, now, rule)
    assert not is_suppressed(health, now + rule.longest_s + 1)
    assert not is_delayed(health, now + rule.fail_back_s + 1)
