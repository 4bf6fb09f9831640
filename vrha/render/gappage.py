"""The report of a run of ping-gap as one HTML page that needs nothing else.

The plot stands there without any script; with one it can be zoomed. Its data are embedded as JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from markupsafe import Markup

from vrha.core.compare import Comparison
from vrha.core.marks import Phase, phase_line, phases
from vrha.core.verdict import unsettled
from vrha.model.probing import ConnectionsResult, Gap, Record, StreamResult
from vrha.render.plot import milliseconds
from vrha.render.templates import render, render_html

GAPS_SHOWN = 200
LETTER = 10.0
"""The width of one, at least, in the units of a lane."""
WIDE, HIGH = 1000.0, 60.0
"""The units in which a lane is drawn; it is stretched to the width of the screen."""
TICKS = (0, 0.25, 0.5, 0.75, 1)
USUAL, HEADROOM = 0.98, 1.5


@dataclass(frozen=True, slots=True)
class Lane:
    """One stream of a plot: `band` and `line` are SVG paths of maximum and median round trips up
    to `top_ms`, `gaps` bars as (x, width, title), to scale."""

    name: str
    detail: str
    lossy: bool
    top_ms: float
    longest_ms: float
    band: str
    line: str
    gaps: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """A phase in the table: how many gaps fall into it, and the probes lost in those."""

    text: str
    start_ms: float
    length_ms: float
    gaps: int
    lost: int


@dataclass(frozen=True, slots=True)
class Plot:
    """Lanes over one time axis of `end_ms`; `bands` are phases as (x, width, text), `words` those
    of their texts that have room, as (x, text)."""

    end_ms: float
    lanes: tuple[Lane, ...]
    bands: tuple[tuple[float, float, str], ...]
    words: tuple[tuple[float, str], ...]
    ticks: tuple[tuple[float, str], ...]
    data: Markup


def page(record: Record) -> str:
    """The page of one run. What came from the network is escaped.

    Raises PreconditionError as `vrha.render.templates.render`.
    """
    streams = [(one.stream.name, one) for one in record.result.streams]
    known = phases(record.marks)
    return render_html(
        "gaps.html.j2",
        record=record,
        plot=_plot(streams, known, record.result.duration_ms),
        headline=headline(record),
        verdict=verdict(record),
        gaps=_longest(record)[:GAPS_SHOWN],
        more=max(0, len(_longest(record)) - GAPS_SHOWN),
        phases=[_phase_row(phase, record) for phase in known],
        ms=_ms,
        at=instant,
        errors=_errors,
        script=_script(),
        policy=_policy(),
    )


def compare_page(found: Comparison, a: Record, b: Record) -> str:
    """Table and plot of two runs, each from its own begin. Raises as `page`."""
    streams = [
        (f"{label} · {one.stream.name}", one)
        for name in _names(a, b)
        for label, record in (("A", a), ("B", b))
        for one in record.result.streams
        if one.stream.name == name
    ]
    end = max(a.result.duration_ms, b.result.duration_ms)
    return render_html(
        "gapcompare.html.j2",
        found=found,
        a=a,
        b=b,
        plot=_plot(streams, (), end),
        ms=_ms,
        at=instant,
        script=_script(),
        policy=_policy(),
    )


def instant(at_ms: float) -> str:
    """A place on the time line, to the millisecond: gaps next to each other differ in it."""
    return f"{at_ms / 1000:,.3f} s"


def scale(longest: Iterable[float | None]) -> float:
    """Up to where round trips are drawn: their maximum, unless a few exceed all others by far."""
    known = sorted(rtt for rtt in longest if rtt)
    if not known:
        return 0.0
    usual = known[round((len(known) - 1) * USUAL)] * HEADROOM
    return usual if known[-1] > 2 * usual else known[-1]


def headline(record: Record) -> str:
    """The outcome in one sentence."""
    streams, connections = record.result.streams, record.result.connections
    sent, lost = sum(one.loss.sent for one in streams), sum(one.loss.lost for one in streams)
    parts = [f"{lost:,} of {sent:,} probes lost"] if streams else []
    gaps = [gap for one in streams for gap in one.loss.gaps]
    if gaps:
        parts.append(f"longest gap {phase_line(max(gaps, key=lambda gap: gap.length_ms))}")
    if connections:
        alive, total = sum(c.alive for c in connections), sum(c.total for c in connections)
        parts.append(f"{alive} of {total} connections alive")
    return "; ".join(parts)


def verdict(record: Record) -> tuple[str, tuple[str, ...]]:
    """`passed`, `failed`, `does not count` or nothing, and why."""
    limits = record.limits
    if record.exceeded:
        return "failed", record.exceeded
    if record.settled is False:
        return "does not count", (unsettled(record.result, limits.settle_ms),)
    asked = (limits.gap_ms, limits.lost, limits.total_ms) != (None, None, None)
    return ("passed" if asked else "", ())


def _names(*records: Record) -> tuple[str, ...]:
    names = (one.stream.name for record in records for one in record.result.streams)
    return tuple(dict.fromkeys(names))


def _longest(record: Record) -> list[tuple[str, Gap]]:
    """All gaps, the longest first."""
    found = [(one.stream.name, gap) for one in record.result.streams for gap in one.loss.gaps]
    return sorted(found, key=lambda each: (-each[1].length_ms, each[1].start_ms))


def _phase_row(phase: Phase, record: Record) -> PhaseRow:
    end = record.result.duration_ms if phase.end_ms is None else phase.end_ms
    mine = [
        gap
        for one in record.result.streams
        for gap in one.loss.gaps
        if gap.start_ms < end and phase.start_ms < gap.start_ms + gap.length_ms
    ]
    lost = sum(gap.lost for gap in mine)
    return PhaseRow(phase.text, phase.start_ms, max(0.0, end - phase.start_ms), len(mine), lost)


def _errors(one: StreamResult | ConnectionsResult) -> str:
    """What the kernel said, and replies that came and were not taken."""
    words = [f"{name} {count:,}" for name, count in one.errors]
    if isinstance(one, StreamResult) and one.receive_drops:
        words.append(f"{one.receive_drops:,} replies overran the buffer")
    return ", ".join(words) or "–"


def _plot(
    streams: Sequence[tuple[str, StreamResult]], known: Sequence[Phase], end_ms: float
) -> Plot:
    end = max(end_ms, 1.0)
    bands = tuple(
        (_x(p.start_ms, end), _x((p.end_ms or end) - p.start_ms, end), p.text) for p in known
    )
    return Plot(
        end_ms=end,
        lanes=tuple(_lane(name, one, end) for name, one in streams),
        bands=bands,
        words=tuple(_with_room(bands)),
        ticks=tuple((share * 100.0, instant(share * end)) for share in TICKS),
        data=_embedded(
            {
                "end": round(end, 3),
                "streams": [_data(name, one) for name, one in streams],
                "phases": [[p.start_ms, p.end_ms, p.text] for p in known],
            }
        ),
    )


def _with_room(bands: Sequence[tuple[float, float, str]]) -> Iterator[tuple[float, str]]:
    free_from = 0.0
    for x, _, text in bands:
        if x >= free_from:
            yield x, text
            free_from = x + len(text) * LETTER


def _data(name: str, one: StreamResult) -> dict[str, Any]:
    series = one.series
    return {
        "name": name,
        "gaps": [
            [round(gap.start_ms, 3), round(gap.length_ms, 3), gap.lost, ", ".join(gap.phases)]
            for gap in one.loss.gaps
        ],
        "bin": series.bin_ms if series else 0,
        "lost": series.lost if series else (),
        "mid": series.rtt_median_ms if series else (),
        "top": series.rtt_max_ms if series else (),
    }


def _lane(name: str, one: StreamResult, end: float) -> Lane:
    longest = one.series.rtt_max_ms if one.series else ()
    top = scale(longest)
    loss = one.loss
    lost = f"{loss.lost:,} of {loss.sent:,} lost" if loss.lost else f"{loss.sent:,} sent, none lost"
    return Lane(
        name=name,
        detail=lost,
        lossy=loss.lost > 0,
        top_ms=top,
        longest_ms=max((rtt for rtt in longest if rtt), default=0.0),
        band=" ".join(_band(one, end, top)),
        line=" ".join(_line(one, end, top)),
        gaps=tuple(
            (
                _x(gap.start_ms, end),
                _x(gap.length_ms, end),
                f"gap of {phase_line(gap)}, {gap.lost} lost, at {instant(gap.start_ms)}",
            )
            for gap in loss.gaps[: GAPS_SHOWN * 5]
        ),
    )


def _line(one: StreamResult, end: float, top: float) -> Iterator[str]:
    """Median round trips as a path that is broken where nothing came back."""
    if one.series is None or not top:
        return
    down = False
    for place, rtt in enumerate(one.series.rtt_median_ms):
        if rtt is None:
            down = False
            continue
        x, y = _x((place + 0.5) * one.series.bin_ms, end), _y(rtt, top)
        yield f"{'L' if down else 'M'}{x:.1f} {y:.1f}"
        down = True


def _band(one: StreamResult, end: float, top: float) -> Iterator[str]:
    """Maximum round trips as bars."""
    if one.series is None or not top:
        return
    width = max(1.0, _x(one.series.bin_ms, end))
    for place, rtt in enumerate(one.series.rtt_max_ms):
        if rtt is not None:
            y = _y(rtt, top)
            x = _x(place * one.series.bin_ms, end)
            yield f"M{x:.1f} {HIGH} V{y:.1f} h{width:.1f} V{HIGH} Z"


def _x(at_ms: float, end: float) -> float:
    return at_ms / end * WIDE


def _y(rtt: float, top: float) -> float:
    return max(0.0, HIGH - rtt / top * (HIGH - 4))


def _ms(value: float | None) -> str:
    return "–" if value is None else milliseconds(value)


def _embedded(data: object) -> Markup:
    """JSON that cannot end the element in which it stands."""
    text = json.dumps(data, separators=(",", ":"))
    for each in "<>&":
        text = text.replace(each, f"\\u{ord(each):04x}")
    return Markup(text)


@cache
def _script() -> Markup:
    return Markup(render("gaps.js.j2", usual=USUAL, headroom=HEADROOM))


@cache
def _policy() -> str:
    """Content-Security-Policy: nothing but this one script, and from nowhere."""
    digest = base64.b64encode(hashlib.sha256(str(_script()).encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
