"""The rate that one process holds on one core, and its CPU time per probe, against fping."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from tools.benchmarks import gappeers
from tools.benchmarks.gapproc import (
    children_cpu_s,
    cores,
    cpu_ns,
    interrupt,
    pinned,
    running,
)
from tools.benchmarks.gapwire import ECHO_PORT, target
from tools.benchmarks.rows import Row
from vrha.errors import PreconditionError
from vrha.linux import tools
from vrha.model.probing import Kind, Stream
from vrha.probe.process import ProbeProcess

INTERVAL_MS = 1.0
_EDGE_S = 0.3
"""At both ends of a run left out of the CPU time while probing."""

Run = dict[str, Any]


def rows(targets: int, seconds: float) -> list[Row]:
    """ping-gap and fping with all targets and with one, and ping-gap by UDP."""
    wanted: list[Row] = []
    for number in dict.fromkeys((targets, 1)):
        wanted.append(_ping_gap_row("icmp", number, seconds))
        wanted.append(_fping_row(number, seconds))
        wanted.append(_ping_gap_row("udp", number, seconds))
    return wanted


def _ping_gap_row(kind: Kind, targets: int, seconds: float) -> Row:
    return Row(f"ping-gap {kind} x{targets}", lambda: _ping_gap(kind, targets, seconds))


def _fping_row(targets: int, seconds: float) -> Row:
    missing = "" if tools.find("fping") else "fping: command not found"
    return Row(f"fping x{targets}", lambda: _fping(targets, seconds), missing=missing)


def ratios(measured: list[dict[str, Any]]) -> None:
    """Give each run of ping-gap its CPU time per probe over that of fping in the same round."""
    by_name = {row["row"]: row["runs"] for row in measured}
    for name, runs in by_name.items():
        peers = by_name.get(f"fping {name.split()[-1]}", [])
        if name.startswith("ping-gap"):
            for run, peer in zip(runs, peers, strict=False):
                if "failed" not in run and "failed" not in peer:
                    run["ratio"] = round(run["cpu_us"] / peer["cpu_us"], 3)
                    run["ratio_whole"] = round(run["cpu_whole_us"] / peer["cpu_whole_us"], 3)


def _ping_gap(kind: Kind, targets: int, seconds: float) -> Run:
    streams = [
        Stream(f"{kind}{n}", kind, target(n), ECHO_PORT, interval_ms=INTERVAL_MS)
        for n in range(targets)
    ]
    before = children_cpu_s()
    with pinned(cores()[0]):
        probes = ProbeProcess(streams)
    with probes:
        busy = _busy(probes.pid, seconds)
        result = probes.stop()
    whole = children_cpu_s() - before
    sent = sum(one.loss.sent for one in result.streams)
    # A tick is late for all streams of its interval: each of them has a probe fewer.
    late = sum(one.late_ticks for one in result.streams)
    rate = sent / (result.duration_ms / 1000)
    return {
        "sent": sent,
        "expected": sent + late,
        "lost": result.lost,
        "late_ticks": result.late_ticks,
        "receive_drops": sum(one.receive_drops for one in result.streams),
        "errors": sum(count for one in result.streams for _, count in one.errors),
        "rate": round(rate),
        "cpu_us": round(busy / rate * 1e6, 3),
        "cpu_whole_us": round(whole / sent * 1e6, 3),
        "cpu_own_us": result.cpu_us_per_probe,
    }


def _fping(targets: int, seconds: float) -> Run:
    seconds = min(seconds, gappeers.FPING_PROBES * INTERVAL_MS / 1000 / targets)
    argv = gappeers.fping_command(
        [target(n) for n in range(targets)], round(seconds * 2) + 1, quiet=True
    )
    before = children_cpu_s()
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        with running(argv, cores()[0], said) as process:
            busy = _busy(process.pid, seconds)
            took = time.monotonic() - began
            interrupt(process)
        said.seek(0)
        words = said.read().decode(errors="replace")
    sent, received = gappeers.fping_totals(words)
    if not sent:
        raise PreconditionError("bench-peer", f"fping: {words[-200:].strip()}")
    rate = sent / took
    return {
        "seconds": seconds,
        "sent": sent,
        "expected": round(took * 1000 / INTERVAL_MS) * targets,
        "lost": sent - received,
        "rate": round(rate),
        "cpu_us": round(busy / rate * 1e6, 3),
        "cpu_whole_us": round((children_cpu_s() - before) / sent * 1e6, 3),
    }


def _busy(pid: int, seconds: float) -> float:
    """CPU seconds per second of a process, without the edges of the time."""
    time.sleep(_EDGE_S)
    used, began = cpu_ns(pid), time.monotonic_ns()
    time.sleep(max(0.1, seconds - 2 * _EDGE_S))
    used, took = cpu_ns(pid) - used, time.monotonic_ns() - began
    time.sleep(_EDGE_S)
    return used / took
