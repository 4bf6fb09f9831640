"""Faults of known length under a prober: ping-gap, and the others on faults of the same kind.

One prober after the other, in turn, and not all at once: `ping -i 0.001` spins on its core all the
time and would be a fault of its own to the others. The faults of a round are the same ones for all:
same lengths, ways and order; each prober is held against the times of those that it met.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.benchmarks import gappeers
from tools.benchmarks.gappeers import Told
from tools.benchmarks.gapproc import children_cpu_s, cores, interrupt, pinned, running
from tools.benchmarks.gapscore import Fault, Outage, judge, outages_of
from tools.benchmarks.gapwire import (
    ECHO_PORT,
    PAUSE_MS,
    Droppers,
    Planned,
    plan,
    play,
    target,
)
from tools.benchmarks.report import progress
from tools.benchmarks.rows import Row
from vrha.errors import PreconditionError
from vrha.linux import tools
from vrha.model.probing import Stream
from vrha.probe.process import ProbeProcess

INTERVAL_MS = 1.0
PING_GAP = "ping-gap"
_WARM_S = 0.5
_SETTLE_S = 0.8
"""Longer than the others wait for a reply: only then they say that one is lost."""
_TOLD_EVERY = 50

Run = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Peer:
    """`command` is for a number of seconds that will not be reached, and a file for what the tool
    does not say on stdout; `file` tells whether that is what `parse` reads."""

    command: Callable[[int, str], list[str]]
    parse: Callable[[str], Told]
    kind: str
    file: bool = False


_PEERS = {
    "ping": _Peer(lambda _, __: gappeers.ping_command(target(0)), gappeers.parse_ping, "icmp"),
    "fping": _Peer(
        lambda seconds, _: gappeers.fping_command([target(0)], seconds, quiet=False),
        gappeers.parse_fping,
        "icmp",
    ),
    "irtt": _Peer(
        lambda seconds, out: gappeers.irtt_command(target(0), seconds, out),
        gappeers.parse_irtt,
        "udp",
        file=True,
    ),
}


def accuracy_row(drop: Droppers, lengths_ms: Sequence[float], times: int) -> Row:
    """Each length `times` times in both directions; every run has an order of its own."""
    return _ping_gap_row(drop, lengths_ms, times)


def peer_rows(drop: Droppers, lengths_ms: Sequence[float], times: int) -> list[Row]:
    """ping-gap first, then the others, all with the same plan in the same run."""
    rows = [_ping_gap_row(drop, lengths_ms, times)]
    for name, peer in _PEERS.items():
        if tools.find(name):
            rows.append(_peer_row(name, peer, drop, lengths_ms, times))
        else:
            rows.append(Row(name, missing=f"{name}: command not found"))
    return rows


def _ping_gap_row(drop: Droppers, lengths_ms: Sequence[float], times: int) -> Row:
    seeds = itertools.count(1)
    return Row(PING_GAP, lambda: _ping_gap(plan(lengths_ms, times, next(seeds)), drop))


def _peer_row(
    name: str, peer: _Peer, drop: Droppers, lengths_ms: Sequence[float], times: int
) -> Row:
    seeds = itertools.count(1)
    return Row(name, lambda: _peer(peer, plan(lengths_ms, times, next(seeds)), drop))


def _ping_gap(wanted: Sequence[Planned], drop: Droppers) -> Run:
    streams = [
        Stream("icmp", "icmp", target(0), interval_ms=INTERVAL_MS),
        Stream("udp", "udp", target(0), ECHO_PORT, interval_ms=INTERVAL_MS),
    ]
    before = children_cpu_s()
    with pinned(cores()[0]):
        probes = ProbeProcess(streams, require_reply_s=1.0)
    with probes:
        sure, unsure = _faults(wanted, drop)
        result = probes.stop()
    used = children_cpu_s() - before
    sent = sum(one.loss.sent for one in result.streams)
    found = {one.stream.name: outages_of(one, result.t0_monotonic_ns) for one in result.streams}
    return _run(sure, unsure, found) | {
        "sent": {one.stream.name: one.loss.sent for one in result.streams},
        "expected": {one.stream.name: one.loss.sent + one.late_ticks for one in result.streams},
        "lost": {one.stream.name: one.loss.lost for one in result.streams},
        "late_ticks": result.late_ticks,
        "ticks": round(result.duration_ms / INTERVAL_MS),
        "cpu_whole_us": round(used / sent * 1e6, 2),
    }


def _peer(peer: _Peer, wanted: Sequence[Planned], drop: Droppers) -> Run:
    """Raises PreconditionError when the tool said nothing that can be read."""
    seconds = round(sum(p.length_ms + PAUSE_MS[1] for p in wanted) / 1000 * 2 + 10)
    before = children_cpu_s()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as said:
        # Only with this ending irtt leaves it as it is.
        out = Path(folder) / "out.json"
        began = time.monotonic()
        with running(peer.command(seconds, str(out)), cores()[0], said) as process:
            sure, unsure = _faults(wanted, drop)
            took = time.monotonic() - began
            interrupt(process)
        offset = time.time_ns() - time.monotonic_ns()
        said.seek(0)
        words = said.read().decode(errors="replace")
        try:
            told = peer.parse(out.read_text() if peer.file else words)
        except (OSError, ValueError, KeyError) as error:
            raise PreconditionError("bench-peer", f"{error}: {words[-200:]!r}") from error
    found = {peer.kind: gappeers.outages(told.probes, INTERVAL_MS, offset)}
    return _run(sure, unsure, found) | {
        "sent": {peer.kind: told.sent},
        "expected": {peer.kind: round(took * 1000 / INTERVAL_MS)},
        "lost": {peer.kind: told.lost},
        "cpu_whole_us": round((children_cpu_s() - before) / max(told.sent, 1) * 1e6, 2),
    }


def _faults(wanted: Sequence[Planned], drop: Droppers) -> tuple[list[Fault], list[Fault]]:
    def told(made: int) -> None:
        if made % _TOLD_EVERY == 0:
            progress(f"{made} of {len(wanted)} faults")

    time.sleep(_WARM_S)
    with pinned(cores()[1]):
        faults = play(wanted, drop, told)
    time.sleep(_SETTLE_S)
    return faults


def _run(
    sure: Sequence[Fault], unsure: Sequence[Fault], found: Mapping[str, Sequence[Outage]]
) -> Run:
    streams = {}
    for name, outages in found.items():
        rows, without = judge([*sure, *unsure], outages)
        streams[name] = {"faults": rows[: len(sure)], "false_gaps": without}
    return {"streams": streams, "unsure_ms": [round(fault.length_ms, 3) for fault in unsure]}
