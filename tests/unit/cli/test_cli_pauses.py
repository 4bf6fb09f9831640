"""The kill switch and the status as people and programs see them."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService
from vrha import codec
from vrha.model.pauses import PauseScope, PauseTarget

NODE = PauseTarget(PauseScope.NODE, "node-1")


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ((), PauseTarget()),
        (("--zone", "east"), PauseTarget(PauseScope.ZONE, "east")),
        (("--node", "node-1"), NODE),
        (("--router", "web"), PauseTarget(PauseScope.ROUTER, "web")),
    ],
)
def test_each_target(
    vrha: Vrha,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    target: PauseTarget,
) -> None:
    monkeypatch.setenv("SUDO_USER", "ann")
    result = vrha("pause", *options, "--reason", "the switch")
    assert result.code == 0
    at = "2026-03-01T10:00:00.000+00:00"
    assert result.out == f"paused: {target} since {at} by ann: the switch\n"
    assert list(service.paused) == [target]
    assert vrha("resume", *options).out == f"resumed: {target}\n"
    assert service.paused == {}


def test_what_is_still_paused_is_told(vrha: Vrha, service: FakeService) -> None:
    vrha("pause")
    vrha("pause", "--node", "node-1", "--reason", "a\x1b[2Jb")
    lines = vrha("resume").out.splitlines()
    assert lines[0] == "resumed: all"
    assert lines[1].startswith("still paused: node node-1 since 2026")
    assert lines[1].endswith("a\\x1b[2Jb")


def test_as_json(vrha: Vrha, service: FakeService) -> None:
    paused = json.loads(vrha("pause", "--node", "node-1", "--json").out)
    assert paused == codec.plain(service.paused[NODE])
    assert json.loads(vrha("resume", "--node", "node-1", "--json").out) == paused


def test_one_target_at_a_time(vrha: Vrha, service: FakeService) -> None:
    result = vrha("pause", "--node", "node-1", "--zone", "east")
    assert result.code == 2
    assert "give one of --zone, --node and --router" in result.err
    assert service.paused == {}


def test_refusals(vrha: Vrha) -> None:
    assert vrha("pause", "--node", "nope").err.startswith("error: no node nope [no-such-node]")
    result = vrha("resume")
    assert result.code == 2
    assert result.err.startswith("error: all is not paused [not-paused]")


def test_the_status_at_a_glance(vrha: Vrha, service: FakeService) -> None:
    vrha("pause", "--node", "node-1", "--reason", "memory")
    service.restart_network("web-net")
    lines = vrha("status").out.splitlines()
    assert lines[0] == "leader:     o2 (epoch 7), this one leads"
    assert lines[1] == "broker:     connected"
    assert lines[2] == (
        "brake:      on since 2026-03-01T10:00:00.000+00:00: mass-silence; "
        "0 nodes under recovery (budget 1), 2 silent (limit 1)"
    )
    assert lines[3].startswith("paused:     node node-1 since 2026")
    assert lines[4] == "open runs:  1: restart of web (r1)"
    assert lines[5] == "not served: 1: web (check-in-deadline)"
    assert lines[7].split()[:3] == ["NODE", "ZONE", "STATE"]
    assert lines[8].startswith("node-1  east  suppressed  120 ms ago   0.2 s ago")
    assert lines[8].endswith(
        "flaps, takes no routers until 2026-03-01T10:20:00.000+00:00, draining, paused"
    )
    assert lines[9].split() == ["node-2", "west", "silent", "-", "never", "0", "held:", "budget"]


def test_a_status_of_one_that_watches_no_leases(vrha: Vrha, service: FakeService) -> None:
    service.watched = False
    lines = vrha("status").out.splitlines()
    assert lines[0].endswith("this one stands by")
    assert lines[2] == "brake:      unknown: no leases are watched here"
    assert "open runs:  none" in lines


def test_the_status_as_json(vrha: Vrha, service: FakeService) -> None:
    assert json.loads(vrha("status", "--json").out) == codec.plain(service.status())
