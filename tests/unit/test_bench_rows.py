"""The benches of one router: their streams, their rows in turn, their tables."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from tools.benchmarks import phases, report
from tools.benchmarks.restart import parse_strategies, rows_of
from tools.benchmarks.rows import CONTROL, Row, measure, table
from tools.benchmarks.streams import streams_of
from vrha.config.desired import load
from vrha.errors import InputError, StepError
from vrha.lab.scenario import load_scenario
from vrha.lab.zone import Lab
from vrha.model.probing import ESTABLISHED, Stream
from vrha.model.runs import RunKind, RunStatus, StepStatus, Strategy
from vrha.model.views import RunView, StepView


def seen_from(scenario: str, folder: Path) -> tuple[Stream, ...]:
    path = folder / "zone.yaml"
    path.write_text(yaml.safe_dump(dict(load_scenario(scenario).zone)))
    lab = cast(Lab, SimpleNamespace(netns_path=lambda name: name))
    return streams_of(lab, load(path))


def test_seed_has_every_stream_and_31_long_connections(tmp_path: Path) -> None:
    streams = seen_from("seed-10x10", tmp_path)
    each_ms = {s.name for s in streams if s.interval_ms == 1}
    assert each_ms == {
        *("egress_icmp", "egress_udp", "ingress_icmp", "ingress_udp", "snat_udp"),
        *("fresh_egress", "fresh_ingress", "fresh_snat"),
    }
    inward = {s.target for s in streams if s.kind == "tcp-echo" and s.netns == "outside"}
    assert inward == {f"203.0.113.{n}" for n in range(11, 21)}
    long = Counter[tuple[str, str]]()
    for stream in streams:
        if stream.kind in ESTABLISHED:
            way = {"outside": "in", "vm11": "snat"}.get(str(stream.netns), "out")
            long[stream.kind, way] += stream.count
    assert long == {
        ("tcp-echo", "in"): 10,
        ("tcp-echo", "out"): 5,
        ("tcp-echo", "snat"): 6,
        ("tcp-push", "out"): 5,
        ("tcp-push", "snat"): 5,
    }
    assert long.total() == 31


def test_probes_from_outside_reach_only_ports_that_are_open(tmp_path: Path) -> None:
    for name in ("seed-10x10", "dais-54"):
        router = load_scenario(name).zone["routers"][0]
        admitted = {
            (entry["address"], rule["protocol"], rule.get("ports"))
            for entry in router["ingress"]
            for rule in entry["rules"]
        }
        for stream in seen_from(name, tmp_path):
            if stream.netns == "outside":
                protocol = stream.kind.split("-")[0]
                port = None if protocol == "icmp" else stream.port
                assert (stream.target, protocol, port) in admitted


def taken(lost: int = 0, alive: int = 31, stall: float | None = 10.5) -> dict[str, Any]:
    names = ("egress_icmp", "egress_udp", "ingress_icmp", "ingress_udp", "fresh_egress")
    return {
        "lost": dict.fromkeys(names, 0) | {"fresh_egress": lost},
        "longest_gap_ms": float(lost),
        "tcp_total": 31,
        "tcp_alive": alive,
        "tcp_longest_stall_ms": stall,
        "unrestored": [],
        "late_ticks": 2,
        "owners_overlap_ms": 0.0,
    }


def test_rows_of_anything_come_in_turn() -> None:
    order = []

    def take(name: str) -> dict[str, Any]:
        order.append(name)
        return taken()

    said: list[str] = []
    rows = measure([Row(name, partial(take, name)) for name in ("a", "b")], 2, said.append)
    assert order == ["a", "b", "a", "b"]
    assert [(row["row"], len(row["runs"])) for row in rows] == [("a", 2), ("b", 2)]
    assert said[0].startswith("run 1 of 2: a: lost 0 egress, 0 ingress, 0 fresh")


def test_what_fails_and_what_is_missing_is_told_and_the_rest_goes_on() -> None:
    outcomes = iter([StepError("run-failed", "rolled back", "agent: help"), None, OSError("gone")])

    def take() -> dict[str, Any]:
        error = next(outcomes)
        if error is not None:
            raise error
        return taken(lost=1)

    wanted = [Row("a", take), Row("b", taken), Row("c", missing="c: command not found")]
    rows = measure(wanted, 3, lambda _: None)
    a, b, c = (row["runs"] for row in rows)
    assert a[0] == {"failed": "rolled back [run-failed]\n  agent: help", "words": "agent: help"}
    assert a[2]["failed"] == "OSError: gone"
    assert (len(b), c, rows[2]["missing"]) == (3, [], "c: command not found")
    text = table(report.result("restart", {}, rows))
    cells = {line.split()[0]: line.split()[1:3] for line in text.splitlines()[2:5]}
    assert cells == {"a": ["3", "2"], "b": ["3", "0"], "c": ["0", "0"]}
    assert text.endswith("c: missing: c: command not found")


@pytest.mark.parametrize(
    ("runs", "made"), [([], False), ([{"failed": "x"}], False), ([{"failed": "x"}, {}], True)]
)
def test_a_measurement_is_made_when_one_run_is_good(runs: list[Any], made: bool) -> None:
    rows = [{"row": "control", "runs": [{}]}, {"row": "handover", "runs": runs}]
    assert report.is_made(report.result("restart", {}, rows)) is made


def test_control_comes_first_and_each_strategy_has_a_row() -> None:
    calls = []

    def restart(strategy: Strategy, others: int) -> dict[str, Any]:
        calls.append((strategy, others))
        return taken()

    measured: Any = SimpleNamespace(control=taken, restart=restart)
    rows = rows_of(measured, (Strategy.HANDOVER, Strategy.SERIAL), (0, 20_000))
    assert [row.name for row in rows] == [CONTROL, "handover", "handover+20000", "serial"]
    measure(rows, 1, lambda _: None)
    assert calls == [(Strategy.HANDOVER, 0), (Strategy.HANDOVER, 20_000), (Strategy.SERIAL, 0)]


def test_rows_are_named_once_each() -> None:
    named = parse_strategies("handover, keepalived+conntrackd,handover")
    assert named == ("handover", "keepalived+conntrackd")
    with pytest.raises(InputError, match=r"no strategy 'fast'.*unknown-strategy"):
        parse_strategies("handover,fast")


def step(kind: str, began: float | None, *timings: tuple[str, float]) -> StepView:
    return StepView(0, kind, "n1", StepStatus.DONE, 1, "", "", timings, kind, began=began)


def run_of(*steps: StepView) -> RunView:
    begin, end = "2026-01-01T00:00:00.000+00:00", "2026-01-01T00:00:01.000+00:00"
    outcome = (RunStatus.DONE, steps, (), None, "r1#1", "r1#2", "", "", ())
    return RunView("x", RunKind.RESTART, "r1", 1, None, *outcome, begin, end)


def test_the_flip_is_the_turn_without_what_prepares_it_and_lingers() -> None:
    start = 1767225600.0
    steps = (
        step("build", start + 0.010, ("rules", 9.0), ("total", 40.0)),
        step("await-check-in", None),
        step("sync", start + 0.080, ("connections", 60.0), ("total", 70.0)),
        step("flip", start + 0.200, ("drain", 2.0), ("flip", 0.25), ("linger", 50), ("total", 55)),
        step("destroy", start + 0.300, ("total", 30.0)),
    )
    assert phases.of_run(run_of(*steps)) == {
        **{"build": 40.0, "checkin": 30.0, "sync": 70.0, "flip": 0.25, "retire": 30.0},
        **{"before_flip": pytest.approx(204.75, abs=0.01), "total": 1000.0},
    }


def test_without_a_flip_the_old_one_stops_at_swap_or_mute() -> None:
    start = 1767225600.0
    steps = (step("build", start, ("total", 40.0)), step("swap", start + 0.06, ("total", 3.0)))
    found = phases.of_run(run_of(*steps))
    assert (found["flip"], found["before_flip"]) == (3.0, pytest.approx(60, abs=0.01))


def test_the_table_tells_fresh_flows_connections_and_stalls() -> None:
    runs = [taken(), taken(lost=3, alive=21, stall=12.25), taken(lost=4, alive=0, stall=None)]
    text = table(report.result("restart", {}, [{"row": "x", "runs": runs}]))
    head, _, line = text.splitlines()
    assert [c.strip() for c in head.split("  ") if c.strip()][5:9] == [
        *("lost fresh", "longest gap ms", "TCP alive", "longest stall ms")
    ]
    assert "3 / 4" in line
    assert "52 of 93" in line
    assert "11.4 / 12.2" in line


@pytest.mark.parametrize("missing", ["snat_udp", "fresh_snat"])
def test_a_scenario_without_source_nat_has_a_table_too(missing: str) -> None:
    run = taken()
    assert missing not in run["lost"]
    assert "x" in table(report.result("restart", {}, [{"row": "x", "runs": [run]}]))
