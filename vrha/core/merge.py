"""Several ends of one run, each with its own clock, as one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vrha.core.gaps import NS_PER_MS
from vrha.errors import InputError
from vrha.model.probing import Gap, Loss, Result, Series, StreamResult


def merge(results: Sequence[Result]) -> Result:
    """One result on the time line of the end that began first, by the realtime clocks.

    Raises InputError (`no-stream` without any result, `bad-stream` when two streams have one name).
    """
    if not results:
        raise InputError("no-stream", "nothing was probed")
    first = min(results, key=lambda one: one.t0_realtime_ns)
    shifts = [(one.t0_realtime_ns - first.t0_realtime_ns) / NS_PER_MS for one in results]
    pairs = list(zip(results, shifts, strict=True))
    streams = tuple(_shifted(one, by) for result, by in pairs for one in result.streams)
    connections = tuple(one for result in results for one in result.connections)
    names = [one.stream.name for one in streams] + [one.stream.name for one in connections]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("bad-stream", f"stream names occur twice: {', '.join(twice)}")
    probes = [max(1, _probes(result)) for result in results]
    cpu = sum(one.cpu_us_per_probe * n for one, n in zip(results, probes, strict=True))
    return replace(
        first,
        streams=streams,
        connections=connections,
        duration_ms=max(one.duration_ms + by for one, by in pairs),
        late_ticks=max(one.late_ticks for one in results),
        realtime=all(one.realtime for one in results),
        memory_locked=all(one.memory_locked for one in results),
        clock_steps=sum(one.clock_steps for one in results),
        cpu_us_per_probe=round(cpu / sum(probes), 2),
    )


def _probes(result: Result) -> int:
    return sum(one.loss.sent for one in result.streams) + sum(
        one.messages for one in result.connections
    )


def _shifted(one: StreamResult, by: float) -> StreamResult:
    if not by:
        return one
    return replace(
        one,
        loss=_loss(one.loss, by),
        series=None if one.series is None else _series(one.series, by),
    )


def _loss(loss: Loss, by: float) -> Loss:
    def later(at: float | None) -> float | None:
        return None if at is None else at + by

    return replace(
        loss,
        gaps=tuple(_gap(gap, by) for gap in loss.gaps),
        first_lost_ms=later(loss.first_lost_ms),
        restored_ms=later(loss.restored_ms),
    )


def _gap(gap: Gap, by: float) -> Gap:
    return replace(gap, start_ms=gap.start_ms + by)


def _series(series: Series, by: float) -> Series:
    """Moved by whole bins: a plot cannot tell less."""
    empty = round(by / series.bin_ms)
    return replace(
        series,
        sent=(0,) * empty + series.sent,
        lost=(0,) * empty + series.lost,
        rtt_median_ms=(None,) * empty + series.rtt_median_ms,
        rtt_max_ms=(None,) * empty + series.rtt_max_ms,
    )
