"""What somebody did meanwhile, and which gaps fall into it.

A mark begins a phase, which lasts until the next mark; one without text, or `-`, only ends one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest

from vrha.errors import InputError
from vrha.model.probing import Gap, Mark, Result, StreamResult

MAX_TEXT = 200
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d\S*")
_SCALES = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))
"""Unix times beyond the first figure are in units of which a second has as many as the other."""


@dataclass(frozen=True, slots=True)
class Phase:
    """From `start_ms` on, up to `end_ms` exclusively (None: to the end of the run)."""

    text: str
    start_ms: float
    end_ms: float | None


def parse_mark(line: str, now: float) -> tuple[float, str]:
    """Unix time in seconds and text of a line `TIME TEXT`.

    TIME is a Unix time (in s, ms, us or ns) or ISO 8601 (UTC unless it says otherwise); without it
    the mark is of `now`. A line of `-` alone ends a phase. Raises InputError (`bad-mark`) on a line
    without any text or with a time that is none.
    """
    head, _, rest = line.strip().partition(" ")
    if not head:
        raise InputError("bad-mark", "a mark without text", "Write TIME TEXT, or TEXT alone.")
    at: float | None = None
    if _NUMBER.fullmatch(head):
        at = float(head)
        at /= next((scale for least, scale in _SCALES if at >= least), 1.0)
    elif _DATE.fullmatch(head):
        try:
            read = datetime.fromisoformat(head)
        except ValueError as error:
            raise InputError("bad-mark", f"{head} is no time: {error}") from error
        at = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    if at is None:
        at, rest = now, line
    text = "".join(each for each in rest.strip() if each.isprintable())
    return at, "" if text == "-" else text[:MAX_TEXT]


def phases(marks: Sequence[Mark]) -> tuple[Phase, ...]:
    """What lasted from when to when, in order of time."""
    ordered = sorted(marks, key=lambda mark: mark.at_ms)
    ends: list[float | None] = [mark.at_ms for mark in ordered[1:]]
    return tuple(
        Phase(mark.text, mark.at_ms, end) for mark, end in zip_longest(ordered, ends) if mark.text
    )


def with_phases(result: Result, marks: Sequence[Mark]) -> Result:
    """The result with the phases of `marks` in its gaps."""
    known = phases(marks)
    return replace(result, streams=tuple(_told(one, known) for one in result.streams))


def _told(one: StreamResult, known: Sequence[Phase]) -> StreamResult:
    gaps = tuple(replace(gap, phases=_during(gap, known)) for gap in one.loss.gaps)
    return replace(one, loss=replace(one.loss, gaps=gaps))


def _during(gap: Gap, known: Sequence[Phase]) -> tuple[str, ...]:
    end = gap.start_ms + gap.length_ms
    texts = (
        phase.text
        for phase in known
        if phase.start_ms < end and (phase.end_ms is None or gap.start_ms < phase.end_ms)
    )
    return tuple(dict.fromkeys(texts))


def phase_line(gap: Gap) -> str:
    """The gap in words, as "12.0 ms, during flip"."""
    when = f", during {', '.join(gap.phases)}" if gap.phases else ""
    return f"{gap.length_ms:.1f} ms{when}"
