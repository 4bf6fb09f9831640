"""A run as a JUnit report: a test case per stream, and one for whether the run counts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml
from collections.abc import Mapping

from vrha.core.verdict import unsettled
from vrha.model.probing import ConnectionsResult, Record, StreamResult

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot say at all (section 2.2)."""


def junit_of(record: Record) -> str:
    """The report; failures are the limits that were exceeded."""
    result = record.result
    suite = xml.Element("testsuite", name=_clean(record.title or "ping-gap"))
    suite.set("timestamp", record.began)
    suite.set("hostname", _clean(record.host))
    suite.set("time", f"{result.duration_ms / 1000:.3f}")
    about = {
        "tool": record.tool,
        "kernel": record.kernel,
        "duration_ms": f"{result.duration_ms:.0f}",
    }
    _properties(suite, about)
    left = list(record.exceeded)
    ones: list[StreamResult | ConnectionsResult] = [*result.streams, *result.connections]
    for one in ones:
        mine = [line for line in left if line.startswith(f"{one.stream.name}: ")]
        left = [line for line in left if line not in mine]
        _case(suite, one.stream.name, mine, result.duration_ms, _figures(one), _words(one))
    if not left and record.settled is False:
        left.append(unsettled(result, record.limits.settle_ms))
    _case(suite, "the run counts", left, 0.0, {}, "\n".join(record.notes))
    suite.set("tests", str(len(ones) + 1))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")
    xml.indent(suite)
    return xml.tostring(suite, encoding="unicode", xml_declaration=True)


def _case(
    suite: xml.Element,
    name: str,
    failures: list[str],
    duration_ms: float,
    figures: Mapping[str, str],
    said: str,
) -> None:
    case = xml.SubElement(suite, "testcase", name=_clean(name), classname="ping-gap")
    case.set("time", f"{duration_ms / 1000:.3f}")
    if figures:
        _properties(case, figures)
    if failures:
        failure = xml.SubElement(case, "failure", message=_clean(failures[0]))
        failure.text = _clean("\n".join(failures))
    xml.SubElement(case, "system-out").text = _clean(said)


def _properties(of: xml.Element, values: Mapping[str, str]) -> None:
    inside = xml.SubElement(of, "properties")
    for name, value in values.items():
        xml.SubElement(inside, "property", name=name, value=_clean(value))


def _figures(one: StreamResult | ConnectionsResult) -> dict[str, str]:
    """What a CI server can plot from run to run."""
    if isinstance(one, ConnectionsResult):
        stall = "" if one.longest_stall_ms is None else f"{one.longest_stall_ms:.3f}"
        return {"total": str(one.total), "alive": str(one.alive), "longest_stall_ms": stall}
    return {
        "sent": str(one.loss.sent),
        "lost": str(one.loss.lost),
        "gaps": str(len(one.loss.gaps)),
        "longest_gap_ms": f"{one.loss.longest_gap_ms:.3f}",
        "outage_ms": f"{one.loss.outage_ms:.3f}",
    }


def _words(one: StreamResult | ConnectionsResult) -> str:
    if isinstance(one, ConnectionsResult):
        return f"{one.alive} of {one.total} alive, longest stall {one.longest_stall_ms} ms"
    loss = one.loss
    return (
        f"{loss.lost} of {loss.sent} lost in {len(loss.gaps)} gaps, longest "
        f"{loss.longest_gap_ms:.3f} ms, outage {loss.outage_ms:.3f} ms, "
        f"rtt median {loss.rtt_median_ms} ms, max {loss.rtt_max_ms} ms"
    )


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
