"""Where things stand in a plot over time: shares of its width, so that it fits every screen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vrha.model.report import Direction, Report, ReportGap, ReportLane, ReportStep

ZOOM_PAD_MS = 5.0
"""What the close view shows before and after the flip, at least."""

_TICKS = 7
_LABEL_ROOM = 14.0
"""Share of the width (%) that the length of a gap takes on a narrow screen."""
_GROUPS: tuple[tuple[Direction, str], ...] = (
    ("egress", "Egress: probes from inside to outside"),
    ("ingress", "Ingress: probes from outside to inside"),
    ("canary", "Canaries: probes of the nodes through their instances"),
    ("other", "Other streams"),
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A bar from `x`, `width` wide (both %), of a `tone` (CSS class); `text` stands at `text_x`."""

    x: float
    width: float
    tone: str
    title: str
    text: str = ""
    text_x: float = 0.0
    anchor: str = "start"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a plot."""

    label: str
    detail: str
    tone: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A vertical line through all rows at `x` (%)."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Plot:
    """Groups of rows over one time axis. `flip` and `no_return` are None where not in sight."""

    unit: str
    ticks: tuple[Line, ...]
    flip: Mark | None
    flip_label: Line | None
    no_return: Line | None
    groups: tuple[tuple[str, tuple[Row, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Axis:
    start: float
    end: float
    origin: float = 0.0

    def x(self, at: float) -> float:
        share = (at - self.start) / (self.end - self.start) * 100
        return round(min(100.0, max(0.0, share)), 4)

    def shows(self, start: float, length: float) -> bool:
        return start <= self.end and start + length >= self.start

    def mark(self, start: float, length: float, tone: str, title: str) -> Mark:
        x = self.x(start)
        return Mark(x, round(self.x(start + length) - x, 4), tone, title)


def overview(report: Report) -> Plot | None:
    """The whole run; None when nothing in it has a time."""
    timed = any(s.start_ms is not None for s in (*report.steps, *report.undo))
    lanes = any(lane.start_ms is not None for lane in report.lanes)
    if report.t0 is None or not (timed or lanes):
        return None
    pad = max(0.02 * (report.end_ms - report.start_ms), 0.5)
    return _plot(report, _Axis(report.start_ms - pad, report.end_ms + pad), every=True)


def around_flip(report: Report) -> Plot | None:
    """What happened around the change of owner; None without one, or where it fills the run."""
    if report.flip_ms is None:
        return None
    start, end = report.flip_ms
    pad = max(ZOOM_PAD_MS, (end - start) / 2)
    first, last = start - pad, end + pad
    for gap in _gaps(report):
        if gap.start_ms <= end + pad and gap.start_ms + gap.length_ms >= start - pad:
            first = min(first, gap.start_ms - pad / 4)
            last = max(last, gap.start_ms + gap.length_ms + pad / 4)
    if last - first > 0.6 * (report.end_ms - report.start_ms):
        return None
    return _plot(report, _Axis(first, last, origin=start), every=False)


def took(step: ReportStep) -> str:
    """How long a step took, as far as that is known."""
    if step.length_ms is None or step.open:
        return ""
    return ("at most " if step.inferred else "") + milliseconds(step.length_ms)


def milliseconds(value: float) -> str:
    """As people read it: three digits that count."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.1f} s"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f} ms"


def _gaps(report: Report) -> Iterator[ReportGap]:
    return (gap for lane in report.lanes if lane.start_ms is not None for gap in lane.gaps)


def _plot(report: Report, axis: _Axis, every: bool) -> Plot:
    groups = [
        ("Steps", tuple(_step_rows(report.steps, axis, every, "step"))),
        ("Roll-back", tuple(_step_rows(report.undo, axis, every, "undo"))),
    ]
    for direction, title in _GROUPS:
        lanes = [lane for lane in report.lanes if lane.direction == direction]
        groups.append((title, tuple(_lane_row(lane, axis) for lane in lanes)))
    unit, ticks = _ticks(axis)
    flip = report.flip_ms
    place = report.point_of_no_return_ms
    return Plot(
        unit=unit,
        ticks=ticks,
        flip=axis.mark(flip[0], flip[1] - flip[0], "flip", "flip") if flip else None,
        flip_label=_line(axis, flip[0], "flip") if flip else None,
        no_return=_line(axis, place, "point of no return")
        if place is not None and axis.shows(place, 0)
        else None,
        groups=tuple((title, rows) for title, rows in groups if rows),
    )


def _line(axis: _Axis, at: float, text: str) -> Line:
    x = axis.x(at)
    return Line(x, text, "end" if x > 60 else "start")


def _step_rows(steps: Sequence[ReportStep], axis: _Axis, every: bool, tone: str) -> Iterator[Row]:
    for place, step in enumerate(steps, start=1):
        marks: tuple[Mark, ...] = ()
        if step.start_ms is not None:
            length = step.length_ms or 0.0
            if step.open:
                length = max(length, axis.end - step.start_ms)
            if axis.shows(step.start_ms, length):
                marks = (axis.mark(step.start_ms, length, _tone(step, tone), _told(step)),)
        if marks or every:
            yield Row(f"{place} {step.what}", _told(step), _tone(step, tone), marks)


def _tone(step: ReportStep, usual: str) -> str:
    if step.status in ("failed", "abandoned") or step.error:
        return "failed"
    if step.status in ("pending", "started"):
        return step.status
    return "inferred" if step.inferred else "flip" if step.flip and usual == "step" else usual


def _told(step: ReportStep) -> str:
    words = [step.node, "" if step.status == "done" else step.status, took(step)]
    if step.attempt > 1:
        words.append(f"attempt {step.attempt}")
    return " · ".join(word for word in words if word)


def _lane_row(lane: ReportLane, axis: _Axis) -> Row:
    source = f"{lane.source} · " if lane.source else ""
    if lane.unavailable:
        return Row(lane.name, f"{source}not measured: {lane.unavailable}", "unmeasured", ())
    detail = f"{source}{lane.lost:,} of {lane.sent:,} lost"
    if lane.start_ms is None:
        return Row(lane.name, f"{detail}, not drawn", "unmeasured", ())
    marks = []
    if axis.shows(lane.start_ms, lane.length_ms):
        told = f"{lane.name}: a probe every {milliseconds(lane.interval_ms)}"
        marks.append(axis.mark(lane.start_ms, lane.length_ms, "measured", told))
    marks += _labelled([gap for gap in lane.gaps if axis.shows(gap.start_ms, gap.length_ms)], axis)
    return Row(lane.name, detail, "lossy" if lane.lost else "whole", tuple(marks))


def _labelled(gaps: Sequence[ReportGap], axis: _Axis) -> list[Mark]:
    """A bar per gap; the longest have their length beside them, as far as there is room."""
    taken: list[tuple[float, float]] = []
    marks: dict[int, Mark] = {}
    for index in sorted(range(len(gaps)), key=lambda index: -gaps[index].length_ms):
        gap = gaps[index]
        length = milliseconds(gap.length_ms)
        when = f", during {', '.join(gap.during)}" if gap.during else ""
        told = f"gap of {length}{when}, {milliseconds(gap.start_ms)} after the start of the run"
        mark = axis.mark(gap.start_ms, gap.length_ms, "gap", told)
        right = mark.x + mark.width
        fits_right = right + _LABEL_ROOM <= 100
        room = (right, right + _LABEL_ROOM) if fits_right else (mark.x - _LABEL_ROOM, mark.x)
        if room[0] >= 0 and not any(room[0] < end and start < room[1] for start, end in taken):
            text_x, anchor = (right, "start") if fits_right else (mark.x, "end")
            mark = Mark(mark.x, mark.width, "gap", told, length, text_x, anchor)
            taken.append(room)
        taken.append((mark.x, right))
        marks[index] = mark
    return [marks[index] for index in sorted(marks)]


def _ticks(axis: _Axis) -> tuple[str, tuple[Line, ...]]:
    """Unit of the axis, and its ticks at round numbers of it."""
    span = axis.end - axis.start
    unit, scale = ("s", 1000.0) if span >= 10_000 else ("ms", 1.0)
    step = _round_step(span / scale / _TICKS) * scale
    first = math.ceil((axis.start - axis.origin) / step)
    last = math.floor((axis.end - axis.origin) / step)
    digits = max(0, -math.floor(math.log10(step / scale)))
    lines = []
    for number in range(first, last + 1):
        x = axis.x(axis.origin + number * step)
        anchor = "start" if x < 1 else "end" if x > 99 else "middle"
        lines.append(Line(x, f"{number * step / scale:,.{digits}f}", anchor))
    return unit, tuple(lines)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... (times a power of ten) that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * 0.999)
