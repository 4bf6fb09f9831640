"""Files are written beside the loop, the newest last."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator

import pytest

from vrha.errors import StepError
from vrha.watcher.pen import Pen


@pytest.fixture
def pen() -> Iterator[Pen]:
    made = Pen()
    yield made
    made.close()


def await_news(pen: Pen) -> None:
    ready, _, _ = select.select([pen], [], [], 5)
    assert ready
    pen.look()


def test_a_disk_that_hangs_keeps_nobody_and_of_what_waits_only_the_newest_is_written(
    pen: Pen,
) -> None:
    hangs, begun, done = threading.Event(), threading.Event(), []

    def hang() -> None:
        begun.set()
        hangs.wait(5)
        done.append("first")

    first = pen.write("a", hang)
    assert begun.wait(5)
    other = pen.write("b", lambda: done.append("other"))
    older, newer = (pen.write("a", lambda n=n: done.append(n)) for n in ("older", "newer"))
    assert not pen.has_written("a", first)
    hangs.set()
    while not pen.has_written("a", newer):
        await_news(pen)
    assert done == ["first", "other", "newer"]
    assert pen.has_written("a", older)
    assert pen.has_written("b", other)


def test_who_asks_is_told_what_failed_until_it_is_written_again(pen: Pen) -> None:
    def fail() -> None:
        raise StepError("state-dir", "no")

    number = pen.write("a", fail)
    await_news(pen)
    with pytest.raises(StepError, match="no"):
        pen.has_written("a", number)
    again = pen.write("a", lambda: None)
    await_news(pen)
    assert pen.has_written("a", again)


def test_what_is_to_be_written_is_written_before_it_closes() -> None:
    pen, done = Pen(), []
    for name in "abc":
        pen.write(name, lambda name=name: done.append(name))
    pen.close()
    assert done == ["a", "b", "c"]
