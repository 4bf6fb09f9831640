"""One run of `ping-gap`: its ends, its marks, its control, and what comes of them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from vrha.core.marks import with_phases
from vrha.core.merge import merge
from vrha.core.verdict import exceeded, notes, settled
from vrha.errors import PreconditionError, VrhaError
from vrha.model.probing import Limits, Live, Mark, Record, Result, Stream
from vrha.probe.ends import End, Ends
from vrha.probe.events import Begin
from vrha.probe.live import View
from vrha.probe.marksource import Marks
from vrha.probe.origins import HERE, Origin
from vrha.probe.process import OWN_COMMAND, serving

CONTROL = "control"
_CONTROL_PORTS = (20_000, 60_000)
_TRIES = 5
LIVE_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Request:
    """What to measure. Without `duration_s` until `stop`; `probes` is a file for every probe."""

    streams: Sequence[tuple[Origin, Stream]]
    duration_s: float | None
    limits: Limits
    require_reply_s: float = 2.0
    mark_from: str | None = None
    control: bool = False
    probes: str | None = None
    title: str = ""
    tool: str = ""
    rsh: str = "ssh -o BatchMode=yes"
    remote_command: str = "ping-gap"
    host: str = field(default_factory=socket.gethostname)


def measure(request: Request, view: View, stop: threading.Event) -> Record:
    """Probe, and say what came of it.

    Raises what keeps it from beginning, also when no end gave a result: InputError,
    PreconditionError, NotFoundError, UnreachableError, DeadlineError, all as the prober's.
    """
    with contextlib.ExitStack() as stack:
        marks = stack.enter_context(Marks(request.mark_from)) if request.mark_from else None
        streams = list(request.streams)
        if request.control:
            streams.append((HERE, stack.enter_context(_control(streams))))
        ends = stack.enter_context(Ends())
        for host, mine in _by_host(streams).items():
            ends.add(_end(request, host, mine))
        ends.begin(stop)
        with view:
            ends.measure(stop, _watch(view, marks))
        taken = marks.taken() if marks is not None else ()
        said = list(marks.notes()) if marks is not None else []
    return _record(request, ends.all, taken, said)


def _by_host(streams: Sequence[tuple[Origin, Stream]]) -> dict[str, list[Stream]]:
    found: dict[str, list[Stream]] = {}
    for origin, stream in streams:
        found.setdefault(origin.host, []).append(stream)
    return found


def _end(request: Request, host: str, streams: Sequence[Stream]) -> End:
    begin = Begin(
        tuple(streams),
        request.duration_s,
        request.require_reply_s,
        LIVE_EVERY_S,
        None if host else request.probes,
    )
    if not host:
        return End([*OWN_COMMAND, "run", "--events"], begin)
    command = shlex.split(request.remote_command)
    argv = [*shlex.split(request.rsh), host, *command, "run", "--events"]
    hint = (
        f"{host!r} is no namespace here, so it is taken for a host: `{request.rsh} {host} "
        f"{request.remote_command} --version` must work there without a question."
    )
    return End(argv, begin, host, hint)


@contextlib.contextmanager
def _control(streams: Sequence[tuple[Origin, Stream]]) -> Iterator[Stream]:
    """A stream to a responder on this machine itself: its gaps are the machine's own."""
    interval = min(stream.interval_ms for _, stream in streams)
    with contextlib.ExitStack() as stack:
        for left in reversed(range(_TRIES)):
            low, high = _CONTROL_PORTS
            port = low + secrets.randbelow(high - low)
            try:
                stack.enter_context(serving(port, loopback=True))
                break
            except PreconditionError:
                if not left:
                    raise
        yield Stream(CONTROL, "udp", "127.0.0.1", port, interval_ms=interval)


def _watch(view: View, marks: Marks | None) -> Callable[[Live], None]:
    """Shows how it stands, and the marks that have come."""
    shown = 0

    def show(live: Live) -> None:
        nonlocal shown
        taken = marks.taken() if marks is not None else ()
        for _, text in taken[shown:]:
            view.mark(text)
        shown = len(taken)
        view.show(live)

    return show


def _record(
    request: Request,
    ends: Sequence[End],
    taken: Sequence[tuple[float, str]],
    said: list[str],
) -> Record:
    results = [end.result for end in ends if end.result is not None]
    failures = [end.failed for end in ends if end.failed is not None]
    if not results:
        raise failures[0] if failures else PreconditionError("no-result", "nothing was measured")
    result = merge(results)
    control = next((one for one in result.streams if one.stream.name == CONTROL), None)
    if request.control and control is not None:
        others = tuple(one for one in result.streams if one is not control)
        result = replace(result, streams=others)
    marks = tuple(_mark(at, text, result) for at, text in taken)
    result = with_phases(result, marks)
    return Record(
        result=result,
        control=control if request.control else None,
        marks=marks,
        limits=request.limits,
        settled=settled(result, request.limits.settle_ms),
        exceeded=(*exceeded(result, request.limits), *map(_lost_end, failures)),
        notes=(*notes(result, control if request.control else None), *said, *_clocks(ends)),
        host=request.host,
        kernel=os.uname().release,
        tool=request.tool,
        began=datetime.fromtimestamp(result.t0_realtime_ns / 1e9, UTC).isoformat(),
        title=request.title,
    )


def _mark(at: float, text: str, result: Result) -> Mark:
    return Mark(round(at * 1000 - result.t0_realtime_ns / 1e6, 3), text)


def _lost_end(error: VrhaError) -> str:
    return f"no result of one end: {error.message}"


def _clocks(ends: Sequence[End]) -> Iterator[str]:
    for end in ends:
        if end.remote and end.result is not None:
            ahead, doubt = end.offset.ns / 1e6, end.offset.uncertainty_ns / 1e6
            yield (
                f"the clock of {end.remote} was {ahead:.1f} ms ahead (within {doubt:.1f} ms); "
                "its times are put on the clock of this machine"
            )
