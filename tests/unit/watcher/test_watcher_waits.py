"""When the loop of a watcher wakes up: it has real-time priority, so it must never spin."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from vrha.core.ownership.commands import Command, Mute, Permit
from vrha.model.ownership import Electorate
from vrha.watcher.daemon import RETRY_MS, Watcher, clock_ms


def waiting_for(command: Command, file: int | None) -> Any:
    """A watcher whose slice is overdue, while `command` waits for a file (None: to be retried)."""
    watcher: Any = Watcher.__new__(Watcher)
    watcher._local, watcher._to_do = deque(), deque([command])
    watcher._waiting = file
    watcher._slice_due = clock_ms() - 1000
    watcher._holder = SimpleNamespace(due=clock_ms() + 1000)
    return watcher


@pytest.mark.parametrize("file", [1, None])
def test_a_slice_that_is_kept_back_lets_the_thread_sleep(file: int | None) -> None:
    watcher = waiting_for(Mute(1), file)
    before = clock_ms()
    watcher._feed()
    assert watcher._due() >= before + RETRY_MS


def test_a_slice_that_is_not_kept_back_is_due() -> None:
    watcher = waiting_for(Permit((), (), Electorate(1, ("n1",))), 1)
    assert watcher._due() <= clock_ms()
