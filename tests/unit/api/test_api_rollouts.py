"""Routes of rollouts, over a real Unix socket."""

from __future__ import annotations

import httpx
import pytest

from tests.unit.fake_service import FakeService
from vrha import codec
from vrha.model.rollouts import (
    RolloutBrief,
    RolloutKind,
    RolloutPlan,
    RolloutRequest,
    RolloutView,
)
from vrha.model.runs import RestartOptions, Strategy
from vrha.model.views import NodeView

RESTART = {
    "kind": "restart",
    "zone": "east",
    "max_parallel": 8,
    "stop_on_lost": 3,
    "keep_going": True,
    "strategy": "parallel",
    "hold": True,
    "max_lost": 2,
}
ASKED = RolloutRequest(
    RolloutKind.RESTART, "east", "", 8, 3, True, RestartOptions(Strategy.PARALLEL, "", True, 2)
)


@pytest.fixture
def service(service: FakeService) -> FakeService:
    service.moves = False
    return service


def test_all_that_is_asked_arrives(api: httpx.Client, service: FakeService) -> None:
    answer = api.post("/v1/rollouts", json=RESTART)
    assert codec.decode(RolloutView, answer.content) == service.asked["x1"]
    assert service.asked["x1"].request == ASKED


def test_a_drain_with_the_defaults(api: httpx.Client, service: FakeService) -> None:
    api.post("/v1/rollouts", json={"kind": "drain", "node": "node-1"})
    assert service.asked["x1"].request == RolloutRequest(RolloutKind.DRAIN, node="node-1")


def test_a_plan_starts_nothing(api: httpx.Client, service: FakeService) -> None:
    plan = codec.decode(RolloutPlan, api.post("/v1/rollouts/plan", json=RESTART).content)
    assert plan == service.plan_rollout(ASKED)
    assert not service.asked


def test_lists_and_single_ones(api: httpx.Client, service: FakeService) -> None:
    api.post("/v1/rollouts", json=RESTART)
    listed = codec.decode(tuple[RolloutBrief, ...], api.get("/v1/rollouts").content)
    assert listed == service.rollouts()
    assert codec.decode(RolloutView, api.get("/v1/rollouts/x1").content) == service.asked["x1"]
    assert api.get("/v1/rollouts/x9").json()["code"] == "no-such-rollout"


def test_stop_and_resume(api: httpx.Client, service: FakeService) -> None:
    api.post("/v1/rollouts", json=RESTART)
    answer = api.post("/v1/rollouts/x1/resume")
    assert (answer.status_code, answer.json()["code"]) == (409, "not-stopped")
    assert api.post("/v1/rollouts/x1/stop").json()["status"] == "stopping"


def test_a_second_one_is_refused(api: httpx.Client) -> None:
    api.post("/v1/rollouts", json=RESTART)
    answer = api.post("/v1/rollouts", json=RESTART)
    assert (answer.status_code, answer.json()["code"]) == (409, "rollout-in-progress")


def test_undrain(api: httpx.Client, service: FakeService) -> None:
    service.draining.add("node-1")
    assert api.get("/v1/nodes").json()[0]["draining"] is True
    view = codec.decode(NodeView, api.post("/v1/nodes/node-1/undrain").content)
    assert (view.name, view.draining) == ("node-1", False)
    assert api.post("/v1/nodes/nope/undrain").status_code == 404


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_parallel": 0},
        {"max_parallel": 1001},
        {"max_parallel": "many"},
        {"stop_on_lost": -1},
        {"kind": "hope"},
        {"strategy": "hope"},
        {"max_lost": -1},
        {"dry_run": True},
        {"zone": "z" * 101},
    ],
)
@pytest.mark.parametrize("path", ["/v1/rollouts", "/v1/rollouts/plan"])
def test_malformed_requests_are_refused(
    api: httpx.Client, service: FakeService, wrong: dict[str, object], path: str
) -> None:
    answer = api.post(path, json=RESTART | wrong)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert not service.asked


def test_the_kind_must_be_said(api: httpx.Client) -> None:
    assert api.post("/v1/rollouts", json={}).json()["code"] == "malformed"
    assert api.get("/v1/rollouts?limit=0").status_code == 400
