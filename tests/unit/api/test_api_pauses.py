"""Routes of pauses and of the status, over a real Unix socket."""

from __future__ import annotations

import httpx
import pytest

from tests.unit.fake_service import FakeService
from vrha import codec
from vrha.model.pauses import Pause, PauseScope, PauseTarget
from vrha.model.views import Status

NODE = PauseTarget(PauseScope.NODE, "node-1")


def test_pause_and_resume(api: httpx.Client, service: FakeService) -> None:
    body = {"scope": "node", "name": "node-1", "by": "ann", "reason": "why"}
    paused = codec.decode(Pause, api.post("/v1/pauses", json=body).content)
    assert service.paused == {NODE: paused}
    assert (paused.by, paused.reason) == ("ann", "why")
    listed = codec.decode(tuple[Pause, ...], api.get("/v1/pauses").content)
    assert listed == (paused,)
    answer = api.post("/v1/pauses/resume", json={"scope": "node", "name": "node-1"})
    assert codec.decode(Pause, answer.content) == paused
    assert service.paused == {}


def test_everything_by_default(api: httpx.Client, service: FakeService) -> None:
    api.post("/v1/pauses", json={})
    assert list(service.paused) == [PauseTarget()]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/pauses", {"scope": "rack"}, 400),
        ("/v1/pauses", {"scope": "node", "name": "x" * 101}, 400),
        ("/v1/pauses", {"nodes": "node-1"}, 400),
        ("/v1/pauses", {"scope": "node", "name": "nope"}, 404),
        ("/v1/pauses/resume", {}, 404),
    ],
)
def test_what_cannot_be(
    api: httpx.Client, service: FakeService, path: str, body: dict[str, str], status: int
) -> None:
    assert api.post(path, json=body).status_code == status
    assert service.paused == {}


@pytest.mark.parametrize("watched", [True, False])
def test_the_status(api: httpx.Client, service: FakeService, watched: bool) -> None:
    service.watched = watched
    service.restart_network("web-net")
    service.pause(NODE, "ann", "")
    found = codec.decode(Status, api.get("/v1/status").content)
    assert found == service.status()
    assert (found.brake is None) is not watched
