"""The asking side of one-way loss, against far ends that answer by script."""

from __future__ import annotations

import socket
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from vrha.core.gaps import UNANSWERED
from vrha.core.loss import UNKNOWN
from vrha.probe.kernel import Namespace
from vrha.probe.oneway import REFUSED, Asked, arrived
from vrha.probe.wire import PAYLOAD, Report, pack_question

COOKIE = b"cookie!!"
LONG_US = 3600 * 10**6
Script = Callable[[int], bytes | None]


@contextmanager
def far_end(script: Script) -> Iterator[tuple[str, int]]:
    """Answers a question from a sequence number on by what `script` says; its address."""
    stop = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.02)

        def serve() -> None:
            while not stop.is_set():
                try:
                    question, peer = sock.recvfrom(2048)
                except TimeoutError:
                    continue
                answer = script(PAYLOAD.unpack_from(question)[2])
                if answer is not None:
                    sock.sendto(answer, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()
        finally:
            stop.set()
            thread.join()


def stream(
    address: tuple[str, int], lost: Sequence[int], count: int = 10, age_s: float = 60.0
) -> Asked:
    """`count` probes, 1 ms apart, of which the first was sent `age_s` ago."""
    start = time.monotonic_ns() - round(age_s * 1e9)
    sent = array("q", (start + i * 1_000_000 for i in range(count)))
    received = array("q", (UNANSWERED if i in lost else at + 5 for i, at in enumerate(sent)))
    family = socket.AF_INET
    return Asked(Namespace(None), family, address, COOKIE, sent, received, Counter())


def report(
    start: int,
    ranges: Sequence[tuple[int, int]],
    *,
    more: bool = False,
    age_us: int = LONG_US,
    floor: int = 0,
    refused: int = 0,
) -> bytes:
    return Report(start, age_us, floor, len(ranges), 0, refused, tuple(ranges), more).pack(COOKIE)


def told(one: Asked, limit_s: float = 5.0) -> list[int] | None:
    (known,) = arrived([one], limit_s)
    return None if known is None else list(known)


def test_what_is_on_record_came_and_the_rest_did_not() -> None:
    with far_end(lambda start: report(start, [(0, 3), (6, 9)], refused=2)) as address:
        one = stream(address, lost=[2, 4, 5, 6])
        assert told(one) == [1, 1, 1, 1, 0, 0, 1, 1, 1, 1]
    assert one.errors == {REFUSED: 2}


def test_page_by_page_also_when_questions_get_lost() -> None:
    pages = {2: ([(0, 2)], True), 3: ([(4, 5)], True), 6: ([(9, 9)], False)}
    asked: list[int] = []

    def script(start: int) -> bytes | None:
        asked.append(start)
        ranges, more = pages[start]
        return report(start, ranges, more=more) if asked.count(start) > 1 else None

    with far_end(script) as address:
        assert told(stream(address, lost=[2, 3, 7])) == [1, 1, 1, 0, 1, 1, 1, 0, 1, 1]
    assert set(asked) == {2, 3, 6}


def test_what_was_told_before_the_far_end_fell_silent_is_kept() -> None:
    def script(start: int) -> bytes | None:
        return report(start, [(0, 1), (3, 5)], more=True) if start < 6 else None

    with far_end(script) as address:
        known = told(stream(address, lost=[2, 3, 7]))
    assert known == [1, 1, 0, 1, 1, 1, 1, UNKNOWN, 1, 1]


def test_what_the_far_end_may_have_forgotten_is_not_known() -> None:
    with far_end(lambda start: report(start, [(8, 8)], floor=4)) as address:
        one = stream(address, lost=[2, 3, 4, 8])
        assert told(one) == [1, 1, UNKNOWN, UNKNOWN, 0, 1, 1, 1, 1, 1]


def test_a_far_end_that_came_up_in_the_run_knows_only_of_what_was_sent_since() -> None:
    """Started 60 s ago, when a minute's worth of probes was still to come."""
    with far_end(lambda start: report(start, [(119, 119)], age_us=60 * 10**6)) as address:
        start = time.monotonic_ns() - 120 * 10**9
        sent = array("q", (start + i * 10**9 for i in range(120)))
        received = array("q", [start + 5] + [UNANSWERED] * 119)
        one = Asked(Namespace(None), socket.AF_INET, address, COOKIE, sent, received, Counter())
        known = told(one)
    assert known is not None
    assert known[:60] == [1] + [UNKNOWN] * 59
    # The clock of another machine may run faster by a thousandth: 60 ms of 60 s.
    assert known[61:] == [0] * 58 + [1]


def test_one_that_started_anew_between_two_pages_denies_nothing() -> None:
    def script(start: int) -> bytes:
        if start < 6:
            return report(start, [(0, 1), (4, 5)], more=True)
        return report(start, [], age_us=10)

    with far_end(script) as address:
        known = told(stream(address, lost=[2, 4, 7]))
    assert known == [1, 1, UNKNOWN, 1, 1, 1, 1, UNKNOWN, 1, 1]


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        b"",
        b"x" * 508,
        pack_question(COOKIE, 1),
        report(2, [(0, 1)]),
        Report(1, LONG_US, 0, 0, 0, 0, (), False).pack(b"notours!"),
    ],
    ids=["silence", "empty", "foreign", "echo", "of-another-page", "of-another-cookie"],
)
def test_without_an_answer_that_makes_sense_nothing_is_known(nonsense: bytes | None) -> None:
    with far_end(lambda _: nonsense) as address:
        assert told(stream(address, lost=[1])) is None


def test_an_answer_beyond_all_that_was_sent_ends_it() -> None:
    most = 2**32 - 1
    with far_end(lambda start: report(start, [(3, most - 1), (most, most)], more=True)) as address:
        assert told(stream(address, lost=[2, 3], count=5)) == [1, 1, 0, 1, 1]


def test_nobody_is_asked_where_nothing_or_all_was_lost() -> None:
    asked: list[int] = []
    with far_end(lambda start: asked.append(start)) as address:  # type: ignore[func-returns-value]
        lossless, silent = stream(address, lost=[]), stream(address, lost=range(10))
        nothing, everything = arrived([lossless, silent])
    assert nothing is not None
    assert list(nothing) == [1] * 10
    assert everything is None
    assert asked == []


def test_who_does_not_answer_costs_a_second_in_all() -> None:
    with far_end(lambda _: None) as silent, far_end(lambda start: report(start, [])) as other:
        streams = [stream(silent, lost=[1]) for _ in range(20)] + [stream(other, lost=[1])]
        began = time.monotonic()
        known = arrived(streams)
    assert time.monotonic() - began < 5
    assert known[:-1] == [None] * 20
    assert list(known[-1] or []) == [1, 0, *[1] * 8]


def test_a_far_end_that_cannot_be_asked_is_one_that_says_nothing() -> None:
    one = stream(("127.0.0.1", 1), lost=[1])
    gone = Asked(
        Namespace("/dev/null"), one.family, one.address, COOKIE, one.sent, one.received, Counter()
    )
    assert arrived([one, gone]) == [None, None]
    gone.namespace.close()
