"""ping-gap: the rate it holds, how true its figures are, and what other probers see.

`throughput`: from one process on one core over a veth pair, fping at the same rate in turn with it.
`accuracy`: faults of known length. The drop of all that arrives at one end is one element of an
nftables set, which the measurement puts in and takes out itself, noting the monotonic clock before
and after each commit: a fault is taken to begin and end in the middle of its commits, and does not
count when that leaves its length unsure by more than 0.2 ms (it is made once more then).
`peers`: the same by ping, fping and irtt.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tools.benchmarks import gappeers, gaprate, gapruns, options, report
from tools.benchmarks.gapproc import cores, pinned, running
from tools.benchmarks.gapscore import directions, errors_ms, tail, within
from tools.benchmarks.gapwire import ECHO_PORT, FAR_PATH, UNSURE_LIMIT_MS, droppers, wire
from tools.benchmarks.rows import Row, good, measure_as
from vrha.linux import tools
from vrha.probe.process import serving

THROUGHPUT, ACCURACY, PEERS = "throughput", "accuracy", "peers"
PARTS = (THROUGHPUT, ACCURACY, PEERS)
LENGTHS_MS = (1.0, 5.0, 20.0, 100.0, 1000.0)
_PEER_TIMES = 2
"""Faults of each length and way in a run of part `peers`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", type=parts, default=list(PARTS), metavar="A,B")
    parser.add_argument("--runs", type=options.count, default=5)
    parser.add_argument("--targets", type=options.count, default=20)
    parser.add_argument("--seconds", type=options.count, default=5, help="of a throughput run")
    parser.add_argument(
        "--faults", type=options.count, default=50, help="of each length and way, over all runs"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one run of 1 s, 3 faults each: a look, no figure"
    )


def parts(text: str) -> list[str]:
    """Names of parts with commas between them, in the order in which they are taken."""
    wanted = text.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    return [part for part in PARTS if part in wanted]


def run(arguments: argparse.Namespace) -> report.Result:
    """Raises PreconditionError when the namespaces or the faults cannot be made."""
    runs, seconds, faults = arguments.runs, arguments.seconds, arguments.faults
    if arguments.quick:
        runs, seconds, faults = 1, 1, 3
    rows: list[dict[str, Any]] = []
    with _far_end(arguments.targets), droppers() as drop:
        if THROUGHPUT in arguments.parts:
            wanted = gaprate.rows(arguments.targets, seconds)
            rows += _measured(THROUGHPUT, wanted, runs)
            gaprate.ratios(rows)
        if ACCURACY in arguments.parts:
            times = -(-faults // runs)
            rows += _measured(ACCURACY, [gapruns.accuracy_row(drop, LENGTHS_MS, times)], runs)
        if PEERS in arguments.parts:
            rows += _measured(PEERS, gapruns.peer_rows(drop, LENGTHS_MS, _PEER_TIMES), runs)
    params = {
        "parts": arguments.parts,
        "runs": runs,
        "targets": arguments.targets,
        "seconds": seconds,
        "interval_ms": gapruns.INTERVAL_MS,
        "lengths_ms": LENGTHS_MS,
        "faults": faults,
        "peer_faults": runs * _PEER_TIMES,
    }
    return report.result("ping-gap", params, rows)


@contextmanager
def _far_end(targets: int) -> Iterator[None]:
    """The wire and all that answers at its far end, on the core on which nothing is measured."""
    with wire(targets), pinned(cores()[1]), serving(ECHO_PORT, [FAR_PATH]):
        if not tools.find("irtt"):
            yield
            return
        with running(gappeers.irtt_server(), cores()[1], netns=FAR_PATH):
            yield


def _measured(part: str, rows: Sequence[Row], runs: int) -> list[dict[str, Any]]:
    report.progress(f"{part}: {runs} runs")
    return [{"part": part} | row for row in measure_as(rows, runs, report.progress, tell)]


def tell(run: dict[str, Any]) -> str:
    """A run in words."""
    if "failed" in run:
        return f"failed: {run['failed']}"
    if "rate" in run:
        return f"{run['rate']} probes/s, {run['lost']} lost, {run['cpu_us']:.1f} us each"
    return "; ".join(
        f"{name}: {sum(f['seen'] for f in one['faults'])} of {len(one['faults'])} seen,"
        f" {within(one['faults'])} within 2 ms, {len(one['false_gaps'])} false"
        for name, one in run["streams"].items()
    )


# --- tables ----------------------------------------------------------------------------------


def table(result: report.Result) -> str:
    """One table for each part that was taken."""
    tables = {THROUGHPUT: _throughput, ACCURACY: _accuracy, PEERS: _peers}
    text = []
    for part, render in tables.items():
        rows = [row for row in result["rows"] if row["part"] == part]
        if rows:
            text.append(f"{part}\n\n{render(rows)}")
            text += [f"{r['row']}: missing: {r['missing']}" for r in rows if "missing" in r]
            text += [
                f"{row['row']}: failed: {run['failed']}"
                for row in rows
                for run in row["runs"]
                if "failed" in run
            ]
    return "\n\n".join(text)


_RATE = (
    "row",
    "runs",
    "probes/s",
    "not sent",
    "lost",
    "late ticks (median / worst)",
    "us CPU per probe (quartiles)",
    "with start and end",
    "ratio to fping",
    "with start and end",
)


def _throughput(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        runs = good(row)
        sent, expected = (sum(r[name] for r in runs) for name in ("sent", "expected"))
        lines.append(
            [
                row["row"],
                str(len(runs)),
                report.quartiles((r["rate"] for r in runs), 0),
                f"{100 * (expected - sent) / expected:.2f} %" if expected else "-",
                f"{sum(r['lost'] for r in runs)} of {sent}",
                report.spread((r["late_ticks"] for r in runs if "late_ticks" in r), 0),
                report.quartiles((r["cpu_us"] for r in runs), 2),
                report.quartiles((r["cpu_whole_us"] for r in runs), 2),
                report.quartiles((r["ratio"] for r in runs if "ratio" in r), 2),
                report.quartiles((r["ratio_whole"] for r in runs if "ratio" in r), 2),
            ]
        )
    return report.columns(_RATE, lines)


def _accuracy(rows: Sequence[dict[str, Any]]) -> str:
    """By kind of probe, way and length."""
    runs = [run for row in rows for run in good(row)]
    lines = []
    for stream in ("icmp", "udp"):
        faults = [f for run in runs for f in run["streams"][stream]["faults"]]
        for way in ("forth", "back"):
            for length in sorted({f["wanted_ms"] for f in faults}):
                some = [f for f in faults if (f["way"], f["wanted_ms"]) == (way, length)]
                lines.append([stream, way, f"{length:g}", *_score(some)])
        lines.append([stream, "both", "all", *_score(faults)])
    told = [f for run in runs for f in run["streams"]["icmp"]["faults"]]
    late, ticks = (sum(run[name] for run in runs) for name in ("late_ticks", "ticks"))
    text = [
        report.columns(["probe", "way", "fault ms", *_SCORE], lines),
        "",
        f"gaps without a fault: {_false(runs)}; late ticks: {late} of {ticks}",
        "true length unsure by, ms, median / p95 / worst:"
        f" {tail((f['unsure_ms'] for f in told), 3)};"
        f" left out, being above {UNSURE_LIMIT_MS}: {sum(len(r['unsure_ms']) for r in runs)}",
    ]
    return "\n".join(text)


_SCORE = (
    "n",
    "seen",
    "within 2 ms",
    "error ms, median / p95 / worst",
    "bias ms",
    "start off ms, median / p95 / worst",
)


def _score(faults: Sequence[dict[str, Any]]) -> list[str]:
    errors = errors_ms(faults)
    return [
        str(len(faults)),
        str(sum(f["seen"] for f in faults)),
        within(faults),
        tail(errors),
        f"{sum(errors) / len(errors):+.2f}" if errors else "-",
        tail(f["start_error_ms"] for f in faults if f["seen"]),
    ]


_TOLD_BY = {
    "ping-gap": "itself",
    "ping": "only a count; its lines",
    "fping": "only a count; its lines",
    "irtt": "only a count; its JSON",
}
"""Who says where the gaps are: the tool, or the reader of what it says of each probe."""


def _peers(rows: Sequence[dict[str, Any]]) -> str:
    """By tool, and below it by tool and length."""
    whole, by_length = [], []
    for row in rows:
        runs = good(row)
        for stream in dict.fromkeys(name for run in runs for name in run["streams"]):
            name = f"{row['row']} {stream}"
            faults = [f for run in runs for f in run["streams"][stream]["faults"]]
            whole.append([name, *_noise(runs, stream), *_score(faults), directions(faults)])
            whole[-1].append(_TOLD_BY[row["row"]])
            for length in sorted({f["wanted_ms"] for f in faults}):
                some = [f for f in faults if f["wanted_ms"] == length]
                by_length.append([name, f"{length:g}", *_score(some), directions(some)])
    header = [
        "prober",
        "not sent",
        "lost, of true",
        "false gaps",
        *_SCORE,
        "way right",
        "gaps told by",
    ]
    lengths = ["prober", "fault ms", *_SCORE, "way right"]
    return f"{report.columns(header, whole)}\n\n{report.columns(lengths, by_length)}"


def _noise(runs: Sequence[dict[str, Any]], stream: str) -> list[str]:
    """Probes that a tool did not send, those it lost of those that faults took, false gaps."""
    sent, expected, lost = (
        sum(run[name][stream] for run in runs) for name in ("sent", "expected", "lost")
    )
    faults = [f for run in runs for f in run["streams"][stream]["faults"]]
    made = [f["true_ms"] for f in faults] + [ms for run in runs for ms in run["unsure_ms"]]
    true = sum(made) / gapruns.INTERVAL_MS
    false = sum(len(run["streams"][stream]["false_gaps"]) for run in runs)
    short = f"{100 * (expected - sent) / expected:.2f} %" if expected else "-"
    return [short, f"{lost} of {true:.0f}", str(false)]


def _false(runs: Sequence[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for run in runs for name in run["streams"])
    return ", ".join(
        f"{name} {sum(len(run['streams'][name]['false_gaps']) for run in runs)}" for name in names
    )
