"""The report of a run: as text, as JSON, or as an HTML page in a file."""

from __future__ import annotations

import time
from pathlib import Path

import click

from vrha.cli import runview
from vrha.cli.output import show, table
from vrha.cli.settings import Settings
from vrha.errors import InputError
from vrha.model.report import Report, ReportLane
from vrha.model.views import RunView
from vrha.render.plot import milliseconds
from vrha.render.report import report


def give(settings: Settings, run: RunView, html: str | None) -> None:
    """Print the report of `run`, and write the page to `html` (`-`: instead, print it).

    Raises InputError (`cannot-write`).
    """
    found = report(run, time.time())
    if html is not None:
        from vrha.render.page import page

        text = page(found)
        if html == "-":
            click.echo(text, nl=False)
            return
        _write(Path(html), text)
    show(settings, found, lambda: _text(run, found))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            "cannot-write",
            f"{path}: {error.strerror}",
            "Name a file in a folder that exists and that you may write to.",
        ) from error


def _text(run: RunView, found: Report) -> str:
    parts = [runview.full(run)]
    if found.lanes or found.connections:
        parts.append(measured(found))
    if found.carried:
        parts.append(
            table(
                ("CARRIED", "SENT", "TAKEN", "REFUSED"),
                (
                    (one.what, one.sent, one.taken, " ".join(f"{w}:{n}" for w, n in one.refused))
                    for one in found.carried
                ),
            )
        )
    return "\n\n".join([*parts, *found.notes])


def measured(found: Report) -> str:
    """What every stream of the report lost, as a table."""
    rows: list[tuple[object, ...]] = []
    for lane in found.lanes:
        who = lane.source or "client"
        if lane.unavailable:
            rows.append((lane.name, who, "", "", "", lane.unavailable))
            continue
        rows.append((lane.name, who, lane.sent, lane.lost, _longest(lane), _late(lane.late_ticks)))
    for one in found.connections:
        dead = one.total - one.alive
        stall = "" if one.longest_stall_ms is None else milliseconds(one.longest_stall_ms)
        note = f"connections; longest stall {stall}" if stall else "connections"
        rows.append((one.stream, "client", one.total, dead, "", note))
    return table(("STREAM", "BY", "SENT", "LOST", "LONGEST GAP", "NOTE"), rows)


def _longest(lane: ReportLane) -> str:
    """The longest gap and the steps in which it falls, as "12.0 ms, during flip"."""
    gap = max(lane.gaps, key=lambda gap: gap.length_ms, default=None)
    if gap is None:
        return ""
    when = f", during {', '.join(gap.during)}" if gap.during else ""
    return f"{milliseconds(gap.length_ms)}{when}"


def _late(ticks: int) -> str:
    return f"{ticks} probes not sent in time" if ticks else ""
