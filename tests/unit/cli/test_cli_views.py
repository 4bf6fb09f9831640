"""Lists and single objects: as tables for people, as JSON and YAML for programs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService, rolled_back
from vrha import codec


def test_networks_as_a_table(vrha: Vrha) -> None:
    result = vrha("network", "list")
    assert result.code == 0
    assert result.out.splitlines() == [
        "NAME     STATUS   ROUTER  NODE    BRIDGE  SUBNETS                      RUN",
        "web-net  serving  web     node-1  br-web  10.1.0.0/24,2001:db8:1::/64  -",
    ]
    assert result.err == ""


@pytest.mark.parametrize(
    ("before", "after"),
    [((), ("--json",)), ((), ("-o", "json")), (("-o", "json"), ()), (("-o", "yaml"), ("--json",))],
)
@pytest.mark.parametrize("noun", ["network", "router", "node", "run"])
def test_lists_as_json(
    vrha: Vrha, service: FakeService, noun: str, before: tuple[str, ...], after: tuple[str, ...]
) -> None:
    service.restart_network("web-net")
    result = vrha(*before, noun, "list", *after)
    assert result.code == 0
    assert json.loads(result.out) == codec.plain(getattr(service, f"{noun}s")())


def test_lists_as_yaml(vrha: Vrha, service: FakeService) -> None:
    result = vrha("node", "list", "-o", "yaml")
    assert yaml.safe_load(result.out) == codec.plain(service.nodes())


def test_nodes_say_when_they_were_heard(vrha: Vrha) -> None:
    lines = vrha("node", "list").out.splitlines()
    assert lines[1].split() == ["node-1", "east", "1", "500", "0.2", "s", "ago", "0.1.0", "-"]
    assert lines[2].split() == ["node-2", "west", "0", "500", "never", "-", "-"]


def test_one_network(vrha: Vrha) -> None:
    lines = vrha("network", "show", "web-net").out.splitlines()
    assert ["subnets:", "10.1.0.0/24", "2001:db8:1::/64"] in [line.split() for line in lines]


@pytest.mark.parametrize("noun", ["network", "router", "run"])
def test_unknown_objects(vrha: Vrha, noun: str) -> None:
    result = vrha(noun, "show", "nope")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith(f"error: no {noun} nope [no-such-{noun}]\n")


def test_why_names_the_reason_and_the_last_runs(vrha: Vrha, service: FakeService) -> None:
    service.open["r1"] = rolled_back(service.restart_network("web-net"))
    service.open["r2"] = replace(service.open["r1"], id="r2", router="other")
    lines = vrha("router", "why", "web").out.splitlines()
    assert lines == [
        "web is failed, instance web#1 on node-1: check-in-deadline",
        "cause: agent-dead (node node-1)",
        "  the agent is dead\\x1b: 2.0 s ago",
        "  there is a broker",
        "action: wait",
        "  because nothing hurries",
        "2026-03-01T10:00:00Z  run-started  operator",
        lines[-1],
    ]
    assert "rolled back (check-in-deadline no check-in of web#2 within 10 s)" in lines[-1]


def test_why_of_a_node_as_json(vrha: Vrha, service: FakeService) -> None:
    assert json.loads(vrha("node", "why", "node-1", "--json").out) == codec.plain(
        service.why_node("node-1")
    )
    assert vrha("node", "why", "nope").code == 2


@pytest.mark.parametrize("noun", ["node", "router"])
def test_why_without_an_orchestrator(
    vrha: Vrha, monkeypatch: pytest.MonkeyPatch, noun: str
) -> None:
    monkeypatch.setenv("VRHA_SOCKET", "/nonexistent")
    said = vrha(noun, "why", "web", "--json")
    assert said.code == 5
    assert json.loads(said.out)["cause"] == "orchestrator-gone"
    assert "routers serve on" in json.loads(said.out)["action"]
    assert "error: orchestrator at /nonexistent" in said.err


def test_a_run_with_its_roll_back(vrha: Vrha, service: FakeService) -> None:
    service.open["r1"] = rolled_back(service.restart_network("web-net"))
    out = vrha("run", "show", "r1").out
    assert "status:      rolled back" in out
    assert "   1  undone     build web#2 on node-1" in out
    assert "      --- point of no return ---\n   4  pending    destroy web#1" in out
    assert "roll-back:\n   1  done       destroy web#2 on node-1" in out
    assert "left behind: bridge port v0123" in out


def test_only_open_runs(vrha: Vrha, service: FakeService) -> None:
    service.open["r1"] = rolled_back(service.restart_network("web-net"))
    service.restart_network("web-net")
    assert [r["id"] for r in json.loads(vrha("run", "list", "--json").out)] == ["r1", "r2"]
    assert [r["id"] for r in json.loads(vrha("run", "list", "--open", "--json").out)] == ["r2"]


def test_the_diagram_needs_no_orchestrator(vrha: Vrha, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRHA_SOCKET", "/nonexistent")
    assert vrha("run", "diagram").out.startswith("stateDiagram-v2\n")


def test_events_cannot_play_with_the_terminal(vrha: Vrha) -> None:
    result = vrha("events", "--after", "1")
    assert len(result.out.splitlines()) == 2
    assert "a\\x1b[2Jb" in result.out
    assert "\x1b" not in result.out


def test_the_status_names_who_leads(vrha: Vrha) -> None:
    shown = vrha("orchestrator", "status")
    assert shown.code == 0
    assert shown.out.splitlines()[1].split()[:4] == ["o2", "7", "stands", "by"]
    assert json.loads(vrha("orchestrator", "status", "-o", "json").out)["leader_epoch"] == 7
