"""The reports of ping-gap: page, CSV, JUnit; the page's zoom in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as xml
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.unit.render.gapkit import gaps, record, stream
from vrha.core.compare import compare
from vrha.model.probing import Gap, Limits, Mark
from vrha.render.gapcsv import COLUMNS, csv_of
from vrha.render.gappage import compare_page, page, scale
from vrha.render.junit import junit_of

EVIL = '</script><script>alert(1)</script><b onload="x">'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Reader(HTMLParser):
    """Elements and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
            self._in_script = False

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]


@pytest.mark.parametrize("count", [0, 1, 5, 200])
def test_every_gap_is_drawn_and_listed(count: int) -> None:
    text = page(record(stream("egress", gaps(count)), stream("ingress")))
    found = Reader(text)
    drawn = found.all("rect", **{"class": "gap"})
    assert len(drawn) == count
    lengths = [gap.length_ms for gap in gaps(count)]
    scaled = [float(each["width"] or 0) for each in drawn]
    assert scaled == pytest.approx([length / 60 for length in lengths], abs=0.001), "to scale"
    ticks = found.all("rect", **{"class": "tick"})
    assert len(ticks) == count
    assert all(float(each["width"] or 0) >= 2 for each in ticks), "and seen all the same"
    assert len(found.all("button", **{"class": "show"})) == count
    data = json.loads(found.scripts[0])
    assert [len(one["gaps"]) for one in data["streams"]] == [count, 0]
    if count:
        assert f"{11 + count} of 120,000 probes lost; longest gap 12.0 ms, during flip" in text


def test_of_very_many_gaps_the_longest_are_listed() -> None:
    many = tuple(Gap(i * 10.0, 1.0 + i % 7, 1) for i in range(500))
    text = page(record(stream("egress", many)))
    assert len(Reader(text).all("button", **{"class": "show"})) == 200
    assert "and 300 shorter ones" in text


def test_nothing_comes_from_elsewhere_and_only_our_script_runs() -> None:
    text = page(record(stream("egress", gaps(5))))
    found = Reader(text)
    assert not re.findall(r"(?:src|href|url\()\s*=?\s*[\"']?https?:", text)
    policy = found.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"] or ""
    assert policy.startswith("default-src 'none'")
    assert "'sha256-" in policy
    assert "unsafe-inline'; script" not in policy.partition("script-src")[2]


def test_names_from_the_network_stay_text() -> None:
    evil = Gap(1.0, 2.0, 2, phases=(EVIL,))
    text = page(record(stream(EVIL, (evil,)), marks=(Mark(0.0, EVIL),), title=EVIL))
    found = Reader(text)
    assert len(found.scripts) == 2
    assert json.loads(found.scripts[0])["streams"][0]["name"] == EVIL
    assert not found.all("b", onload="x")


def test_verdicts() -> None:
    clean = stream("egress")
    assert "passed" in page(record(clean, limits=Limits(lost=0)))
    assert "passed" not in page(record(clean))
    failed = page(record(clean, exceeded=("egress: 3 lost, allowed 0",), limits=Limits(lost=0)))
    assert "egress: 3 lost, allowed 0" in failed
    late = stream("egress", (Gap(59_000.0, 1.0, 1),))
    assert "does not count" in page(record(late, settled=False, limits=Limits(settle_ms=5000.0)))


def test_streams_without_series_are_drawn_by_their_gaps() -> None:
    found = Reader(page(record(stream("egress", gaps(3), series=False))))
    assert len(found.all("rect", **{"class": "gap"})) == 3


def test_two_runs_in_one_page() -> None:
    a, b = record(stream("egress", gaps(5)), stream("x")), record(stream("egress", gaps(1)))
    text = compare_page(compare(a, b), a, b)
    data = json.loads(Reader(text).scripts[0])
    assert [one["name"] for one in data["streams"]] == ["A · egress", "B · egress", "A · x"]
    assert "x: only in A" in text
    assert ">better<" in text


def test_csv_has_a_row_per_gap() -> None:
    text = csv_of(record(stream('=cmd "x"', gaps(3)), stream("ingress")))
    head, *rows = csv.reader(io.StringIO(text))
    assert tuple(head) == COLUMNS
    assert len(rows) == 3
    first = dict(zip(head, rows[0], strict=True))
    assert first["stream"] == '\'=cmd "x"'
    assert (first["lost"], first["lost_forth"], first["lost_back"]) == ("12", "12", "0")
    assert first["start"] == "2023-11-14T22:13:30.001000+00:00"
    assert first["phases"] == "flip"
    assert rows[1][7:9] == ["", ""]


def test_junit_has_a_case_per_stream_and_one_for_the_run() -> None:
    exceeded = ("egress: 3 lost, allowed 0", "no result of one end: gone")
    suite = xml.fromstring(
        junit_of(record(stream("egress", gaps(1)), stream("bad\x00name<"), exceeded=exceeded))
    )
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names == ["egress", "bad\ufffdname<", "long", "the run counts"]
    failures = [
        case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None
    ]
    assert failures == ["egress", "the run counts"]
    assert (suite.get("tests"), suite.get("failures")) == ("4", "2")
    figures = {
        each.get("name"): each.get("value") for each in suite.iterfind("testcase[1]//property")
    }
    assert (figures["lost"], figures["longest_gap_ms"]) == ("12", "12.000")


HELPERS = """
const track = document.querySelector('.track[data-lane]');
const box = () => track.getBoundingClientRect();
const point = (type, share, more) => track.dispatchEvent(new PointerEvent(type, {
  bubbles: true, cancelable: true, pointerId: 1, button: 0, pointerType: 'mouse',
  clientX: box().left + share * box().width, clientY: box().top + 20, ...more}));
const key = (key) => document.getElementById('plot').dispatchEvent(
  new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
const wheel = (share, deltaY, ctrlKey) => track.dispatchEvent(new WheelEvent('wheel', {
  bubbles: true, cancelable: true, deltaY, ctrlKey, clientX: box().left + share * box().width}));
"""


def in_browser(text: str, script: str, folder: Path) -> tuple[Reader, tuple[float, float]]:
    """The page after a script of the test, and from when to when its plot then shows."""
    assert CHROMIUM is not None
    # The page's policy allows its own script only, so it is taken out for the one of the test.
    if script:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
        text = text.replace("</body>", f"<script>{HELPERS}{script}</script></body>")
    file = folder / "page.html"
    file.write_text(text)
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/data"]
    dumped = subprocess.run(
        [CHROMIUM, *arguments, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = Reader(dumped.stdout)
    plot = found.all("div", id="plot")[0]
    return found, (float(plot["data-from"] or 0), float(plot["data-to"] or 0))


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@needs_chromium
def test_show_zooms_to_a_gap(tmp_path: Path) -> None:
    """A gap of 12 ms in a minute is drawn to scale after `show`."""
    text = page(record(stream("egress", gaps(200))))
    script = """
    document.querySelector('[data-zoom="0.5"]').click();
    document.querySelector('button.show').click();
    """
    found, shown = in_browser(text, script, tmp_path)
    assert shown == pytest.approx((10_001 - 24, 10_013 + 24), abs=0.01)
    drawn = found.all("rect", **{"class": "gap"})
    assert len(drawn) == 1
    assert float(drawn[0]["width"] or 0) == pytest.approx(12 / 60 * 1000, rel=0.01)


@needs_chromium
@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        ("point('pointerdown', .25); point('pointermove', .4); point('pointerup', .5)", (15, 30)),
        ("point('pointerdown', .5); point('pointermove', .4); point('pointerup', .25)", (15, 30)),
        ("point('pointerdown', .25); point('pointercancel', .5)", (0, 60)),
        ("point('pointerdown', .25); point('pointerup', .2501)", (0, 60)),
        ("point('pointerdown', .25, {button: 2}); point('pointerup', .5)", (0, 60)),
        ("wheel(.5, -100, true)", (6, 54)),
        ("wheel(.5, -100, false)", (0, 60)),
        ("key('+')", (15, 45)),
        ("key('+'); key('ArrowRight')", (22.5, 52.5)),
        ("key('+'); key('ArrowLeft')", (7.5, 37.5)),
        ("key('+'); key('+'); key('-')", (15, 45)),
        ("key('+'); key('0')", (0, 60)),
        ("for (let i = 0; i < 40; i++) key('ArrowRight'); key('-')", (0, 60)),
    ],
)
def test_drag_wheel_and_keys(script: str, wanted: tuple[float, float], tmp_path: Path) -> None:
    text = page(record(stream("egress", gaps(5))))
    _, shown = in_browser(text, script, tmp_path)
    assert shown == pytest.approx([each * 1000 for each in wanted], abs=150)


@needs_chromium
def test_the_policy_lets_the_script_of_the_page_run(tmp_path: Path) -> None:
    found, shown = in_browser(page(record(stream("egress", gaps(5)))), "", tmp_path)
    assert found.all("html", **{"class": "scripted"})
    assert shown == (0.0, 60_000.0)


def test_one_long_round_trip_does_not_flatten_the_others() -> None:
    assert scale([0.3, None, 0.5, 1.1]) == 1.1
    assert scale([*[0.5] * 200, 180.0]) == pytest.approx(0.75)
    assert scale([None]) == 0.0
    one = stream("egress")
    assert one.series is not None
    series = replace(one.series, rtt_max_ms=(180.0, *one.series.rtt_max_ms[1:]))
    text = page(record(replace(one, series=series)))
    assert "(longest 180 ms)" in text
    band = Reader(text).all("path", **{"class": "band"})[0]["d"] or ""
    assert min(float(each) for each in re.findall(r"V([\d.]+) h", band)) == 0.0


def test_phases_control_and_errors_are_in_the_tables() -> None:
    failed = replace(stream("egress", gaps(5)), errors=(("ECONNREFUSED", 7),), receive_drops=2)
    text = page(replace(record(failed), control=stream("control")))
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", text)
    at = cells.index("flip")
    assert cells[at : at + 5] == ["flip", "10.000 s", "100 ms", "1", "12"]
    assert "ECONNREFUSED 7, 2 replies overran the buffer" in cells
    assert "control" in cells
    assert "10.001 s" in cells, "gaps next to each other are told apart"
