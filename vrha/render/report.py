"""From a run to its report: one time axis for its steps and for all that was measured meanwhile.

Machines whose clocks are more than `CLOCK_LIMIT_MS` off are not drawn: nothing could be said about
the order of things. Smaller differences cannot be told from the order of things.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vrha.model.evidence import Carried, Measured, Measurement
from vrha.model.report import Direction, Report, ReportGap, ReportLane, ReportStep
from vrha.model.runs import StepStatus
from vrha.model.views import RunView, StepView

VERSION = 1
CLOCK_LIMIT_MS = 10_000.0

_NOTHING = Measurement()
_FLIPS = ("flip", "swap")
_DIRECTIONS: tuple[Direction, ...] = ("egress", "ingress", "canary", "other")


@dataclass(frozen=True, slots=True)
class _Clock:
    """The axis: `t0` is the start of the run (Unix time, s), `end_ms` where it ended."""

    t0: float
    end_ms: float | None

    def place(self, at: float) -> float | None:
        """Milliseconds after t0; None for a time that cannot belong to this run."""
        place = (at - self.t0) * 1000
        last = self.end_ms if self.end_ms is not None else float("inf")
        return place if -CLOCK_LIMIT_MS <= place <= last + CLOCK_LIMIT_MS else None


def report(run: RunView, now: float) -> Report:
    """The report of `run` at `now` (Unix time, s), whatever is known of it."""
    clock = _clock(run)
    taken = _steps((*run.steps, *run.undo), clock)
    steps, undo = taken[: len(run.steps)], taken[len(run.steps) :]
    lanes = tuple(_lanes(run, clock, taken))
    outside = [lane for lane in lanes if not lane.source and not lane.unavailable]
    counted = outside or [lane for lane in lanes if not lane.unavailable]
    flip, flip_length = _flip(steps)
    start, end = _extent(clock, taken, lanes, now)
    return Report(
        version=VERSION,
        run=run.id,
        kind=run.kind,
        router=run.router,
        epoch=run.epoch,
        strategy=run.strategy or "",
        status=run.status,
        reason=run.reason,
        detail=run.detail,
        old=run.old,
        new=run.new,
        nodes=tuple(dict.fromkeys(s.node for s in (*run.steps, *run.undo) if s.node)),
        started_at=run.started_at,
        ended_at=run.ended_at,
        t0=clock.t0 if clock else None,
        start_ms=start,
        end_ms=end,
        duration_ms=clock.end_ms if clock else None,
        measured_by=("client" if outside else "nodes") if counted else "",
        lost=sum(lane.lost for lane in counted) if counted else None,
        longest_gap_ms=max((lane.longest_gap_ms for lane in counted), default=None),
        flip_ms=flip,
        flip_length_ms=flip_length,
        point_of_no_return=run.point_of_no_return,
        point_of_no_return_ms=next(
            (
                step.start_ms
                for view, step in zip(run.steps, steps, strict=True)
                if view.seq == run.point_of_no_return
            ),
            None,
        ),
        steps=steps,
        undo=undo,
        lanes=lanes,
        connections=run.measurement.connections if run.measurement else (),
        carried=tuple(_carried(run)),
        leftovers=run.leftovers,
        notes=tuple(_notes(run, clock, taken, lanes)),
    )


def _clock(run: RunView) -> _Clock | None:
    if not run.started_at:
        return None
    began = datetime.fromisoformat(run.started_at).timestamp()
    if not run.ended_at:
        return _Clock(began, None)
    ended = datetime.fromisoformat(run.ended_at).timestamp()
    return _Clock(began, max(0.0, _ms((ended - began) * 1000)))


def _steps(views: Sequence[StepView], clock: _Clock | None) -> tuple[ReportStep, ...]:
    """All steps of the run, in the order in which they were taken."""
    steps = [_step(view, clock) for view in views]
    if clock is None or all(step.start_ms is None for step in steps):
        return tuple(steps)
    known = [step.start_ms for step in steps]
    before = 0.0
    for place, step in enumerate(steps):
        if step.start_ms is not None:
            before = step.start_ms + (step.length_ms or 0.0)
        elif step.status != StepStatus.PENDING:
            after = next((at for at in known[place + 1 :] if at is not None), clock.end_ms)
            length = None if after is None else max(0.0, _ms(after - before))
            steps[place] = replace(step, start_ms=_ms(before), length_ms=length, inferred=True)
    return tuple(steps)


def _step(view: StepView, clock: _Clock | None) -> ReportStep:
    start = clock.place(view.began) if clock and view.began is not None else None
    length = dict(view.timings_ms).get("total")
    return ReportStep(
        what=view.what,
        kind=view.kind,
        node=view.node,
        status=view.status,
        attempt=view.attempt,
        error=view.error,
        start_ms=None if start is None else _ms(start),
        length_ms=None if length is None else _ms(length),
        inferred=False,
        open=view.status is StepStatus.STARTED,
        flip=view.kind in _FLIPS,
        timings_ms=tuple((name, ms) for name, ms in view.timings_ms if name != "total"),
    )


def _flip(steps: Sequence[ReportStep]) -> tuple[tuple[float, float] | None, float | None]:
    """When the owner changed, at the earliest and at the latest, and how long that took.

    Without a step for it that is from the mute of the old one to the unmute of the new one.
    """
    spans = [_turn(step) for step in steps if step.flip]
    if not any(spans):
        spans = [_span(step) for step in steps if step.kind in ("mute", "unmute")]
    known = [span for span in spans if span]
    if not known:
        return None, None
    first, last = min(start for start, _ in known), max(end for _, end in known)
    phases = (dict(step.timings_ms).get("flip") for step in steps if step.flip)
    lengths = [length for length in phases if length is not None]
    return (first, last), _ms(sum(lengths) if lengths else last - first)


def _span(step: ReportStep) -> tuple[float, float] | None:
    if step.start_ms is None or step.length_ms is None:
        return None
    return step.start_ms, _ms(step.start_ms + step.length_ms)


def _turn(step: ReportStep) -> tuple[float, float] | None:
    """The part of a flip step in which its phase `flip` must lie: after what came before it, and
    before what came after it. What the step does between its phases is in no phase.
    """
    span = _span(step)
    names = [name for name, _ in step.timings_ms]
    if span is None or "flip" not in names:
        return span
    place = names.index("flip")
    first = span[0] + sum(ms for _, ms in step.timings_ms[:place])
    last = span[1] - sum(ms for _, ms in step.timings_ms[place + 1 :])
    return (_ms(first), _ms(last)) if first <= last else span


def _lanes(run: RunView, clock: _Clock | None, steps: Sequence[ReportStep]) -> Iterator[ReportLane]:
    found = [_lane(stream, "", clock, steps) for stream in (run.measurement or _NOTHING).streams]
    by_node: dict[tuple[str, str], ReportLane] = {}
    for step in (*run.steps, *run.undo):
        for stream in step.evidence.measured:
            # A later step repeats what an earlier one said, with what came after it.
            by_node[step.node, stream.stream] = _lane(stream, step.node, clock, steps)
    lanes = (*found, *by_node.values())
    yield from sorted(lanes, key=lambda lane: _DIRECTIONS.index(lane.direction))


def _lane(
    stream: Measured, source: str, clock: _Clock | None, steps: Sequence[ReportStep]
) -> ReportLane:
    start = clock.place(stream.began) if clock else None
    offset = start or 0.0
    known = () if start is None else steps
    gaps = tuple(_gap(_ms(offset + at), _ms(length), known) for at, length in stream.gaps_ms)
    return ReportLane(
        name=stream.stream,
        direction=_direction(stream.stream, source),
        source=source,
        interval_ms=stream.interval_ms,
        sent=stream.sent,
        lost=stream.lost,
        duplicates=stream.duplicates,
        late_ticks=stream.late_ticks,
        longest_gap_ms=max((gap.length_ms for gap in gaps), default=0.0),
        start_ms=None if start is None else _ms(start),
        length_ms=_ms((stream.sent + stream.late_ticks) * stream.interval_ms),
        gaps=tuple(sorted(gaps, key=lambda gap: gap.start_ms)),
        unavailable=stream.unavailable,
    )


def _gap(start: float, length: float, steps: Sequence[ReportStep]) -> ReportGap:
    spans = ((step.kind, _span(step)) for step in steps)
    during = [
        kind
        for kind, span in spans
        if span is not None and span[0] < start + length and start < span[1]
    ]
    return ReportGap(start, length, tuple(dict.fromkeys(during)))


def _direction(name: str, source: str) -> Direction:
    if source:
        return "canary"
    word = name.partition("_")[0]
    return "egress" if word == "egress" else "ingress" if word == "ingress" else "other"


def _carried(run: RunView) -> Iterable[Carried]:
    found: dict[str, Carried] = {}
    for step in (*run.steps, *run.undo):
        found |= {carried.what: carried for carried in step.evidence.carried}
    return found.values()


def _extent(
    clock: _Clock | None, steps: Sequence[ReportStep], lanes: Sequence[ReportLane], now: float
) -> tuple[float, float]:
    """First and last millisecond that are worth drawing."""
    spans = [(0.0, 0.0)]
    if clock is not None:
        still = max(0.0, (now - clock.t0) * 1000)
        spans.append((0.0, still if clock.end_ms is None else clock.end_ms))
    spans += [
        (s.start_ms, s.start_ms + (s.length_ms or 0.0)) for s in steps if s.start_ms is not None
    ]
    spans += [
        (gap.start_ms, gap.start_ms + gap.length_ms)
        for lane in lanes
        if lane.start_ms is not None
        for gap in lane.gaps
    ]
    return _ms(min(start for start, _ in spans)), _ms(max(end for _, end in spans))


def _notes(
    run: RunView,
    clock: _Clock | None,
    steps: Sequence[ReportStep],
    lanes: Sequence[ReportLane],
) -> Iterator[str]:
    views = (*run.steps, *run.undo)
    pairs = list(zip(views, steps, strict=True))
    off = [v.node for v, s in pairs if v.began is not None and (s.inferred or s.start_ms is None)]
    off += [lane.source or "the prober" for lane in lanes if clock and lane.start_ms is None]
    for name in dict.fromkeys(off):
        yield f"The clock of {name} is not that of the orchestrator: what it saw is not drawn."
    unsaid = (StepStatus.PENDING, StepStatus.STARTED)
    silent = [v for v in views if v.node and v.began is None and v.status not in unsaid]
    if silent:
        yield f"When {_count(len(silent), 'step')} began was never reported."
    if run.measurement and run.measurement.gaps_left_out:
        left_out = _count(run.measurement.gaps_left_out, "shorter gap")
        yield f"Besides those shown there were {left_out}; their probes are counted as lost."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ms(value: float) -> float:
    """Milliseconds to the microsecond."""
    return round(value, 3)
