"""Routes, errors and description of the API, over a real Unix socket."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import httpx
import pytest

from tests.unit.fake_service import FakeService
from vrha import codec, errors
from vrha.api.app import MAX_BODY, MAX_MEASUREMENT, create_app
from vrha.model.evidence import Measured, Measurement
from vrha.model.spec import Desired, Network, Policy, Router, Subnet
from vrha.model.views import NetworkView, RunView

DESIRED = Desired(
    networks=(
        Network(
            "web-net",
            "br-web",
            (Subnet(ip_network("2001:db8:1::/64"), ip_address("2001:db8:1::1")),),
        ),
    ),
    routers=(Router("web", ("web-net",), labels={"rack": "7"}),),
)


def test_desired_state_makes_the_round_trip(api: httpx.Client, service: FakeService) -> None:
    answer = api.put("/v1/desired", content=codec.encode(DESIRED))
    assert answer.status_code == 200
    assert answer.json()["changes"] == [
        {"kind": "add", "noun": "network", "name": "web-net", "fields": []}
    ]
    assert service.applied == [DESIRED]
    assert codec.decode(Desired, api.get("/v1/desired").content) == DESIRED


def test_diff_changes_nothing(api: httpx.Client, service: FakeService) -> None:
    answer = api.post("/v1/diff", content=codec.encode(DESIRED))
    assert [change["name"] for change in answer.json()] == ["web-net"]
    assert service.state == Desired()
    assert not service.applied


@pytest.mark.parametrize(
    ("path", "kind"),
    [("networks", tuple[NetworkView, ...]), ("runs", tuple[RunView, ...])],
)
def test_lists_are_views(
    api: httpx.Client, service: FakeService, path: str, kind: type[object]
) -> None:
    service.restart_network("web-net")
    assert codec.decode(kind, api.get(f"/v1/{path}").content) == tuple(getattr(service, path)())


def test_restart_starts_the_asked_strategy(api: httpx.Client, service: FakeService) -> None:
    answer = api.post("/v1/networks/web-net/restart", json={"strategy": "serial"})
    assert codec.decode(RunView, answer.content) == service.open["r1"]
    assert service.started == [("web-net", "serial")]


def test_dry_run_starts_nothing(api: httpx.Client, service: FakeService) -> None:
    answer = api.post("/v1/networks/web-net/restart", json={"dry_run": True})
    assert answer.json()["point_of_no_return"] == 3
    assert not service.started


def test_events_go_on_after_an_id(api: httpx.Client) -> None:
    assert [event["id"] for event in api.get("/v1/events?after=1").json()] == [2]


def test_handlers_run_in_threads_of_their_own(api: httpx.Client, service: FakeService) -> None:
    api.get("/v1/networks")
    assert all(name.startswith("AnyIO worker") for name in service.threads)


def test_metrics_are_the_text_form(api: httpx.Client) -> None:
    answer = api.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"vrha_runs 1.0" in answer.content


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InputError("bad", "wrong", "do"), 400),
        (errors.SpecError(["a:1: b"]), 400),
        (errors.NotFoundError("no-such-run", "none", "do"), 404),
        (errors.RefusedError("run-in-progress", "open run r7", "do"), 409),
        (errors.NotLeaderError("o2", 7), 503),
        (errors.UnreachableError("store-gone", "no store", "do"), 503),
        (errors.DeadlineError("late", "late", "do"), 504),
        (errors.PreconditionError("no-root", "no root", "do"), 500),
        (errors.StepError("failed", "failed", "do"), 500),
    ],
)
def test_errors_keep_code_message_and_hint(
    api: httpx.Client, service: FakeService, error: errors.VrhaError, status: int
) -> None:
    service.error = error
    answer = api.get("/v1/health")
    assert answer.status_code == status
    assert answer.json() == {"code": error.code, "message": error.message, "hint": error.hint}


def test_a_bug_is_named_but_not_spread_out(api: httpx.Client, service: FakeService) -> None:
    service.error = KeyError("secret")
    answer = api.get("/v1/health")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/desired", b"{"),
        ("PUT", "/v1/desired", b'{"network": []}'),
        ("PUT", "/v1/desired", codec.encode(DESIRED).replace(b'"bridge"', b'"brigde":1,"bridge"')),
        ("POST", "/v1/diff", b'{"networks": [{"name": "a"}]}'),
        ("POST", "/v1/networks/web-net/restart", b'{"dry-run": true}'),
        ("POST", "/v1/networks/web-net/restart", b'{"strategy": "hope"}'),
        ("POST", "/v1/networks/web-net/restart", b"\xff"),
        ("GET", "/v1/runs?limit=0", b""),
        ("GET", "/v1/events?after=-1", b""),
    ],
)
def test_malformed_requests_are_refused(
    api: httpx.Client, service: FakeService, method: str, path: str, body: bytes
) -> None:
    answer = api.request(method, path, content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert set(answer.json()) == {"code", "message", "hint"}
    assert not service.applied
    assert not service.started


@pytest.mark.parametrize("path", ["/v1/desired", "/v1/networks/web-net/restart"])
@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_are_refused(
    api: httpx.Client, service: FakeService, path: str, chunked: bool
) -> None:
    body = b" " * (MAX_BODY + 1)
    method = "PUT" if path.endswith("desired") else "POST"
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
    answer = api.request(method, path, content=pieces if chunked else body)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert not service.applied


def test_a_body_at_the_limit_is_read(api: httpx.Client, service: FakeService) -> None:
    body = codec.encode(DESIRED)
    assert api.put("/v1/desired", content=body.ljust(MAX_BODY)).status_code == 200


MEASUREMENT = Measurement((Measured("egress_icmp", 1e9, 1.0, 10, 2, gaps_ms=((1.0, 2.0),)),))


def test_a_measurement_is_kept_with_its_run(api: httpx.Client, service: FakeService) -> None:
    api.post("/v1/networks/web-net/restart", json={})
    answer = api.post("/v1/runs/r1/measurement", content=codec.encode(MEASUREMENT))
    assert answer.status_code == 200
    assert codec.decode(RunView, api.get("/v1/runs/r1").content).measurement == MEASUREMENT


@pytest.mark.parametrize(
    ("run", "body", "status", "code"),
    [
        ("r1", codec.encode(MEASUREMENT).ljust(MAX_MEASUREMENT), 200, None),
        ("r1", codec.encode(MEASUREMENT).ljust(MAX_MEASUREMENT + 1), 413, "too-large"),
        ("r1", codec.encode(MEASUREMENT).replace(b"2.0", b"NaN"), 400, "malformed"),
        ("r1", codec.encode(MEASUREMENT).replace(b"2.0", b"1e999"), 400, "malformed"),
        ("r1", b'{"streams": [], "more": 1}', 400, "malformed"),
        ("none", codec.encode(MEASUREMENT), 404, "no-such-run"),
    ],
)
def test_what_is_no_measurement_of_a_run_is_refused(
    api: httpx.Client, service: FakeService, run: str, body: bytes, status: int, code: str | None
) -> None:
    api.post("/v1/networks/web-net/restart", json={})
    answer = api.post(f"/v1/runs/{run}/measurement", content=body)
    assert (answer.status_code, answer.json().get("code")) == (status, code)
    assert (service.open["r1"].measurement is not None) == (status == 200)


@pytest.mark.parametrize(("path", "status"), [("/v1/nothing", 404), ("/v1/runs", 405)])
def test_unknown_routes_answer_in_the_same_form(api: httpx.Client, path: str, status: int) -> None:
    answer = api.delete(path)
    assert (answer.status_code, answer.json()["code"]) == (status, "no-such-route")


def test_the_description_is_complete() -> None:
    api = create_app(FakeService()).openapi()
    schemas = api["components"]["schemas"]
    references = _references(api)
    assert {name.rpartition("/")[2] for name in references} <= set(schemas)
    operations = [op for path in api["paths"].values() for op in path.values()]
    assert all({"4XX", "5XX"} <= set(op["responses"]) for op in operations)
    assert all("422" not in op["responses"] for op in operations)
    assert all(op["description"] for op in operations)
    put = api["paths"]["/v1/desired"]["put"]
    assert put["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Desired-Input"
    }
    assert "required" not in schemas["Desired-Input"]
    assert set(schemas["RunView"]["required"]) == set(RunView.__slots__) - {"measurement"}


def _references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(_references(part) for part in value.values()))
    if isinstance(value, list):
        return set().union(*(_references(part) for part in value))
    return set()


def test_the_policy_of_a_router_is_changed_alone(api: httpx.Client, service: FakeService) -> None:
    answer = api.patch("/v1/routers/web", json={"policy": "standby"})
    assert answer.status_code == 200
    assert answer.json()["changes"][0]["fields"] == ["policy"]
    assert service.set == {"web": {"policy": Policy.STANDBY}}
    assert api.patch("/v1/routers/web", json={"priority": -5}).status_code == 200
    assert service.set == {"web": {"priority": -5}}
    for body in (
        {"policy": "pray"},
        {},
        {"policy": None},
        {"priority": 1001},
        {"policy": "standby", "name": "web"},
    ):
        assert api.patch("/v1/routers/web", json=body).status_code == 400
