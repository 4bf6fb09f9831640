"""A run as a JUnit report: a test case per stream, and one for whether the run counts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as xml

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
    left = list(record.exceeded)
    ones: list[StreamResult | ConnectionsResult] = [*result.streams, *result.connections]
    for one in ones:
        mine = [line for line in left if line.startswith(f"{one.stream.name}: ")]
        left = [line for line in left if line not in mine]
        _case(suite, one.stream.name, mine, result.duration_ms, _figures(one))
    if not left and record.settled is False:
        left.append(unsettled(result, record.limits.settle_ms))
    _case(suite, "the run counts", left, 0.0, "\n".join(record.notes))
    suite.set("tests", str(len(ones) + 1))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")
    xml.indent(suite)
    return xml.tostring(suite, encoding="unicode", xml_declaration=True)


def _case(
    suite: xml.Element, name: str, failures: list[str], duration_ms: float, said: str
) -> None:
    case = xml.SubElement(suite, "testcase", name=_clean(name), classname="ping-gap")
    case.set("time", f"{duration_ms / 1000:.3f}")
    if failures:
        failure = xml.SubElement(case, "failure", message=_clean(failures[0]))
        failure.text = _clean("\n".join(failures))
    xml.SubElement(case, "system-out").text = _clean(said)


def _figures(one: StreamResult | ConnectionsResult) -> str:
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
