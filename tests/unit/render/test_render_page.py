"""The page of a report: one file, well-formed, and nothing from the network can act in it."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from tests.unit.render.reportkit import HANDOVER, MEASUREMENT, NOW, PENDING, run, step, stream
from vrha.model.evidence import Carried, Evidence, Measured, Measurement
from vrha.model.runs import RunStatus, StepStatus
from vrha.model.views import RunView
from vrha.render.page import page
from vrha.render.plot import around_flip, milliseconds, overview
from vrha.render.report import report

EVIL = "\"'><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>"
HTML = "{http://www.w3.org/1999/xhtml}"

OPEN = run(
    (*HANDOVER[:2], step(2, "sync", None, None, StepStatus.STARTED)), (), RunStatus.RUNNING, None
)
ROLLED_BACK = run(
    (HANDOVER[0], step(1, "offer", 80, 9, StepStatus.FAILED), step(2, "flip", None, None, PENDING)),
    (step(0, "destroy", 450, 20),),
    RunStatus.ROLLED_BACK,
)
OLD = run(
    tuple(replace(each, began=None, evidence=Evidence()) for each in HANDOVER), measurement=None
)
PLANNED = replace(OLD, started_at="", ended_at="")
EMPTY = run((), measurement=None)
MANY = run(
    measurement=Measurement(
        tuple(stream(f"egress_{n}", *((float(i * 3), 1.0) for i in range(500))) for n in range(3))
    )
)
RUNS = {
    "done": run(),
    "open": OPEN,
    "rolled back": ROLLED_BACK,
    "old": OLD,
    "planned": PLANNED,
    "empty": EMPTY,
    "many": MANY,
}


def text_of(view: RunView) -> str:
    return page(report(view, NOW))


def tree_of(view: RunView) -> ElementTree.Element:
    return ElementTree.fromstring(text_of(view).partition("\n")[2])


@pytest.mark.parametrize("name", RUNS)
def test_the_page_is_well_formed_and_refers_to_nothing_outside(name: str) -> None:
    text = text_of(RUNS[name])
    assert text.startswith("<!DOCTYPE html>\n")
    elements = list(tree_of(RUNS[name]).iter())
    tags = {element.tag.removeprefix(HTML) for element in elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "a", "use", "image"}
    for element in elements:
        assert not {"src", "href", "srcset", "data", "action"} & {
            key.rpartition("}")[2] for key in element.attrib
        }
        assert not [key for key in element.attrib if key.startswith("on")]
    assert not re.search(r"url\(|@import|//(?!www\.w3\.org/1999/xhtml)", text)


def test_the_page_forbids_itself_to_load_anything() -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'" in text_of(run())


def test_what_comes_from_the_network_is_text() -> None:
    measured = Measured(EVIL, 0.0, 1.0, 1, 0, unavailable=EVIL)
    evil = replace(
        step(0, "build", 20, 40, node=EVIL, phases=((EVIL, 1.0),)),
        what=EVIL,
        error=EVIL,
        evidence=Evidence((Carried(EVIL, 2, 1, ((EVIL, 1),)),), (measured,)),
    )
    outside = replace(MEASUREMENT.streams[0], stream=f"egress_{EVIL}")
    view = replace(
        run((evil,), (), RunStatus.ROLLED_BACK, Measurement((outside,)), EVIL, EVIL, EVIL),
        leftovers=(EVIL,),
    )
    text = text_of(view)
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert not [key for key, _ in attrs if key.startswith("on")]

    Tags().feed(text)
    assert not {"script", "img"} & set(tags)
    assert "<script" not in text
    words = "".join(tree_of(view).itertext())
    assert words.count(EVIL) > 10


def test_what_cannot_be_seen_is_named_and_refuses_nothing() -> None:
    text = text_of(run(detail="a\x00b\x1b[31mc\u202ed\ne"))
    assert r"a\x00b\x1b[31mc\x202ed\x0ae" in text


def test_every_gap_is_a_bar_in_its_lane() -> None:
    gaps = [
        element
        for element in tree_of(run()).iter(f"{HTML}g")
        if element.attrib["class"] == "mark gap"
    ]
    titles = [element.findtext(f"{HTML}title") for element in gaps]
    seen = [title.partition(",")[0] for title in titles if title]
    assert seen == [
        *("gap of 3.00 ms", "gap of 1.00 ms", "gap of 2.00 ms", "gap of 2.00 ms"),
        *("gap of 3.00 ms", "gap of 2.00 ms", "gap of 2.00 ms"),
    ]


def test_lengths_of_gaps_never_cover_each_other() -> None:
    plot = overview(report(MANY, NOW))
    assert plot is not None
    for _, rows in plot.groups:
        for row in rows:
            rooms = sorted(
                (m.text_x, m.text_x + 14) if m.anchor == "start" else (m.text_x - 14, m.text_x)
                for m in row.marks
                if m.text
            )
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(rooms))
            assert all(start >= 0 and end <= 100 for start, end in rooms)


@pytest.mark.parametrize("name", RUNS)
def test_nothing_is_drawn_beyond_the_plot_and_ticks_have_room(name: str) -> None:
    found = report(RUNS[name], NOW)
    for plot in filter(None, (overview(found), around_flip(found))):
        assert 2 <= len(plot.ticks) <= 8
        places = [tick.x for tick in plot.ticks]
        assert all(b - a >= 10 for a, b in itertools.pairwise(places))
        marks = [mark for _, rows in plot.groups for row in rows for mark in row.marks]
        assert all(0 <= m.x <= 100 and 0 <= m.width <= 100.001 - m.x for m in marks)


def test_the_close_view_shows_the_flip_and_the_gaps_at_it() -> None:
    plot = around_flip(report(run(), NOW))
    assert plot is not None
    assert plot.flip is not None
    assert plot.flip.width > 5
    assert [title.partition(":")[0] for title, _ in plot.groups] == [
        "Steps",
        "Egress",
        "Ingress",
        "Canaries",
        "Other streams",
    ]
    steps = plot.groups[0][1]
    assert [row.label for row in steps] == ["4 flip r1#2"]


def test_there_is_no_plot_where_there_is_nothing_to_draw() -> None:
    for view in (OLD, PLANNED, EMPTY):
        assert overview(report(view, NOW)) is None
        assert "Timeline" not in text_of(view)
    assert "Nothing was measured" in text_of(OLD)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123, "0.12 ms"), (12.34, "12.3 ms"), (1234.5, "1,234 ms"), (12_345.0, "12.3 s")],
)
def test_milliseconds(value: float, shown: str) -> None:
    assert milliseconds(value) == shown
