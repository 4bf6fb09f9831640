"""What a responder remembers, in bounded memory, and what it says about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrha.probe.record import Record, Recorder
from vrha.probe.wire import MOST_RANGES, QUESTION_BYTES, Report, pack_question

COOKIE = b"12345678"


class Clock:
    now = 0

    def __call__(self) -> int:
        self.now += 1000
        return self.now


def ranges_of(numbers: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


@given(
    st.lists(st.integers(0, 60), min_size=1) | st.permutations(range(61)).map(lambda p: p[:50]),
    st.integers(0, 61),
)
def test_ranges_in_any_order(numbers: list[int], start: int) -> None:
    record = Record(numbers[0])
    for number in numbers[1:]:
        record.add(number)
    whole = ranges_of(set(numbers))
    assert record.ranges(0, 100) == (tuple(whole), False)
    assert record.duplicates == len(numbers) - len(set(numbers))
    found, more = record.ranges(start, 2)
    later = [each for each in whole if each[1] >= start]
    assert list(found) == later[:2]
    assert more == (len(later) > 2)


def test_the_lowest_ranges_are_forgotten_and_that_is_said() -> None:
    record = Record(0)
    for number in range(2, 200, 2):
        record.add(number, most=16)
    assert len(record) <= 17
    found, _ = record.ranges(0, 100)
    assert all(first >= record.floor for first, _ in found)
    assert record.floor > 0


def test_a_flood_of_cookies_forgets_idle_ones_and_stays_bounded() -> None:
    recorder = Recorder(Clock(), most_cookies=8)
    for seq in range(100):
        recorder.came(COOKIE, seq)
        recorder.came(seq.to_bytes(8, "big"), 5)
    assert len(recorder) == 8
    report = recorder.report(COOKIE, 0)
    assert report.ranges == ((0, 99),)
    gone = recorder.report((1).to_bytes(8, "big"), 0)
    assert gone.ranges == ()
    # What it has forgotten it must not deny: it is complete only since then.
    assert gone.age_us < report.age_us


def test_ranges_are_bounded_over_all_cookies() -> None:
    recorder = Recorder(Clock(), most_in_all=100)
    for cookie in range(20):
        for seq in range(0, 40, 2):
            recorder.came(cookie.to_bytes(8, "big"), seq)
    assert recorder.ranges <= 100


def test_a_report_is_never_longer_than_its_question() -> None:
    recorder = Recorder(Clock())
    for seq in range(0, 1000, 2):
        recorder.came(COOKIE, seq)
    question = pack_question(COOKIE, 0)
    assert len(question) == QUESTION_BYTES
    found: list[tuple[int, int]] = []
    start, pages = 0, 0
    while True:
        packed = recorder.report(COOKIE, start).pack(COOKIE)
        assert len(packed) <= len(question)
        report = Report.unpack(packed, COOKIE)
        assert report is not None
        found += report.ranges
        pages += 1
        if not report.more:
            break
        start = report.ranges[-1][1] + 1
    assert found == [(seq, seq) for seq in range(0, 1000, 2)]
    assert pages == -(-500 // MOST_RANGES)


@pytest.mark.parametrize("cut", [0, 3, 20, 41])
def test_a_report_that_makes_no_sense_is_none(cut: int) -> None:
    recorder = Recorder(Clock())
    recorder.came(COOKIE, 1)
    packed = recorder.report(COOKIE, 0).pack(COOKIE)
    assert Report.unpack(packed, COOKIE) is not None
    assert Report.unpack(packed[:cut], COOKIE) is None
    assert Report.unpack(packed, b"87654321") is None
