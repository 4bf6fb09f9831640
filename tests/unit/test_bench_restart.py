"""The bench of restarts: its streams, its rows in turn, its table."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from tools.benchmarks import report
from tools.benchmarks.restart import CONTROL, measure, rows_of, table
from tools.benchmarks.zone import _streams
from vrha.config.desired import load
from vrha.lab.scenario import load_scenario
from vrha.lab.zone import Lab
from vrha.model.runs import Strategy
from vrha.probe.result import ESTABLISHED, Stream


def streams_of(scenario: str, folder: Path) -> tuple[Stream, ...]:
    path = folder / "zone.yaml"
    path.write_text(yaml.safe_dump(dict(load_scenario(scenario).zone)))
    lab = cast(Lab, SimpleNamespace(netns_path=lambda name: name))
    return _streams(lab, load(path))


def test_seed_has_every_stream_and_31_long_connections(tmp_path: Path) -> None:
    streams = streams_of("seed-10x10", tmp_path)
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
        for stream in streams_of(name, tmp_path):
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
    }


def test_rows_of_anything_come_in_turn() -> None:
    order = []

    def take(name: str) -> dict[str, Any]:
        order.append(name)
        return taken()

    said: list[str] = []
    rows = measure([(name, partial(take, name)) for name in ("a", "b")], 2, said.append)
    assert order == ["a", "b", "a", "b"]
    assert [(row["row"], len(row["runs"])) for row in rows] == [("a", 2), ("b", 2)]
    assert said[0].startswith("run 1 of 2: a: lost 0 egress, 0 ingress, 0 fresh")


def test_control_comes_first_and_each_strategy_has_a_row() -> None:
    measured: Any = SimpleNamespace(control=taken, restart=lambda strategy: taken(lost=7))
    rows = rows_of(measured, tuple(Strategy))
    assert [name for name, _ in rows] == [CONTROL, *Strategy]
    assert rows[1][1]()["lost"]["fresh_egress"] == 7


def test_the_table_tells_fresh_flows_connections_and_stalls() -> None:
    runs = [taken(), taken(lost=3, alive=21, stall=12.25), taken(lost=4, alive=0, stall=None)]
    text = table(report.result("restart", {}, [{"row": "x", "runs": runs}]))
    head, _, line = text.splitlines()
    assert [c.strip() for c in head.split("  ") if c.strip()][4:8] == [
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
