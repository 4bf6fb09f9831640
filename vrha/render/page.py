"""The report of a run as one HTML page that needs nothing else: no script, no font, no image."""

from __future__ import annotations

from vrha.model.report import Report
from vrha.render.plot import around_flip, milliseconds, overview, took
from vrha.render.templates import render_html


def page(report: Report) -> str:
    """The page, well-formed also as XML. What came from the network is escaped.

    Raises PreconditionError as `vrha.render.templates.render`.
    """
    return render_html(
        "report.html.j2",
        report=report,
        overview=overview(report),
        zoom=around_flip(report),
        ms=milliseconds,
        took=took,
        outcome=_outcome(report),
    )


def _outcome(report: Report) -> str:
    words = report.status.replace("_", " ")
    if report.duration_ms is None:
        return words
    return f"{words} after {milliseconds(report.duration_ms)}"
