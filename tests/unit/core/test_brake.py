"""The brake: budget, mass silence over a window, one alarm, and no order of nodes."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrha.core.brake import (
    Brake,
    Decisions,
    Hold,
    Rules,
    SeenNode,
    ZoneSight,
    decide,
    share,
)

NOW = 1000.0
OFF = Brake()


def heard(count: int, first: int = 0) -> tuple[SeenNode, ...]:
    return tuple(SeenNode(f"n{number:02}", routers=5) for number in range(first, first + count))


def silent(name: str, ago: float = 0.0, routers: int = 5) -> SeenNode:
    return SeenNode(name, NOW - ago, routers)


def look(*nodes: SeenNode, now: float = NOW, brake: Brake = OFF, voters: int = 3) -> Decisions:
    return decide(ZoneSight(nodes, voters, Rules(), brake), now)


def test_shares_are_rounded_down_and_at_least_one() -> None:
    assert [share(n, 0.2) for n in (0, 1, 4, 5, 9, 10, 15, 100)] == [1, 1, 1, 1, 1, 2, 3, 20]
    assert [share(n, 0.3) for n in (1, 3, 4, 6, 7, 10, 20)] == [1, 1, 1, 1, 2, 3, 6]


def test_one_silent_node_goes_at_once() -> None:
    found = look(silent("x"), *heard(2))
    assert (found.go, found.hold, found.event) == (("x",), {}, None)
    assert (found.recovering, found.budget, found.silent, found.limit) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"routers": 0}, Hold.NOTHING_THERE),
        ({"routers": 0, "suppressed": True}, Hold.FLAPPING),
        ({"routers": 0, "paused": True}, Hold.NOTHING_THERE),
        ({"paused": True}, Hold.PAUSED),
        ({"draining": True}, None),
        ({"suppressed": True}, None),
    ],
)
def test_what_holds_a_single_node(changed: dict[str, bool], reason: Hold | None) -> None:
    """A node that flaps loses the routers it has all the same: it would take them down again."""
    found = look(replace(silent("x"), **changed), *heard(9))
    assert found.hold.get("x") is reason
    assert found.go == (() if reason else ("x",))
    assert found.brake.reason is None


@pytest.mark.parametrize("change", ["suppressed", "draining", "paused", "recovering"])
def test_without_a_node_that_takes_routers_there_is_no_target(change: str) -> None:
    others = [replace(node, **{change: True}) for node in heard(2)]
    rules = Rules(budget=1.0)
    zone = ZoneSight((silent("x"), *others), 3, rules)
    assert decide(zone, NOW).hold == {"x": Hold.NO_TARGET}


def test_by_the_settings() -> None:
    zone = ZoneSight((silent("x"), *heard(3)), 3, Rules(enabled=False))
    assert decide(zone, NOW).hold == {"x": Hold.DISABLED}


def test_two_nodes_need_a_third_voter() -> None:
    for voters in (1, 2):
        assert look(silent("x"), *heard(1), voters=voters).hold == {"x": Hold.TWO_NODES}
    assert look(silent("x"), *heard(1), voters=3).go == ("x",)
    assert look(silent("x"), *heard(2), voters=1).go == ("x",)


def test_the_budget_goes_to_the_longest_silent_then_to_the_fullest() -> None:
    fuller, emptier, longest = silent("a", 1, 9), silent("b", 1, 3), silent("c", 2, 1)
    found = look(emptier, fuller, longest, *heard(7))
    assert found.go == ("c", "a")
    assert found.hold == {"b": Hold.BUDGET}
    assert found.brake.reason is Hold.BUDGET


def test_who_is_under_recovery_uses_the_budget_also_when_it_is_heard_again() -> None:
    back = replace(heard(1)[0], recovering=True)
    assert look(silent("x"), back, *heard(3, 1)).hold == {"x": Hold.BUDGET}
    assert look(silent("x"), back, *heard(8, 1)).go == ("x",)


def test_more_than_the_limit_at_once_and_nothing_begins() -> None:
    at_once = [silent(f"x{number}") for number in range(4)]
    found = look(*at_once, *heard(6))
    assert found.go == ()
    assert set(found.hold.values()) == {Hold.MASS_SILENCE}
    assert found.event is not None
    assert (found.event.kind, found.event.reason) == ("brake-on", Hold.MASS_SILENCE)
    assert "4 of 10 nodes are silent (limit 3)" in found.event.detail


def test_who_comes_later_is_counted_with_who_was_released() -> None:
    """The first is released at once, as nobody knows yet; the others come within milliseconds."""
    first = look(silent("x0"), *heard(3))
    assert first.go == ("x0",)
    released = replace(silent("x0"), recovering=True)
    found = look(released, silent("x1", -0.05), *heard(2), now=NOW + 0.05, brake=first.brake)
    assert found.hold == {"x1": Hold.MASS_SILENCE}
    assert found.recovering == 1
    # Also when the first has nothing left by then.
    moved = replace(silent("x0"), routers=0)
    found = look(moved, silent("x1", -5), *heard(2), now=NOW + 5, brake=first.brake)
    assert found.hold["x1"] is Hold.MASS_SILENCE
    # Much later that is no longer the same event.
    found = look(moved, silent("x1", -11), *heard(2), now=NOW + 11, brake=first.brake)
    assert found.go == ("x1",)


def test_a_silence_that_nobody_confirms_counts_and_moves_nothing() -> None:
    alone = replace(silent("x"), unconfirmed=True)
    assert look(alone, *heard(9)).hold == {"x": Hold.UNCONFIRMED}
    assert look(alone, *heard(9)).brake.reason is None
    found = look(alone, replace(silent("y"), unconfirmed=True), *heard(3))
    assert found.brake.reason is Hold.MASS_SILENCE


def test_the_first_of_many_waits_for_those_of_whom_nobody_can_tell() -> None:
    doubted = tuple(replace(node, late=True, unconfirmed=True) for node in heard(3))
    assert look(silent("x", 0.5), *doubted, *heard(6, 3)).hold == {"x": Hold.OTHERS_LATE}
    assert look(silent("x", 0.5), *doubted[1:], *heard(7, 3)).go == ("x",)


def test_the_first_of_many_waits_a_moment_when_others_are_late() -> None:
    late = tuple(replace(node, late=True) for node in heard(3))
    rest = heard(6, 3)
    assert look(silent("x"), *late, *rest).hold == {"x": Hold.OTHERS_LATE}
    assert look(silent("x"), *late, *rest).brake.reason is None
    assert look(silent("x", 0.16), *late, *rest).go == ("x",)
    assert look(silent("x"), *late[1:], *heard(7, 3)).go == ("x",)


def test_too_many_stay_too_many_until_they_are_heard() -> None:
    """No node of them is released just because some time has passed, empty ones included."""
    empty = [silent(f"e{number}", routers=0) for number in range(3)]
    nodes = (silent("x"), *empty, *heard(6))
    brake = look(*nodes).brake
    for later in (1, 9, 11, 60, 3600, 86_400):
        found = look(*nodes, now=NOW + later, brake=brake)
        assert found.hold["x"] is Hold.MASS_SILENCE
        assert found.event is None
        assert found.brake.since == NOW
        brake = found.brake
    back = tuple(replace(node, silent_since=None) for node in empty)
    later = NOW + 86_401
    found = look(silent("x"), *back, *heard(6), now=later, brake=brake)
    assert found.hold == {"x": Hold.MASS_SILENCE}
    # A breath of calm; then the one that is still silent goes.
    found = look(silent("x"), *back, *heard(6), now=later + 10, brake=found.brake)
    assert found.go == ("x",)
    assert found.event is not None
    assert (found.event.kind, found.event.reason) == ("brake-off", Hold.MASS_SILENCE)


def test_as_many_as_the_limit_allows_end_it() -> None:
    four = [silent(f"x{number}") for number in range(4)]
    brake = look(*four, *heard(6)).brake
    brake = look(*four[:3], *heard(7), now=NOW + 9, brake=brake).brake
    assert brake.reason is Hold.MASS_SILENCE
    found = look(*four[:3], *heard(7), now=NOW + 11, brake=brake)
    assert found.go == ("x0", "x1")
    assert found.brake.reason is Hold.BUDGET


def test_who_kept_its_routers_counts_however_long_it_is_silent() -> None:
    long_silent = [replace(silent(f"p{n}", 3600), paused=True) for n in range(3)]
    assert look(silent("x"), *long_silent[:2], *heard(7)).go == ("x",)
    assert look(silent("x"), *long_silent, *heard(6)).hold["x"] is Hold.MASS_SILENCE


def test_every_change_of_the_reason_is_told_once() -> None:
    one = look(silent("x"), silent("y"), *heard(7))
    assert (one.go, one.hold) == (("x",), {"y": Hold.BUDGET})
    assert one.event is not None
    assert (one.event.kind, one.event.reason) == ("brake-on", Hold.BUDGET)
    released = replace(silent("x"), recovering=True)
    two = look(released, silent("y"), *heard(7), brake=one.brake)
    assert two.event is None
    three = look(released, silent("y"), silent("z"), *heard(6), brake=two.brake)
    assert three.event is not None
    assert three.event.reason is Hold.MASS_SILENCE
    four = look(*heard(9), now=NOW + 20, brake=three.brake)
    assert four.event is not None
    assert four.event.kind == "brake-off"
    assert look(*heard(9), now=NOW + 21, brake=four.brake).event is None


def test_nodes_that_were_never_there_are_no_news() -> None:
    """Ten are wanted and three stand in the room."""
    absent = [SeenNode(f"a{number}", -math.inf) for number in range(7)]
    found = look(silent("x"), *heard(2), *absent)
    assert found.go == ("x",)
    assert set(found.hold.values()) == {Hold.NOTHING_THERE}
    assert found.silent == 1


def test_a_dead_node_without_routers_does_not_hold_up_the_next() -> None:
    assert look(silent("old", 3600, routers=0), silent("x"), *heard(3)).go == ("x",)


NODES = st.lists(
    st.builds(
        SeenNode,
        name=st.integers(0, 30).map(lambda number: f"n{number}"),
        silent_since=st.none() | st.just(-math.inf) | st.floats(NOW - 30, NOW),
        routers=st.integers(0, 3),
        recovering=st.booleans(),
        suppressed=st.booleans(),
        draining=st.booleans(),
        paused=st.booleans(),
        late=st.booleans(),
    ),
    max_size=30,
    unique_by=lambda node: node.name,
)
RULES = st.builds(
    Rules,
    enabled=st.sampled_from([True, True, True, False]),
    budget=st.floats(0.01, 1),
    mass_silence=st.floats(0.01, 1),
)
BRAKES = st.just(Brake()) | st.builds(
    Brake,
    reason=st.none() | st.sampled_from([Hold.MASS_SILENCE, Hold.BUDGET]),
    since=st.floats(NOW - 60, NOW),
    counted=st.frozensets(st.integers(0, 30).map(lambda number: f"n{number}")),
    over_at=st.floats(NOW - 60, NOW),
)


@given(NODES, st.integers(1, 5), RULES, BRAKES, st.randoms(use_true_random=False))
def test_what_holds_of_every_zone(
    nodes: Sequence[SeenNode], voters: int, rules: Rules, brake: Brake, order: random.Random
) -> None:
    zone = ZoneSight(tuple(nodes), voters, rules, brake)
    found = decide(zone, NOW)
    seen = {node.name: node for node in nodes}
    waiting = {n.name for n in nodes if n.silent_since is not None and not n.recovering}
    assert {*found.go, *found.hold} == waiting
    assert len(found.go) + len(found.hold) == len(waiting)
    assert not found.go or found.recovering <= found.budget
    assert all(seen[name].routers and not seen[name].paused for name in found.go)
    recent = [n for n in nodes if n.silent_since is not None and NOW - n.silent_since < 10]
    if len(recent) > found.limit or not rules.enabled:
        assert found.go == ()
    assert (found.event is None) == (found.brake.reason is brake.reason)
    shuffled = list(nodes)
    order.shuffle(shuffled)
    assert decide(replace(zone, nodes=tuple(shuffled)), NOW) == found


@settings(deadline=None)
@given(
    falls=st.lists(st.none() | st.floats(0, 20), min_size=3, max_size=20),
    tick=st.floats(0.05, 1.0),
    recovery=st.floats(0.3, 5.0),
)
def test_over_time_the_budget_holds_and_a_mass_silence_stops_it(
    falls: list[float | None], tick: float, recovery: float
) -> None:
    """Nodes fall silent for good at any time; who is released is recovered after a while."""
    released: dict[str, float] = {}
    brake = Brake()
    now = 0.0
    while now < 40:
        nodes = tuple(
            SeenNode(
                f"n{number}",
                since if since is not None and since <= now else None,
                0 if now - released.get(f"n{number}", math.inf) >= recovery else 4,
                0 <= now - released.get(f"n{number}", math.inf) < recovery,
            )
            for number, since in enumerate(falls)
        )
        found = decide(ZoneSight(nodes, 3, Rules(), brake), now)
        brake = found.brake
        recent = [n for n in nodes if n.silent_since is not None and now - n.silent_since < 10]
        assert sum(n.recovering for n in nodes) + len(found.go) <= found.budget
        assert not found.go or len(recent) <= found.limit
        released |= dict.fromkeys(found.go, now)
        now += tick
    # Whoever fell silent at once with too many others has kept its routers.
    down = sorted(since for since in falls if since is not None)
    limit = share(len(falls), 0.3)
    for first in down:
        together = [since for since in down if first <= since < first + 9]
        if len(together) > limit + 1:
            assert len(released) < len(down)
