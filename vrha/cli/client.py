"""Client of the orchestrator's API over its Unix socket."""

from __future__ import annotations

import errno
import json
import socket
from contextlib import closing
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from typing import TypeVar
from urllib.parse import quote, urlencode

from vrha.codec import decode, encode
from vrha.errors import (
    DeadlineError,
    InputError,
    NotFoundError,
    RefusedError,
    SpecError,
    UnreachableError,
    VrhaError,
)
from vrha.model.evidence import Measurement
from vrha.model.pauses import Pause, PauseTarget
from vrha.model.rollouts import RolloutBrief, RolloutPlan, RolloutRequest, RolloutView
from vrha.model.runs import AS_CONFIGURED, RestartOptions
from vrha.model.spec import Desired, Policy
from vrha.model.views import (
    ApplyResult,
    Change,
    Event,
    Health,
    NetworkView,
    NodeView,
    RouterView,
    RunView,
    Status,
    WhyView,
)

T = TypeVar("T")

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 30.0
_HINTS = {
    errno.ENOENT: "Start it (`systemctl start vrha-orchestrator`), or name the socket of one that"
    " runs by --socket or VRHA_SOCKET.",
    errno.ECONNREFUSED: "It has ended: start it (`systemctl start vrha-orchestrator`), or name"
    " the socket of one that runs by --socket or VRHA_SOCKET.",
    errno.EACCES: "This user may not open the socket: run it by sudo.",
}
"""What to do when the socket cannot be connected, by errno."""
_ERRORS: dict[int, type[VrhaError]] = {
    404: NotFoundError,
    409: RefusedError,
    503: UnreachableError,
    504: DeadlineError,
}


class _Connection(HTTPConnection):
    """HTTP over a Unix socket; one request each, so that no idle connection can have died."""

    def __init__(self, path: str, answer_seconds: float) -> None:
        super().__init__("orchestrator", timeout=answer_seconds)
        self._path = path

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(self._path)
            sock.settimeout(self.timeout)
        except OSError:
            sock.close()
            raise
        self.sock = sock


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class Client:
    """The orchestrator behind a Unix socket; methods are those of `vrha.ports.Service`.

    All of them raise UnreachableError when nothing (sensible) answers, and the error that the
    orchestrator answered with, as the same class and code that it was there. Safe from any
    thread; nothing stays open between calls.
    """

    def __init__(self, socket_path: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._socket_path = socket_path
        self._answer_seconds = answer_seconds

    def desired(self) -> Desired:
        return self._get(Desired, "/v1/desired")

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        return self._read(tuple[Change, ...], self._send("POST", "/v1/diff", encode(desired)))

    def apply(self, desired: Desired) -> ApplyResult:
        return self._read(ApplyResult, self._send("PUT", "/v1/desired", encode(desired)))

    def set_router(
        self, router: str, policy: Policy | None = None, priority: int | None = None
    ) -> ApplyResult:
        path = f"/v1/routers/{quote(router, safe='')}"
        body = json.dumps({"policy": policy, "priority": priority}).encode()
        return self._read(ApplyResult, self._send("PATCH", path, body))

    def plan_restart(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        return self._start("networks", network, "restart", options, dry_run=True)

    def restart_network(self, network: str, options: RestartOptions = AS_CONFIGURED) -> RunView:
        return self._start("networks", network, "restart", options, dry_run=False)

    def plan_move(self, router: str, options: RestartOptions) -> RunView:
        return self._start("routers", router, "move", options, dry_run=True)

    def move_router(self, router: str, options: RestartOptions) -> RunView:
        return self._start("routers", router, "move", options, dry_run=False)

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlan:
        answer = self._send("POST", "/v1/rollouts/plan", _rollout_body(request))
        return self._read(RolloutPlan, answer)

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        return self._read(RolloutView, self._send("POST", "/v1/rollouts", _rollout_body(request)))

    def rollouts(self, limit: int = 50) -> tuple[RolloutBrief, ...]:
        return self._get(tuple[RolloutBrief, ...], "/v1/rollouts", limit=limit)

    def rollout(self, rollout_id: str) -> RolloutView:
        return self._get(RolloutView, f"/v1/rollouts/{quote(rollout_id, safe='')}")

    def stop_rollout(self, rollout_id: str) -> RolloutView:
        path = f"/v1/rollouts/{quote(rollout_id, safe='')}/stop"
        return self._read(RolloutView, self._send("POST", path))

    def resume_rollout(self, rollout_id: str) -> RolloutView:
        path = f"/v1/rollouts/{quote(rollout_id, safe='')}/resume"
        return self._read(RolloutView, self._send("POST", path))

    def undrain(self, node: str) -> NodeView:
        path = f"/v1/nodes/{quote(node, safe='')}/undrain"
        return self._read(NodeView, self._send("POST", path))

    def pauses(self) -> tuple[Pause, ...]:
        return self._get(tuple[Pause, ...], "/v1/pauses")

    def pause(self, target: PauseTarget, by: str, reason: str) -> Pause:
        body = json.dumps({**asdict(target), "by": by, "reason": reason}).encode()
        return self._read(Pause, self._send("POST", "/v1/pauses", body))

    def resume(self, target: PauseTarget, by: str) -> Pause:
        body = json.dumps({**asdict(target), "by": by}).encode()
        return self._read(Pause, self._send("POST", "/v1/pauses/resume", body))

    def status(self) -> Status:
        return self._get(Status, "/v1/status")

    def networks(self) -> tuple[NetworkView, ...]:
        return self._get(tuple[NetworkView, ...], "/v1/networks")

    def routers(self) -> tuple[RouterView, ...]:
        return self._get(tuple[RouterView, ...], "/v1/routers")

    def nodes(self) -> tuple[NodeView, ...]:
        return self._get(tuple[NodeView, ...], "/v1/nodes")

    def why_node(self, name: str) -> WhyView:
        return self._get(WhyView, f"/v1/nodes/{quote(name, safe='')}/why")

    def why_router(self, name: str) -> WhyView:
        return self._get(WhyView, f"/v1/routers/{quote(name, safe='')}/why")

    def run(self, run_id: str) -> RunView:
        return self._get(RunView, f"/v1/runs/{quote(run_id, safe='')}")

    def keep_measurement(self, run_id: str, measurement: Measurement) -> RunView:
        path = f"/v1/runs/{quote(run_id, safe='')}/measurement"
        return self._read(RunView, self._send("POST", path, encode(measurement)))

    def runs(self, open_only: bool = False, limit: int = 50) -> tuple[RunView, ...]:
        return self._get(tuple[RunView, ...], "/v1/runs", open_only=open_only, limit=limit)

    def events(self, after: int = 0, limit: int = 200) -> tuple[Event, ...]:
        return self._get(tuple[Event, ...], "/v1/events", after=after, limit=limit)

    def health(self) -> Health:
        return self._get(Health, "/v1/health")

    def _start(
        self, nouns: str, name: str, verb: str, options: RestartOptions, *, dry_run: bool
    ) -> RunView:
        path = f"/v1/{nouns}/{quote(name, safe='')}/{verb}"
        body = json.dumps({**asdict(options), "dry_run": dry_run}).encode()
        return self._read(RunView, self._send("POST", path, body))

    def _get(self, kind: type[T], path: str, **query: int) -> T:
        return self._read(kind, self._send("GET", f"{path}?{urlencode(query)}"))

    def _send(self, method: str, path: str, body: bytes | None = None) -> _Answer:
        connection = _Connection(self._socket_path, self._answer_seconds)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        with closing(connection):
            try:
                connection.connect()
            except OSError as error:
                what = error.strerror or "does not answer"
                raise self._unreachable("orchestrator-unreachable", what, error.errno) from error
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return _Answer(answer.status, answer.read())
            except TimeoutError as error:
                if method == "GET":
                    raise self._unreachable("orchestrator-silent", "does not answer") from error
                raise DeadlineError(
                    "no-answer",
                    "the orchestrator did not answer in time; it may still do what was asked",
                    "See `vrha run list` before you try again.",
                ) from error
            except (OSError, HTTPException) as error:
                what = "the connection broke before the answer"
                raise self._unreachable("orchestrator-unreachable", what) from error

    def _unreachable(self, code: str, what: str, number: int | None = None) -> UnreachableError:
        hint = _HINTS.get(number or 0, "Its log says why: `journalctl -u vrha-orchestrator`.")
        return UnreachableError(code, f"orchestrator at {self._socket_path}: {what}", hint)

    def _read(self, kind: type[T], answer: _Answer) -> T:
        if answer.status < 300:
            try:
                return decode(kind, answer.body)
            except InputError as error:
                what = "answered what this version of vrha cannot read"
                raise self._unreachable("not-an-orchestrator", what) from error
        try:
            body = json.loads(answer.body)
            code, message, hint = str(body["code"]), str(body["message"]), str(body["hint"])
        except (ValueError, KeyError, TypeError) as error:
            what = f"answered with status {answer.status} and no reason"
            raise self._unreachable("not-an-orchestrator", what) from error
        if code == "spec-invalid":
            raise SpecError(message.splitlines())
        if code == "not-leader":
            raise RefusedError(code, message, hint)
        kind_of_error = _ERRORS.get(answer.status, InputError if answer.status < 500 else VrhaError)
        raise kind_of_error(code, message, hint)


def _rollout_body(request: RolloutRequest) -> bytes:
    body = asdict(request)
    options = body.pop("options")
    del options["node"]  # placement decides for each router
    del body["cause"], body["returns"]  # nobody else asks by itself
    return json.dumps(body | options).encode()
