"""Probes beside a run: `--measure FILE` starts them before it and keeps their result with it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vrha.cli.options import duration
from vrha.errors import InputError, VrhaError
from vrha.model.evidence import Connections, Measured, Measurement
from vrha.model.views import RunView

if TYPE_CHECKING:
    from vrha.cli.client import Client
    from vrha.model.probing import Result, Stream, StreamResult
    from vrha.probe.process import ProbeProcess

F = TypeVar("F", bound=Callable[..., Any])

MEASURE_WAITS = "--measure needs a run, and the command must wait for its end"

WARM_S = 0.3
"""Probing before the run: what is lost then is not its doing."""
MAX_GAPS = 10_000
"""The longest gaps of a measurement that are kept; the API takes three times as many."""


def measure_options(command: F) -> F:
    """Give a command `--measure` and `--settle`."""
    measure = click.option(
        "--measure",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Probe meanwhile: a JSON list of streams, as for `ping-gap run --streams`.",
    )
    settle = click.option(
        "--settle",
        type=duration,
        default="1.5s",
        show_default=True,
        help="How long --measure goes on after the end of the run.",
    )
    return measure(settle(command))


class Measuring:
    """Probes that go on until `keep`."""

    def __init__(self, client: Client, probes: ProbeProcess, settle_s: float) -> None:
        self._client = client
        self._probes = probes
        self._settle_s = settle_s

    def keep(self, run: RunView) -> RunView:
        """End probing and keep its result with the run, which has ended; the run with it.

        Raises what ProbeProcess.stop and Client.keep_measurement raise; the result is printed
        then, for it exists nowhere else.
        """
        time.sleep(self._settle_s)
        measurement = measurement_of(self._probes.stop())
        try:
            return self._client.keep_measurement(run.id, measurement)
        except VrhaError:
            for stream in measurement.streams:
                click.echo(f"{stream.stream}: {stream.lost} of {stream.sent} lost", err=True)
            raise


@contextmanager
def measuring(client: Client, file: Path | None, settle_s: float) -> Iterator[Measuring | None]:
    """Probes the streams of `file` while the block runs; None when there is no file.

    Raises what `read_streams` and ProbeProcess raise.
    """
    if file is None:
        yield None
        return
    from vrha.probe.process import ProbeProcess

    with ProbeProcess(read_streams(file)) as probes:
        time.sleep(WARM_S)
        yield Measuring(client, probes, settle_s)


def read_streams(file: Path) -> tuple[Stream, ...]:
    """The streams of a file. Raises InputError: `no-file`, `malformed`, `bad-stream`."""
    from vrha.codec import decode
    from vrha.model.probing import Stream

    hint = "`vrha lab up` writes such a file, streams.json; docs/cli.md shows one."
    try:
        text = file.read_bytes()
    except OSError as error:
        raise InputError("no-file", f"{file}: {error.strerror}", hint) from error
    streams = decode(tuple[Stream, ...], text, closed=True)
    names = [stream.name for stream in streams]
    if not streams or len(set(names)) < len(names):
        raise InputError("bad-stream", f"{file}: no stream, or two of one name", hint)
    for stream in streams:
        stream.check()
    return streams


def measurement_of(result: Result) -> Measurement:
    """What is kept of a result of probes: all but the shortest of very many gaps."""
    began = result.t0_realtime_ns / 1e9
    gaps = [
        (gap.length_ms, place, gap.start_ms)
        for place, one in enumerate(result.streams)
        for gap in one.loss.gaps
    ]
    kept: list[list[tuple[float, float]]] = [[] for _ in result.streams]
    for length, place, start in heapq.nlargest(MAX_GAPS, gaps):
        kept[place].append((round(start, 3), round(length, 3)))
    return Measurement(
        streams=tuple(
            _measured(one, began, sorted(mine))
            for one, mine in zip(result.streams, kept, strict=True)
        ),
        connections=tuple(
            Connections(one.stream.name, one.total, one.alive, one.longest_stall_ms)
            for one in result.connections
        ),
        gaps_left_out=max(0, len(gaps) - MAX_GAPS),
    )


def _measured(one: StreamResult, began: float, gaps: Sequence[tuple[float, float]]) -> Measured:
    return Measured(
        stream=one.stream.name,
        began=began,
        interval_ms=one.stream.interval_ms,
        sent=one.loss.sent,
        lost=one.loss.lost,
        duplicates=one.loss.duplicates,
        late_ticks=one.late_ticks,
        gaps_ms=tuple(gaps),
    )
