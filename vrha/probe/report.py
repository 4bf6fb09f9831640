"""A run for people: tables of streams and gaps, the verdict, and what limits it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from vrha.core.marks import phase_line
from vrha.core.verdict import unsettled
from vrha.model.probing import ConnectionsResult, Gap, Loss, Record, Result, StreamResult

if TYPE_CHECKING:
    from rich.console import Console

GAPS_SHOWN = 20


def show(record: Record, out: TextIO) -> None:
    """Print the tables of streams and gaps, the verdict, then what limits the measurement."""
    from rich.console import Console

    result = record.result
    console = Console(file=out, highlight=False)
    if result.streams:
        rows = [(_row(one), one.loss.lost > 0) for one in result.streams]
        print_table(console, _HEAD, rows)
    if result.connections:
        lines = [(_connections_row(one), one.alive < one.total) for one in result.connections]
        print_table(console, _CONNECTIONS_HEAD, lines)
    for line in [*_gap_lines(result), *_outages(result), *_verdict(record), *record.notes]:
        console.print(line, markup=False, soft_wrap=True)


_HEAD = (
    *("stream", "sent", "lost", "gaps", "longest gap ms", "outage ms", "longest silence ms"),
    *("rtt median ms", "rtt max ms", "twice", "reordered"),
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
        str(loss.reordered),
    ]


def _connections_row(one: ConnectionsResult) -> list[str]:
    return [
        one.stream.name,
        str(one.total),
        str(one.alive),
        _ms(one.longest_stall_ms),
        str(one.messages),
    ]


def print_table(
    console: Console, head: Sequence[str], rows: Sequence[tuple[list[str], bool]]
) -> None:
    """A table of rows, each with whether something is wrong with it; plain when it is piped."""
    if console.is_terminal:
        from rich.markup import escape
        from rich.table import Table

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


def _gap_lines(result: Result) -> Iterator[str]:
    for one in result.streams:
        for gap in one.loss.gaps[:GAPS_SHOWN]:
            end = ", never restored" if gap.unrestored else ""
            yield (
                f"{one.stream.name}: gap of {phase_line(gap)}, at {gap.start_ms:.1f} ms, "
                f"{gap.lost} lost{_ways(gap)}{end}"
            )
        if len(one.loss.gaps) > GAPS_SHOWN:
            yield f"{one.stream.name}: {len(one.loss.gaps) - GAPS_SHOWN} more gaps"


def _ways(loss: Gap | Loss) -> str:
    """On which way the packets died, where the far end said it."""
    if loss.lost_forth is None:
        return ""
    return f" ({loss.lost_forth} on the way there, {loss.lost - loss.lost_forth} on the way back)"


def _outages(result: Result) -> Iterator[str]:
    """Convergence and round-trip times of the streams that lost something."""
    for one in result.streams:
        loss = one.loss
        if not loss.gaps:
            continue
        rate = "not back" if loss.rate_outage_ms is None else f"{loss.rate_outage_ms:.0f} ms"
        restored = "never" if loss.restored_ms is None else f"{loss.restored_ms:.1f} ms"
        parts = (
            ("before", loss.rtt_before),
            ("during", loss.rtt_during),
            ("after", loss.rtt_after),
        )
        trips = ", ".join(f"{when} {_ms(rtt.median_ms, 3)}" for when, rtt in parts)
        yield (
            f"{one.stream.name}: first lost at {_ms(loss.first_lost_ms)} ms, restored at "
            f"{restored}; convergence {loss.outage_ms:.1f} ms loss-derived, "
            f"{rate} rate-derived; rtt median {trips} ms"
        )


def _verdict(record: Record) -> Iterator[str]:
    yield from (f"failed: {line}" for line in record.exceeded)
    if record.settled is False and not record.exceeded:
        yield f"note: {unsettled(record.result, record.limits.settle_ms)}"


def _ms(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
