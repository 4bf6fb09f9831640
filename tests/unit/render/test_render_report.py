"""From a run to the data of its report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.render.reportkit import (
    HANDOVER,
    NOW,
    PENDING,
    T0,
    run,
    step,
    stream,
)
from vrha import codec
from vrha.model.evidence import Measured, Measurement
from vrha.model.report import Report, ReportGap
from vrha.model.runs import RunStatus, StepStatus
from vrha.model.views import RunView
from vrha.render.report import report

FIELDS = """version run kind router epoch strategy status reason detail old new nodes started_at
ended_at t0 start_ms end_ms duration_ms measured_by lost longest_gap_ms flip_ms flip_length_ms
point_of_no_return point_of_no_return_ms steps undo lanes connections carried leftovers notes"""

STEP_FIELDS = """what kind node status attempt error start_ms length_ms inferred open flip
timings_ms"""
LANE_FIELDS = """name direction source interval_ms sent lost duplicates late_ticks longest_gap_ms
start_ms length_ms gaps unavailable"""


def of(view: RunView) -> Report:
    return report(view, NOW)


def test_steps_stand_where_the_nodes_took_them() -> None:
    found = of(run())
    assert [(s.start_ms, s.length_ms) for s in found.steps] == [
        (20, 40),
        (60, 30),
        (90, 100),
        (200, 53),
        (260, 100),
        (400, 50),
    ]
    assert [s.inferred for s in found.steps] == [False, True, False, False, False, False]
    assert (found.duration_ms, found.point_of_no_return_ms) == (500, 400)


def test_the_flip_lies_between_what_came_before_and_after_it() -> None:
    found = of(run())
    assert found.flip_ms == (201, 203)
    assert found.flip_length_ms == 0.3


def test_lanes_have_exactly_the_gaps_that_were_measured() -> None:
    lanes = {lane.name: lane for lane in of(run()).lanes}
    assert list(lanes) == ["egress_icmp", "ingress_icmp", "canary:blue", "other_udp"]
    assert [lane.direction for lane in lanes.values()] == ["egress", "ingress", "canary", "other"]
    assert lanes["egress_icmp"].gaps == (
        ReportGap(201, 3, ("flip",)),
        ReportGap(400, 1, ("destroy",)),
    )
    assert lanes["ingress_icmp"].gaps == ()
    assert lanes["canary:blue"].gaps == (ReportGap(201, 2, ("flip",)),)
    assert (lanes["canary:blue"].source, lanes["egress_icmp"].source) == ("n1", "")
    assert lanes["other_udp"].gaps == (ReportGap(202, 2, ("flip",)),)


def test_a_gap_says_during_which_steps_it_was() -> None:
    gaps = ((695.0, 5.0), (752.0, 9.0), (765.0, 1.0), (860.0, 41.0))
    measured = Measurement((stream("egress_icmp", *gaps),))
    found = of(run(measurement=measured)).lanes[0].gaps
    assert [gap.during for gap in found] == [
        (),
        ("flip", "verify"),
        ("verify",),
        ("destroy",),
    ]


def test_the_headline_counts_who_measured_outside_and_else_the_nodes() -> None:
    outside = of(run())
    assert (outside.measured_by, outside.lost, outside.longest_gap_ms) == ("client", 6, 3)
    nodes = of(run(measurement=None))
    assert (nodes.measured_by, nodes.lost, nodes.longest_gap_ms) == ("nodes", 2, 2)
    nobody = of(run(steps=HANDOVER[:4], measurement=None))
    assert (nobody.measured_by, nobody.lost, nobody.longest_gap_ms) == ("", None, None)
    assert nobody.lanes == ()


def test_the_last_evidence_counts() -> None:
    carried = {one.what: (one.sent, one.taken) for one in of(run()).carried}
    assert carried == {"conntrack": (9, 9), "neighbours": (3, 3)}


def test_a_stream_that_was_unavailable_is_no_loss_and_no_measurement() -> None:
    silent = Measured("egress_icmp", T0, 1.0, 0, 0, unavailable="no-route")
    found = of(run(steps=HANDOVER[:4], measurement=Measurement((silent,))))
    assert (found.measured_by, found.lost) == ("", None)
    assert found.lanes[0].unavailable == "no-route"


def test_a_rolled_back_run_shows_what_was_undone_and_how_long_nobody_answered() -> None:
    steps = (
        HANDOVER[0],
        step(1, "offer", None, None, StepStatus.FAILED),
        step(2, "flip", None, None, PENDING),
    )
    undo = (step(0, "destroy", 450, 20),)
    found = of(run(steps, undo, RunStatus.ROLLED_BACK, None, "no-answer", "offer"))
    assert (found.steps[1].start_ms, found.steps[1].length_ms) == (60, 390)
    assert found.steps[1].inferred
    assert found.steps[2].start_ms is None
    assert found.undo[0].start_ms == 450
    assert found.flip_ms is None
    assert found.notes == ("When 1 step began was never reported.",)


def test_an_open_run_reaches_to_now() -> None:
    going = replace(HANDOVER[2], began=None, timings_ms=(), status=StepStatus.STARTED)
    view = run((*HANDOVER[:2], going), (), RunStatus.RUNNING, None)
    found = report(view, T0 + 2)
    assert (found.duration_ms, found.end_ms) == (None, 2000)
    assert (found.steps[2].open, found.steps[2].start_ms) == (True, 60)
    assert found.notes == ()


def test_a_run_of_older_nodes_has_lengths_and_no_places() -> None:
    steps = tuple(replace(each, began=None) for each in HANDOVER)
    found = of(run(steps, measurement=None))
    assert {s.start_ms for s in found.steps} == {None}
    assert found.steps[0].length_ms == 40
    assert "When 5 steps began was never reported." in found.notes


@pytest.mark.parametrize("off_s", [-3600.0, 3600.0, 1e300])
def test_a_clock_that_is_far_off_is_not_drawn_and_named(off_s: float) -> None:
    off = replace(HANDOVER[0], began=T0 + off_s, node="n9")
    far = stream("egress_icmp", (1.0, 1.0), began=T0 + off_s)
    found = of(run((off, *HANDOVER[1:]), measurement=Measurement((far,))))
    assert found.steps[0].inferred
    assert found.lanes[0].start_ms is None
    assert (found.lost, found.end_ms) == (1, 500)
    assert [note.partition(" is not")[0] for note in found.notes] == [
        "The clock of n9",
        "The clock of the prober",
    ]


def test_a_plan_without_times_is_a_report_too() -> None:
    found = of(replace(run(measurement=None), started_at="", ended_at=""))
    assert (found.t0, found.duration_ms) == (None, None)


def test_the_form_in_json_is_stable() -> None:
    """Fields may be added with care; one that goes or changes its meaning needs a new version."""
    plain = json.loads(json.dumps(codec.plain(of(run())), allow_nan=False))
    assert list(plain) == FIELDS.split()
    assert plain["version"] == 1
    assert list(plain["steps"][0]) == STEP_FIELDS.split()
    assert list(plain["lanes"][0]) == LANE_FIELDS.split()
    assert plain["lanes"][0]["gaps"][0] == {
        "start_ms": 201.0,
        "length_ms": 3.0,
        "during": ["flip"],
    }
    assert codec.decode(Report, json.dumps(plain)) == of(run())
