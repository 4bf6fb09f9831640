"""A run of ping-gap from its streams to its files: ends, live view, marks, verdict."""

from __future__ import annotations

import platform
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from vrha.codec import encode
from vrha.core.marks import with_phases
from vrha.core.merge import merge
from vrha.core.verdict import exceeded, notes, settled
from vrha.errors import InputError, PreconditionError
from vrha.model.probing import Limits, Mark, Record, Result, Stream, StreamResult
from vrha.probe.ends import End, Ends
from vrha.probe.events import Begin
from vrha.probe.files import STDOUT, check_writable, write
from vrha.probe.live import Board, watching
from vrha.probe.marksource import Marks
from vrha.probe.origins import NAMESPACES, Origin
from vrha.probe.process import OWN_COMMAND, serving

CONTROL = "control"
REPLY_LIMIT_S = 1.0
LIVE_EVERY_S = 0.25
_PORTS = (20_000, 32_000)
"""Below those that the kernel gives to connections (ip_local_port_range)."""
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a run is written to; None is nowhere, `-` is stdout. `probes` only as a file."""

    json: str | None = None
    csv: str | None = None
    junit: str | None = None
    html: str | None = None
    probes: str | None = None

    @property
    def records(self) -> tuple[str, ...]:
        named = (self.json, self.csv, self.junit, self.html)
        return tuple(path for path in named if path is not None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured. `streams` each with where it is sent from."""

    streams: tuple[tuple[Origin, Stream], ...]
    duration_s: float | None
    limits: Limits
    outputs: Outputs
    title: str = ""
    mark_from: str | None = None
    control: bool = False
    quiet: bool = False
    rsh: tuple[str, ...] = ("ssh", "-o", "BatchMode=yes")
    remote_command: tuple[str, ...] = ("ping-gap",)

    def check(self) -> None:
        """Raises InputError (`no-stream`, `bad-stream`, `not-here`, `output-twice`), VrhaError
        (`unwritable`): what would only show at the end of a long run otherwise."""
        if not self.streams:
            raise InputError("no-stream", "nothing to probe")
        names = [stream.name for _, stream in self.streams]
        names += [CONTROL] if self.control else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError("bad-stream", f"stream names occur twice: {', '.join(twice)}")
        for _, stream in self.streams:
            stream.check()
        if all(origin.host for origin, _ in self.streams):
            for wanted, option in ((self.control, "--control"), (self.outputs.probes, "--probes")):
                if wanted:
                    raise InputError("not-here", f"{option} needs a stream from this machine")
        if self.outputs.probes == STDOUT:
            raise InputError("output-twice", "--probes is written by the prober: name a file")
        probes = [self.outputs.probes] if self.outputs.probes is not None else []
        check_writable([*self.outputs.records, *probes])


def measure(plan: Plan, stop: threading.Event) -> Record:
    """Probe as planned until the end or `stop`; the record is not written yet.

    Raises what Plan.check, Ends.begin and Marks raise, and what kept the last end from having a
    result.
    """
    plan.check()
    with ExitStack() as stack:
        marks = stack.enter_context(Marks(plan.mark_from)) if plan.mark_from else None
        control = stack.enter_context(_control(plan.streams)) if plan.control else None
        ends = stack.enter_context(Ends())
        for origin, order in _orders(plan, control):
            ends.add(_end(plan, origin, order))
        board = Board(plan.duration_s, marks.taken if marks else tuple)
        ends.begin(stop)
        with watching(board, sys.stderr, plan.quiet) as on_live:
            ends.measure(stop, on_live)
        return _record(plan, ends.all, marks)


@contextmanager
def _control(streams: Sequence[tuple[Origin, Stream]]) -> Iterator[Stream]:
    """A stream to a responder on this very machine, as often as the most frequent of `streams`."""
    interval = min(stream.interval_ms for _, stream in streams)
    with ExitStack() as stack:
        for left in reversed(range(_TRIES)):
            port = random.randrange(*_PORTS, 3)
            try:
                stack.enter_context(serving(port, loopback=True))
                break
            except PreconditionError as error:
                if not left or "port-in-use" not in error.message:
                    raise
        yield Stream(CONTROL, "udp", "127.0.0.1", port, interval_ms=interval)


def _orders(plan: Plan, control: Stream | None) -> Iterator[tuple[Origin, Begin]]:
    """What each end is to do: all that is sent from this machine is done by one."""
    by_host: dict[str, list[Stream]] = {}
    origins: dict[str, Origin] = {}
    for origin, stream in plan.streams:
        by_host.setdefault(origin.host, []).append(stream)
        origins.setdefault(origin.host, origin)
    if control is not None:
        by_host[""].append(control)
    for host, streams in by_host.items():
        wait_s = max(REPLY_LIMIT_S, *(stream.timeout_ms / 1000 for stream in streams))
        probes = None if host else plan.outputs.probes
        order = Begin(tuple(streams), plan.duration_s, wait_s, LIVE_EVERY_S, probes)
        yield origins[host], order


def _end(plan: Plan, origin: Origin, order: Begin) -> End:
    if not origin.host:
        return End([*OWN_COMMAND, "run", "--events"], order)
    argv = [*plan.rsh, origin.host, *plan.remote_command, "run", "--events"]
    hint = (
        f"There is no {NAMESPACES / origin.host}, so a host was meant, and it was asked by: "
        f"{' '.join(argv)}"
    )
    return End(argv, order, origin.host, hint)


def _record(plan: Plan, ends: Sequence[End], marks: Marks | None) -> Record:
    results = [end.result for end in ends if end.result is not None]
    lost = [end.failed for end in ends if end.failed is not None]
    if not results:
        raise lost[0]
    whole, control = _without_control(merge(results), plan.control)
    named = _named(marks, whole)
    whole = with_phases(whole, named)
    said = [_offset_note(end) for end in ends if end.remote and end.result is not None]
    said += [f"error: the result of an end is missing: {error.message}" for error in lost]
    said += marks.notes() if marks else ()
    began = datetime.fromtimestamp(whole.t0_realtime_ns / 1e9, UTC)
    limit = plan.limits
    return Record(
        result=whole,
        control=control,
        marks=named,
        limits=limit,
        settled=settled(whole, limit.settle_ms) if limit.settle_ms else None,
        exceeded=exceeded(whole, limit) + tuple(f"lost: {e.message}" for e in lost),
        notes=(*said, *notes(whole, control)),
        host=platform.node(),
        kernel=platform.release(),
        tool=_tool(),
        began=began.isoformat(timespec="milliseconds"),
        title=plan.title,
    )


def _without_control(result: Result, asked: bool) -> tuple[Result, StreamResult | None]:
    if not asked:
        return result, None
    streams = tuple(one for one in result.streams if one.stream.name != CONTROL)
    return replace(result, streams=streams), result.stream(CONTROL)


def _named(marks: Marks | None, result: Result) -> tuple[Mark, ...]:
    taken = marks.taken() if marks else ()
    return tuple(Mark((at * 1e9 - result.t0_realtime_ns) / 1e6, text) for at, text in taken)


def _offset_note(end: End) -> str:
    offset, doubt = end.offset.ns / 1e6, end.offset.uncertainty_ns / 1e6
    return (
        f"clock of {end.remote}: {offset:+.3f} ms to this one, within {doubt:.3f} ms; "
        "its times are corrected by that"
    )


def _tool() -> str:
    try:
        return f"ping-gap {version('vrha')}"
    except PackageNotFoundError:
        return "ping-gap"


def failed(record: Record) -> tuple[str, ...]:
    """Why a run does not pass, in words; a limit cannot be kept by a run that does not count."""
    limit = record.limits
    asked = any(most is not None for most in (limit.gap_ms, limit.lost, limit.total_ms))
    if asked and record.settled is False:
        short = f"not settled: {limit.settle_ms / 1000:g} s of full rate did not follow"
        return (*record.exceeded, short)
    return record.exceeded


def keep(record: Record, outputs: Outputs) -> None:
    """Write all that was asked for. Raises VrhaError (`unwritable`)."""
    if outputs.json is not None:
        write(outputs.json, encode(record))
    if outputs.csv is not None:
        from vrha.render.gapcsv import csv_of

        write(outputs.csv, csv_of(record).encode())
    if outputs.junit is not None:
        from vrha.render.junit import junit_of

        write(outputs.junit, junit_of(record).encode())
    if outputs.html is not None:
        from vrha.render.gappage import page

        write(outputs.html, page(record).encode())
