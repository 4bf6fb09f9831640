"""`vrha apply` and `vrha diff`: the file is judged here, as a whole, before anything is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService

GOOD = """\
networks:
  - name: web-net
    bridge: br-web
    subnets:
      - {cidr: 10.1.0.0/24, gateway: 10.1.0.1}
routers:
  - name: web
    networks: [web-net]
nodes:
  - name: node-1
"""


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    path = tmp_path / "zone.yaml"
    path.write_text(GOOD)
    return path


def test_apply_sends_what_the_file_says(vrha: Vrha, service: FakeService, zone: Path) -> None:
    result = vrha("apply", "-f", str(zone))
    assert result.code == 0
    assert result.out == "+ network web-net\ndesired state is now version 1; runs: r7\n"
    assert [network.name for network in service.applied[0].networks] == ["web-net"]
    assert service.applied[0].router_of("web-net") is not None


def test_apply_as_json(vrha: Vrha, zone: Path) -> None:
    answer = json.loads(vrha("apply", "-f", str(zone), "--json").out)
    assert (answer["version"], answer["runs"]) == (1, ["r7"])


def test_apply_waits_for_its_runs(vrha: Vrha, service: FakeService, zone: Path) -> None:
    result = vrha("apply", "-f", str(zone), "--wait")
    assert result.code == 0
    assert service.open["r7"].status.terminal
    assert "step 4/4 done" in result.err


def test_apply_waits_until_a_node_can_host_the_router(
    vrha: Vrha, service: FakeService, zone: Path
) -> None:
    service.unplaced = 2
    result = vrha("apply", "-f", str(zone), "--wait")
    assert result.code == 0
    assert result.err.count("router web waits: no-node: node-1: silent") == 1
    service.unplaced = 10000
    result = vrha("apply", "-f", str(zone), "--wait", "--timeout", "1s")
    assert result.code == 3
    assert "[not-placed]" in result.err


def test_apply_fails_with_its_runs(vrha: Vrha, service: FakeService, zone: Path) -> None:
    service.ends_well = False
    result = vrha("apply", "-f", str(zone), "--wait")
    assert result.code == 1
    assert "desired state is now version 1" in result.out
    assert "[rolled-back]" in result.err


def test_diff_changes_nothing(vrha: Vrha, service: FakeService, zone: Path) -> None:
    assert vrha("diff", "-f", str(zone)).out == "+ network web-net\n"
    assert not service.applied
    vrha("apply", "-f", str(zone))
    assert vrha("diff", "-f", str(zone)).out == "~ network web-net: dns\n"


@pytest.mark.parametrize("command", ["apply", "diff"])
def test_every_problem_is_shown_and_nothing_is_sent(
    vrha: Vrha, service: FakeService, zone: Path, command: str
) -> None:
    bad = GOOD.replace("10.1.0.1}", "10.2.0.1}").replace("[web-net]", "[web-nut]")
    zone.write_text(bad)
    result = vrha(command, "-f", str(zone))
    assert (result.code, result.out) == (2, "")
    first, *problems = result.err.splitlines()
    assert first.endswith("problems [spec-invalid]")
    assert any(line.startswith(f"{zone}:5: ") for line in problems)
    assert any(line.startswith(f"{zone}:8: ") and "web-nut" in line for line in problems)
    assert not service.threads


@pytest.mark.parametrize("kind", ["absent", "folder", "binary"])
def test_unreadable_files(vrha: Vrha, service: FakeService, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "zone.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"networks: \xff")
    result = vrha("apply", "-f", str(path))
    assert (result.code, result.out) == (2, "")
    assert str(path) in result.err
    assert not service.threads
