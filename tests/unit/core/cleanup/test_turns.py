"""When a sweep begins, and when again."""

from __future__ import annotations

from vrha.core.cleanup.turns import Turns

PAUSE, LIMIT = 1000.0, 60_000.0


def made() -> Turns:
    return Turns(PAUSE, LIMIT)


def test_nothing_to_sweep_begins_nothing() -> None:
    assert not made().is_due(None, 0.0)


def test_one_at_a_time() -> None:
    turns = made()
    assert turns.is_due("a", 0.0)
    turns.began("a", 0.0)
    assert not turns.is_due("a", 10.0)
    assert not turns.is_due("b", 10.0)


def test_one_that_left_nothing_is_not_repeated() -> None:
    turns = made()
    turns.began("a", 0.0)
    turns.ended(0, 10.0)
    assert not turns.is_due("a", 1e9)
    assert turns.is_due("b", 11.0)


def test_one_that_left_something_is_repeated_after_the_pause() -> None:
    turns = made()
    turns.began("a", 0.0)
    turns.ended(1, 10.0)
    assert not turns.is_due("a", 10.0 + PAUSE - 1)
    assert turns.is_due("a", 10.0 + PAUSE)
    assert not turns.is_due(None, 10.0 + PAUSE), "the agent is back"


def test_one_that_does_not_end_is_overdue() -> None:
    turns = made()
    assert not turns.is_overdue(1e9)
    turns.began("a", 0.0)
    assert not turns.is_overdue(LIMIT - 1)
    assert turns.is_overdue(LIMIT)
    turns.ended(-9, LIMIT)
    assert not turns.is_overdue(1e9)
