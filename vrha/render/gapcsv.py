"""The gaps of a run as CSV (RFC 4180)."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

from vrha.model.probing import Record

COLUMNS = (
    *("stream", "kind", "target", "start", "start_ms", "length_ms", "lost"),
    *("lost_forth", "lost_back", "unrestored", "phases"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_of(record: Record) -> str:
    """A header, then a row per gap, stream by stream; a stream without gaps has none.

    `start` is ISO 8601 in UTC. Text that a spreadsheet would take for a formula gets a quote before
    it.
    """
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    t0 = record.result.t0_realtime_ns / 1e9
    for one in record.result.streams:
        for gap in one.loss.gaps:
            start = datetime.fromtimestamp(t0 + gap.start_ms / 1000, UTC)
            forth = gap.lost_forth
            row = (
                _text(one.stream.name),
                one.stream.kind,
                _text(one.stream.target),
                start.isoformat(timespec="microseconds"),
                f"{gap.start_ms:.3f}",
                f"{gap.length_ms:.3f}",
                gap.lost,
                "" if forth is None else forth,
                "" if forth is None else gap.lost - forth,
                int(gap.unrestored),
                _text("; ".join(gap.phases)),
            )
            writer.writerow(row)
    return out.getvalue()


def _text(value: str) -> str:
    return f"'{value}" if value.startswith(_FORMULA) else value
