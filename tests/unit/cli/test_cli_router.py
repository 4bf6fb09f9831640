"""`vrha router`: the policy, its standby, and what that costs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.unit.cli.conftest import Vrha
from tests.unit.fake_service import FakeService
from vrha.model.spec import Policy
from vrha.model.views import RouterView, StandbyView

READY = StandbyView("web#2", "node-2", True, 12, 3.25, 900)


def as_if(
    monkeypatch: pytest.MonkeyPatch, service: FakeService, standby: StandbyView | None
) -> None:
    policy = Policy.STANDBY if standby else Policy.RESURRECT
    view = replace(service.routers()[0], policy=policy, standby=standby)
    routers: tuple[RouterView, ...] = (view,)
    monkeypatch.setattr(service, "routers", lambda: routers)


def test_a_standby_and_its_cost(
    vrha: Vrha, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if(monkeypatch, service, READY)
    shown = " ".join(vrha("router", "show", "web").out.split())
    assert "policy: standby standby: web#2 on node-2, knows all connections" in shown
    assert "a namespace and a dnsmasq (900 KiB); 12 connections held twice" in shown
    assert "3.2 changes per second carried over" in shown
    found = json.loads(vrha("router", "show", "web", "--json").out)["standby"]
    assert (found["connections"], found["memory_kib"]) == (12, 900)
    assert "node-2" in vrha("router", "list").out


@pytest.mark.parametrize(
    ("standby", "words"),
    [
        (replace(READY, in_sync=False), "web#2 on node-2, not in sync"),
        (StandbyView("", "", False, why="n2: full"), "standby: none: n2: full"),
        (StandbyView("", "", False), "standby: none yet"),
        (None, "policy: resurrect cost: nothing until a node is lost"),
    ],
)
def test_what_is_not_ready_says_so(
    vrha: Vrha,
    service: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    standby: StandbyView | None,
    words: str,
) -> None:
    as_if(monkeypatch, service, standby)
    assert words in " ".join(vrha("router", "show", "web").out.split())


def test_set_changes_the_policy_and_can_wait(
    vrha: Vrha, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if(monkeypatch, service, READY)
    result = vrha("router", "set", "web", "--policy", "standby", "--wait")
    assert (result.code, service.set) == (0, {"web": {"policy": Policy.STANDBY}})
    assert "web has policy standby" in result.out
    late = vrha("router", "set", "web", "--policy", "resurrect", "--wait", "--timeout", "0.2s")
    assert late.code != 0
    assert "standby-not-ready" in late.err or "is not as it should be" in late.err
    assert vrha("router", "set", "web", "--policy", "pray").code == 2
    assert vrha("router", "set", "web", "--priority", "7").code == 0
    assert service.set == {"web": {"priority": 7}}
    assert "nothing to set" in vrha("router", "set", "web").err
