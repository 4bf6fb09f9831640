"""What came to a responder: the sequence numbers of each stream, as ranges, in bounded memory."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable

from vrha.probe.wire import MOST_RANGES as MOST_REPORTED
from vrha.probe.wire import Report

MOST_COOKIES = 1024
MOST_RANGES = 65_536
"""Ranges of one stream: beyond that the lowest are forgotten."""

MOST_IN_ALL = 1 << 20
"""Ranges of all streams, 8 bytes each: beyond that idle streams are forgotten."""

Range = tuple[int, int]
"""First and last sequence number."""


class Record:
    """The sequence numbers that came with one cookie; those below `floor` are forgotten.

    It is complete since `since_ns`. The highest range, `first` up to and without `next`, stands by
    itself: in a stream without loss and reordering a number is recorded by one comparison.
    """

    __slots__ = (
        "_ends",
        "_starts",
        "duplicates",
        "first",
        "floor",
        "next",
        "refused",
        "seen",
        "since_ns",
    )

    def __init__(self, seq: int, since_ns: int = 0) -> None:
        self.since_ns = since_ns
        self.first, self.next = seq, seq + 1
        self.floor = self.duplicates = self.refused = 0
        self.seen = self.next
        """`next` when it was last looked for an idle record."""
        self._starts = array("I")
        self._ends = array("I")

    def __len__(self) -> int:
        """Ranges."""
        return len(self._starts) + 1

    def add(self, seq: int, most: int = MOST_RANGES) -> None:
        """Note that `seq` came; with more than `most` ranges a part of them is forgotten."""
        if seq == self.next:
            self.next = seq + 1
        elif seq > self.next:
            self._starts.append(self.first)
            self._ends.append(self.next)
            self.first, self.next = seq, seq + 1
        elif seq >= self.first:
            self.duplicates += 1
        elif seq >= self.floor:
            self._fill(seq)
        if len(self._starts) >= most:
            self._forget_lowest(1 + most // 16)

    def _fill(self, seq: int) -> None:
        """Note a number from below the highest range."""
        starts, ends = self._starts, self._ends
        after = bisect_right(starts, seq)
        if after and seq < ends[after - 1]:
            self.duplicates += 1
            return
        joins_lower = after > 0 and ends[after - 1] == seq
        highest = after == len(starts)
        joins_upper = seq + 1 == (self.first if highest else starts[after])
        if joins_lower and joins_upper:
            ends.pop(after - 1)
            if highest:
                self.first = starts.pop()
            else:
                starts.pop(after)
        elif joins_lower:
            ends[after - 1] = seq + 1
        elif not joins_upper:
            starts.insert(after, seq)
            ends.insert(after, seq + 1)
        elif highest:
            self.first = seq
        else:
            starts[after] = seq

    def _forget_lowest(self, count: int) -> None:
        self.floor = self._ends[count - 1]
        del self._starts[:count]
        del self._ends[:count]

    def ranges(self, from_seq: int, most: int) -> tuple[tuple[Range, ...], bool]:
        """Up to `most` ranges of numbers from `from_seq` on, and whether there are more."""
        at = bisect_right(self._ends, from_seq)
        until = min(at + most, len(self._starts))
        found = [(self._starts[i], self._ends[i] - 1) for i in range(at, until)]
        if len(found) < most and self.next > from_seq:
            return (*found, (self.first, self.next - 1)), False
        return tuple(found), self.next > from_seq


class Recorder:
    """A record per cookie. `clock` gives nanoseconds that never go back.

    Only whoever knows a cookie can ask for its record. Memory is bounded: a cookie too many makes
    one that is idle be forgotten, and so do ranges too many.
    """

    def __init__(
        self,
        clock: Callable[[], int],
        most_cookies: int = MOST_COOKIES,
        most_ranges: int = MOST_RANGES,
        most_in_all: int = MOST_IN_ALL,
    ) -> None:
        self._clock = clock
        self._most_cookies = most_cookies
        self._most_ranges = most_ranges
        self._most_in_all = most_in_all
        self._records: dict[bytes, Record] = {}
        self._ranges = 0
        # A cookie that is new now may be one that was forgotten up to here.
        self._forgot_at = clock()

    @property
    def ranges(self) -> int:
        """Ranges of all records."""
        return self._ranges

    def __len__(self) -> int:
        """Cookies."""
        return len(self._records)

    def came(self, cookie: bytes, seq: int) -> None:
        """A probe came."""
        record = self._records.get(cookie)
        if record is not None and record.next == seq:
            record.next = seq + 1
        else:
            self._note(cookie, record, seq)

    def _note(self, cookie: bytes, record: Record | None, seq: int) -> None:
        if record is None:
            if len(self._records) >= self._most_cookies:
                self._forget_idle(cookie)
            self._records[cookie] = Record(seq, self._forgot_at)
            self._ranges += 1
        else:
            before = len(record)
            record.add(seq, self._most_ranges)
            self._ranges += len(record) - before
        while self._ranges > self._most_in_all and len(self._records) > 1:
            self._forget_idle(cookie)

    def _forget_idle(self, spared: bytes) -> None:
        """Forget the first record to which nothing was added since it was last looked at here: the
        second-chance order, which costs nothing per probe."""
        while True:
            cookie = next(iter(self._records))
            record = self._records.pop(cookie)
            if cookie == spared or record.next != record.seen:
                record.seen = record.next
                self._records[cookie] = record
                continue
            self._ranges -= len(record)
            self._forgot_at = self._clock()
            return

    def refused(self, cookie: bytes) -> None:
        """The answer to a probe could not be sent."""
        record = self._records.get(cookie)
        if record is not None:
            record.refused += 1

    def report(self, cookie: bytes, from_seq: int, most: int = MOST_REPORTED) -> Report:
        """Up to `most` ranges of a cookie from `from_seq` on; that nothing came is an answer."""
        record = self._records.get(cookie)
        now = self._clock()
        if record is None:
            return Report(from_seq, (now - self._forgot_at) // 1000, 0, 0, 0, 0, (), False)
        ranges, more = record.ranges(from_seq, most)
        return Report(
            from_seq,
            (now - record.since_ns) // 1000,
            record.floor,
            len(record),
            record.duplicates,
            record.refused,
            ranges,
            more,
        )
