"""Timer, namespaces' refusals, clock conversion, scheduling that is put back."""

from __future__ import annotations

import gc
import os
import resource
import select
import socket
import time
from pathlib import Path

import pytest

from vrha.errors import NotFoundError, PreconditionError
from vrha.probe.kernel import Batch, Clock, Namespace, Timer, allow_open_files, steady

MS = 1_000_000


def test_timer_counts_the_ticks_that_nobody_took() -> None:
    timer = Timer()
    try:
        start = time.monotonic_ns() - 100 * MS
        timer.start(start, 10 * MS)
        before = (time.monotonic_ns() - start) // (10 * MS) + 1
        assert select.select([timer.fd], [], [], 5)[0]
        seen = timer.expirations()
        after = (time.monotonic_ns() - start) // (10 * MS) + 1
        assert before <= seen <= after
    finally:
        timer.close()


def test_timer_before_its_time_has_no_ticks() -> None:
    timer = Timer()
    try:
        timer.start(time.monotonic_ns() + 3600 * 1000 * MS, MS)
        assert timer.expirations() == 0
    finally:
        timer.close()


def test_missing_namespace_is_named() -> None:
    with pytest.raises(NotFoundError, match="/run/netns/none") as caught:
        Namespace("/run/netns/none")
    assert caught.value.code == "netns-not-found"


def test_a_plain_file_is_no_namespace(tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.touch()
    namespace = Namespace(str(path))
    with pytest.raises(PreconditionError) as caught:
        namespace.__enter__()
    namespace.close()
    assert caught.value.code == "netns-not-permitted"


def test_own_namespace_needs_no_right() -> None:
    with Namespace(None) as namespace:
        namespace.close()


def test_steady_puts_everything_back() -> None:
    policy, collecting = os.sched_getscheduler(0), gc.isenabled()

    def fail() -> None:
        assert not gc.isenabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), steady(1):
        fail()
    assert (os.sched_getscheduler(0), gc.isenabled()) == (policy, collecting)


def test_open_files_are_allowed_as_far_as_the_hard_limit_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(0, new[0]))
    assert [allow_open_files(need) for need in (100, 3000, 2000, 9000)] == [100, 3000, 2000, 4096]
    assert limits == [4096, 4096]


def test_clock_converts_between_the_clocks() -> None:
    clock = Clock()
    assert abs(time.time_ns() - clock.offset - time.monotonic_ns()) < 100 * MS
    assert not clock.stepped()
    assert clock.steps == 0


def test_a_set_clock_is_noticed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 50 * MS)
    assert clock.stepped()
    assert not clock.stepped()
    assert clock.steps == 1


def test_batch_takes_many_datagrams_whole_and_again() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        batch = Batch(size=4)
        assert batch.receive(right.fileno()) == 0
        for sizes in ([1, 2, 3, 4, 5], [100, 100]):
            for size in sizes:
                left.send(bytes([size]) * size)
            got = []
            while count := batch.receive(right.fileno()):
                for i in range(count):
                    start = i * batch.SLOT
                    got.append(bytes(batch.data[start : start + batch.lengths[i]]))
            assert got == [bytes([size]) * size for size in sizes]
