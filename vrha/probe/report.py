"""The result of a run for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vrha.model.probing import ConnectionsResult, Result, StreamResult

GAPS_SHOWN = 20
LATE_SHARE = 0.01


def show(result: Result, out: TextIO) -> None:
    """Print the tables of streams and gaps, then what limits the measurement."""
    console = Console(file=out, highlight=False)
    if result.streams:
        rows = [(_row(one), one.loss.lost > 0) for one in result.streams]
        _print(console, out.isatty(), _HEAD, rows)
    if result.connections:
        lines = [(_connections_row(one), one.alive < one.total) for one in result.connections]
        _print(console, out.isatty(), _CONNECTIONS_HEAD, lines)
    for line in [*_gap_lines(result), *notes(result)]:
        console.print(line, markup=False, soft_wrap=True)


_HEAD = (
    *("stream", "sent", "lost", "gaps", "longest gap ms", "outage ms", "longest silence ms"),
    *("rtt median ms", "rtt max ms", "twice"),
)
_CONNECTIONS_HEAD = ("connections", "total", "alive", "longest stall ms", "messages")


def _row(one: StreamResult) -> list[str]:
    loss = one.loss
    return [
        one.stream.name,
        str(loss.sent),
        str(loss.lost),
        str(len(loss.gaps)),
        _ms(loss.longest_gap_ms),
        _ms(loss.outage_ms),
        _ms(loss.longest_silence_ms),
        _ms(loss.rtt_median_ms, 3),
        _ms(loss.rtt_max_ms, 3),
        str(loss.duplicates),
    ]


def _connections_row(one: ConnectionsResult) -> list[str]:
    return [
        one.stream.name,
        str(one.total),
        str(one.alive),
        _ms(one.longest_stall_ms),
        str(one.messages),
    ]


def _print(
    console: Console, terminal: bool, head: Sequence[str], rows: Sequence[tuple[list[str], bool]]
) -> None:
    """A table of rows, each with whether something is wrong with it."""
    if terminal:
        table = Table()
        for i, title in enumerate(head):
            table.add_column(title, justify="right" if i else "left")
        for row, bad in rows:
            table.add_row(*map(escape, row), style="red" if bad else None)
        console.print(table)
        return
    lines = [list(head), *(row for row, _ in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        console.print("  ".join(cells), markup=False, soft_wrap=True)


def _gap_lines(result: Result) -> list[str]:
    lines = []
    for one in result.streams:
        for gap in one.loss.gaps[:GAPS_SHOWN]:
            end = ", never restored" if gap.unrestored else ""
            lines.append(
                f"{one.stream.name}: gap of {gap.length_ms:.1f} ms at {gap.start_ms:.1f} ms, "
                f"{gap.lost} lost{end}"
            )
        if len(one.loss.gaps) > GAPS_SHOWN:
            lines.append(f"{one.stream.name}: {len(one.loss.gaps) - GAPS_SHOWN} more gaps")
    return lines


def notes(result: Result) -> list[str]:
    """What the reader must know to trust the figures."""
    lines = []
    for one in result.streams:
        ticks = one.loss.sent + one.late_ticks
        if one.late_ticks > LATE_SHARE * ticks:
            held = result.duration_ms / max(one.loss.sent, 1)
            lines.append(
                f"warning: {one.stream.name}: this machine does not hold "
                f"{one.stream.interval_ms:g} ms: {one.late_ticks} of {ticks} probes "
                f"({100 * one.late_ticks / ticks:.1f} %) were not sent; "
                f"it held {held:.2f} ms on average"
            )
        if one.receive_drops:
            lines.append(
                f"warning: {one.stream.name}: {one.receive_drops} replies arrived faster than "
                "they were read: they count as lost but the network delivered them"
            )
        lines += _errors(one)
    for connections in result.connections:
        lines += _errors(connections)
    if result.clock_steps:
        lines.append(
            f"warning: the clock was set {result.clock_steps} times during the run; "
            "round-trip times near it are up to 5 ms too long"
        )
    shortest = min((one.stream.interval_ms for one in result.streams), default=0.0)
    fastest = (one.loss for one in result.streams if one.stream.interval_ms == shortest)
    pause = max((loss.longest_pause_ms for loss in fastest if loss.longest_pause_ms), default=None)
    realtime = "yes" if result.realtime else "no (gaps of a few ms may be this machine)"
    lines.append(
        f"{result.duration_ms / 1000:.1f} s; resolution is the interval; "
        f"late ticks {result.late_ticks}, longest pause of the prober {_ms(pause)} ms; "
        f"realtime scheduling {realtime}"
    )
    return lines


def _errors(one: StreamResult | ConnectionsResult) -> list[str]:
    said = ", ".join(f"{name} {count}" for name, count in one.errors)
    return [f"{one.stream.name}: errors: {said}"] if said else []


def excess(result: Result, max_lost: int | None, max_gap_ms: float | None) -> list[str]:
    """The limits that were exceeded, in words; a dead connection is one lost, a stall is a gap."""
    lines = []
    for one in result.streams:
        if max_lost is not None and one.loss.lost > max_lost:
            lines.append(f"{one.stream.name}: {one.loss.lost} lost, allowed {max_lost}")
        if max_gap_ms is not None and one.loss.longest_gap_ms > max_gap_ms:
            lines.append(
                f"{one.stream.name}: a gap of {one.loss.longest_gap_ms:.1f} ms, "
                f"allowed {max_gap_ms:g} ms"
            )
    for long in result.connections:
        dead = long.total - long.alive
        if max_lost is not None and dead > max_lost:
            lines.append(f"{long.stream.name}: {dead} connections dead, allowed {max_lost}")
        stall = long.longest_stall_ms or 0.0
        if max_gap_ms is not None and stall > max_gap_ms:
            lines.append(
                f"{long.stream.name}: a stall of {stall:.1f} ms, allowed {max_gap_ms:g} ms"
            )
    return lines


def _ms(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
