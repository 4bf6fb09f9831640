"""Who may take over, by its own clock alone."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vrha.core.leadership import DRIFT, Lead, Watch, look, may_take, sure_until

TTL = 5.0
LEAD = Lead("o1", 3, 10)


def watched(*moments: tuple[float, Lead]) -> Watch:
    watch: Watch | None = None
    for now, lead in moments:
        watch = look(watch, lead, now, TTL)
    assert watch is not None
    return watch


def at(*moments: float, lead: Lead = LEAD) -> list[tuple[float, Lead]]:
    return [(now, lead) for now in moments]


def test_nobody_is_followed_at_once() -> None:
    assert may_take(watched((0.0, Lead())), TTL)
    assert may_take(watched((0.0, Lead("", 7, 90))), TTL)


def test_a_silent_leader_is_followed_after_a_ttl_of_looking() -> None:
    assert not may_take(watched(*at(0.0)), TTL)
    assert not may_take(watched(*at(0.0, 2.0, 4.0, 4.9)), TTL)
    assert may_take(watched(*at(0.0, 2.0, 4.0, 5.0)), TTL)


def test_every_change_begins_anew() -> None:
    for change in (Lead("o1", 3, 11), Lead("o2", 4, 11), Lead("o1", 4, 10)):
        moments = at(0.0, 2.0, 4.0) + at(4.5, 6.5, 8.5, 9.4, lead=change)
        assert not may_take(watched(*moments), TTL)
        assert may_take(watched(*moments, (9.5, change)), TTL)


def test_who_did_not_look_for_long_begins_anew() -> None:
    """It stood still, or the store did: then the leader could not show itself either."""
    assert not may_take(watched(*at(0.0, 60.0)), TTL)
    assert not may_take(watched(*at(0.0, 2.0, 4.6, 5.0)), TTL)
    assert may_take(watched(*at(0.0, 60.0, 62.0, 64.0, 65.0)), TTL)


def test_who_is_alone_waits_for_nobody() -> None:
    assert may_take(watched(*at(0.0)), TTL, sole=True)


@given(
    beat=st.floats(0, 100),
    read_after=st.floats(0, 10),
    steps=st.lists(st.floats(0.01, 2.4), min_size=3, max_size=60),
    slow=st.floats(1 - DRIFT / 2, 1.0),
    fast=st.floats(1.0, 1 + DRIFT / 2),
    offset=st.floats(-1e6, 1e6),
)
def test_no_leader_is_sure_once_somebody_may_take_over(
    beat: float, read_after: float, steps: list[float], slow: float, fast: float, offset: float
) -> None:
    """The leader's clock runs slow, the observer's fast and from another start; in true time."""
    watch: Watch | None = None
    for now in itertools.accumulate(steps, initial=beat + read_after):
        watch = look(watch, LEAD, now * fast + offset, TTL)
        if may_take(watch, TTL):
            assert now * slow >= sure_until(beat * slow, TTL) - 1e-6
            return
