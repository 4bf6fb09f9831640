"""Who waits for whom on a node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from tests.netns.nodekit import until
from vrha.agent.turns import Turns
from vrha.errors import StepError

SECONDS = 10.0
QUIET_S = 0.1
"""How long nothing must happen; nothing can, however long it is."""


class Work:
    """Something that begins, and ends when it is told to."""

    def __init__(self, pool: ThreadPoolExecutor, place: AbstractContextManager[None]) -> None:
        self._began = threading.Event()
        self._end = threading.Event()
        self._place = place
        self._future: Future[None] = pool.submit(self._run)

    def _run(self) -> None:
        with self._place:
            self._began.set()
            assert self._end.wait(SECONDS)

    def begins(self) -> bool:
        return self._began.wait(SECONDS)

    @property
    def waits(self) -> bool:
        return not self._began.wait(QUIET_S)

    def end(self) -> None:
        self._end.set()
        self._future.result(SECONDS)


Start = Callable[[AbstractContextManager[None]], Work]


@pytest.fixture
def over() -> threading.Event:
    return threading.Event()


@pytest.fixture
def turns(over: threading.Event) -> Turns:
    return Turns(over.is_set)


@pytest.fixture
def start() -> Iterator[Start]:
    with ThreadPoolExecutor(16) as pool:
        yield lambda place: Work(pool, place)


def test_builds_run_beside_each_other_and_a_flip_alone(turns: Turns, start: Start) -> None:
    builds = [start(turns.shared()) for _ in range(3)]
    assert all(build.begins() for build in builds)
    flip = start(turns.alone())
    for build in builds:
        assert flip.waits
        build.end()
    assert flip.begins()
    other, build = start(turns.alone()), start(turns.shared())
    assert other.waits
    assert build.waits
    flip.end()
    assert other.begins()
    other.end()
    assert build.begins()
    build.end()


def test_a_flip_that_waits_lets_no_further_build_begin(turns: Turns, start: Start) -> None:
    first = start(turns.shared())
    assert first.begins()
    flip = start(turns.alone())
    assert until(lambda: turns._wanting_alone == 1)
    second = start(turns.shared())
    assert second.waits
    first.end()
    assert flip.begins()
    assert second.waits
    flip.end()
    assert second.begins()
    second.end()


def test_flips_that_follow_each_other_do_not_keep_the_node_from_being_seen(
    turns: Turns, start: Start
) -> None:
    flip = start(turns.alone())
    assert flip.begins()
    nexts = [start(turns.alone()) for _ in range(3)]
    assert until(lambda: turns._wanting_alone == 3)
    look = start(turns.looking())
    assert look.waits
    flip.end()
    assert look.begins()
    assert all(each.waits for each in nexts)
    look.end()
    for _ in range(3):
        running = next(each for each in nexts if not each.waits)
        nexts.remove(running)
        running.end()


def test_work_on_one_router_keeps_its_order_and_on_two_does_not_wait(
    turns: Turns, start: Start
) -> None:
    lines = [turns.line_up(router) for router in ("r1", "r1", "r2", "r1")]
    third = start(lines[3].first())
    second = start(lines[1].first())
    other = start(lines[2].first())
    assert other.begins()
    assert third.waits
    assert second.waits
    first = start(lines[0].first())
    assert first.begins()
    assert second.waits
    first.end()
    assert second.begins()
    assert third.waits
    second.end()
    assert third.begins()
    third.end()
    other.end()
    assert turns._lines == {}


def test_an_agent_that_ends_begins_nothing_more(
    turns: Turns, start: Start, over: threading.Event
) -> None:
    line = [turns.line_up("r1"), turns.line_up("r1")]
    running = start(line[0].first())
    flip = start(turns.alone())
    assert running.begins()
    assert flip.begins()
    waiting = [start(line[1].first()), start(turns.alone()), start(turns.shared())]
    assert all(each.waits for each in waiting)
    over.set()
    for each in waiting:
        with pytest.raises(StepError) as refused:
            each.end()
        assert refused.value.code == "agent-ends"
    running.end()
    flip.end()
    assert (turns._lines, turns._wanting_alone, turns._sharing) == ({}, 0, 0)
