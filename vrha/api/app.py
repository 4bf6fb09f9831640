"""The HTTP API: the Service of the orchestrator as routes under /v1, described by OpenAPI.

Handlers are plain functions, so that each runs in a thread of the pool: the service blocks on
its store, and is safe from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from starlette.exceptions import HTTPException
from starlette.responses import Response

from vrha import __version__
from vrha.api import errors
from vrha.api.limit import BodyLimit
from vrha.codec import decode
from vrha.model.evidence import Measurement
from vrha.model.pauses import Pause, PauseScope, PauseTarget
from vrha.model.rollouts import (
    RolloutBrief,
    RolloutKind,
    RolloutPlan,
    RolloutRequest,
    RolloutView,
)
from vrha.model.runs import RestartOptions, Strategy
from vrha.model.spec import PRIORITIES, Desired, Policy
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
from vrha.ports import Service

MAX_BODY = 8 * 1024 * 1024
"""Largest accepted request body in bytes: a desired state of several ten thousand rules."""

MAX_MEASUREMENT = 1024 * 1024
"""Largest accepted measurement in bytes: some thirty thousand gaps."""

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_INPUT_REF = "#/components/schemas/{model}-Input"


def _body_of(model: str) -> dict[str, Any]:
    schema = {"$ref": _INPUT_REF.format(model=model)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_DESIRED_BODY = _body_of("Desired")

Name = Annotated[str, Path(max_length=100)]


class RestartRequest(BaseModel):
    """How to restart a network with cleanup, or to move a router."""

    model_config = ConfigDict(extra="forbid")

    strategy: Strategy | None = Field(
        None, description="Absent: the best that the nodes are capable of."
    )
    node: str = Field("", max_length=100, description="Where to; empty: placement decides.")
    hold: bool = Field(False, description="Hold packets while the last connections move.")
    max_lost: int | None = Field(
        None, ge=0, description="Turn back when more probes than that were lost."
    )
    dry_run: bool = Field(False, description="Answer with the run that would start; start none.")

    @property
    def options(self) -> RestartOptions:
        return RestartOptions(self.strategy, self.node, self.hold, self.max_lost)


class RouterChange(BaseModel):
    """What is to be changed of a router."""

    model_config = ConfigDict(extra="forbid")

    policy: Policy | None = Field(
        None, description="What makes it serve again when its node is lost."
    )
    priority: int | None = Field(
        None, ge=PRIORITIES[0], le=PRIORITIES[1], description="Of many lost, higher ones first."
    )

    @model_validator(mode="after")
    def _changes_something(self) -> RouterChange:
        if self.policy is None and self.priority is None:
            raise ValueError("give policy or priority")
        return self


class RolloutBody(BaseModel):
    """What to do to many routers, and with which caution."""

    model_config = ConfigDict(extra="forbid")

    kind: RolloutKind
    zone: str = Field("", max_length=100, description="Restart: only routers on nodes there.")
    node: str = Field("", max_length=100, description="Drain: the node to be emptied.")
    max_parallel: int = Field(
        4, ge=1, le=1000, description="Routers at a time, once the first one alone is done."
    )
    stop_on_lost: int | None = Field(
        None, ge=0, description="Go no further once more probes than that were lost in all."
    )
    keep_going: bool = Field(False, description="Go on after a run that was rolled back.")
    strategy: Strategy | None = Field(
        None, description="Absent: the best that the nodes are capable of."
    )
    hold: bool = Field(False, description="Hold packets while the last connections move.")
    max_lost: int | None = Field(
        None, ge=0, description="Turn a router back when more probes than that were lost."
    )

    @property
    def request(self) -> RolloutRequest:
        return RolloutRequest(
            self.kind,
            self.zone,
            self.node,
            self.max_parallel,
            self.stop_on_lost,
            self.keep_going,
            RestartOptions(self.strategy, "", self.hold, self.max_lost),
        )


class PauseBody(BaseModel):
    """What vrha must not move by itself, who says so, and why."""

    model_config = ConfigDict(extra="forbid")

    scope: PauseScope = PauseScope.ALL
    name: str = Field("", max_length=100, description="Of the zone, node or router.")
    by: str = Field("", max_length=100)
    reason: str = Field("", max_length=1000)

    @property
    def target(self) -> PauseTarget:
        return PauseTarget(self.scope, self.name)


class ResumeBody(BaseModel):
    """Which pause is over, and who says so."""

    model_config = ConfigDict(extra="forbid")

    scope: PauseScope = PauseScope.ALL
    name: str = Field("", max_length=100, description="Of the zone, node or router.")
    by: str = Field("", max_length=100)

    @property
    def target(self) -> PauseTarget:
        return PauseTarget(self.scope, self.name)


async def _body(request: Request) -> bytes:
    return await request.body()


# Decoded in the handler's thread: eight megabytes of JSON would hold up the event loop.
Body = Annotated[bytes, Depends(_body)]


def create_app(service: Service) -> FastAPI:
    """The API of `service`. Errors have the form of `vrha.api.errors.Problem`."""
    app = FastAPI(
        title="vrha",
        version=__version__,
        summary="Virtual routers that keep serving while they are restarted or replaced",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.add_middleware(BodyLimit, limit=MAX_BODY)
    errors.install(app)
    problems: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": errors.Problem, "description": "The request cannot be carried out"},
        "5XX": {"model": errors.Problem, "description": "The orchestrator cannot work"},
    }
    for part in (_desired, _views, _runs, _rollouts, _pauses, _operations):
        app.include_router(part(service), responses=problems)
    _describe_bodies(app)
    return app


def _desired(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["desired state"])

    @router.get("/desired")
    def read_desired() -> Desired:
        """The desired state that the orchestrator works towards."""
        return service.desired()

    @router.post("/diff", openapi_extra=_DESIRED_BODY)
    def diff(body: Body) -> tuple[Change, ...]:
        """What an apply of the body would change; changes nothing."""
        return service.diff(decode(Desired, body, closed=True))

    @router.put("/desired", openapi_extra=_DESIRED_BODY)
    def apply(body: Body) -> ApplyResult:
        """Make the body the desired state and start the runs that carry it out."""
        return service.apply(decode(Desired, body, closed=True))

    @router.patch("/routers/{name}")
    def change_router(name: Name, change: RouterChange) -> ApplyResult:
        """Change one router in the desired state, and start the runs that carry it out."""
        return service.set_router(name, change.policy, change.priority)

    return router


def _views(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["views"])

    @router.get("/networks")
    def networks() -> tuple[NetworkView, ...]:
        """All networks and the routers that serve them."""
        return service.networks()

    @router.get("/routers")
    def routers() -> tuple[RouterView, ...]:
        """All routers, and where and by which instance each is served."""
        return service.routers()

    @router.get("/nodes")
    def nodes() -> tuple[NodeView, ...]:
        """All nodes and what they host."""
        return service.nodes()

    @router.get("/nodes/{name}/why")
    def why_node(name: Name) -> WhyView:
        """What is the matter with a node: cause, signals, action, last events."""
        return service.why_node(name)

    @router.get("/routers/{name}/why")
    def why_router(name: Name) -> WhyView:
        """What is the matter with a router, and with the node that serves it."""
        return service.why_router(name)

    return router


def _runs(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["runs"])

    @router.post("/networks/{name}/restart")
    def restart(name: Name, request: RestartRequest) -> RunView:
        """Restart the network with cleanup; refused while its router has an open run."""
        if request.dry_run:
            return service.plan_restart(name, request.options)
        return service.restart_network(name, request.options)

    @router.post("/routers/{name}/move")
    def move(name: Name, request: RestartRequest) -> RunView:
        """Move the router to the node of the request; refused while it has an open run."""
        if request.dry_run:
            return service.plan_move(name, request.options)
        return service.move_router(name, request.options)

    @router.get("/runs")
    def runs(
        open_only: Annotated[bool, Query(description="Only runs that have not ended.")] = False,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> Sequence[RunView]:
        """The newest runs."""
        return service.runs(open_only, limit)

    @router.get("/runs/{run_id}")
    def run(run_id: Name) -> RunView:
        """One run with all its steps."""
        return service.run(run_id)

    @router.post(
        "/runs/{run_id}/measurement",
        openapi_extra=_body_of("Measurement"),
        responses={413: {"model": errors.Problem, "description": "The measurement is too large"}},
    )
    def measured(run_id: Name, body: Body) -> RunView:
        """Keep with the run what was measured meanwhile; at most 1 MiB. The last one counts."""
        if len(body) > MAX_MEASUREMENT:
            what = f"{len(body)} bytes are more than a measurement may have ({MAX_MEASUREMENT})"
            raise HTTPException(413, what)
        return service.keep_measurement(run_id, decode(Measurement, body, closed=True))

    @router.get("/events")
    def events(
        after: Annotated[int, Query(ge=0, description="Only events with a larger id.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> Sequence[Event]:
        """What happened and why, in the order of the ids."""
        return service.events(after, limit)

    return router


def _rollouts(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["rollouts"])

    @router.post("/rollouts")
    def start(body: RolloutBody) -> RolloutView:
        """Restart many routers, or drain a node; refused while another has a router of it."""
        return service.start_rollout(body.request)

    @router.post("/rollouts/plan")
    def plan(body: RolloutBody) -> RolloutPlan:
        """The run that each router would get; starts nothing."""
        return service.plan_rollout(body.request)

    @router.get("/rollouts")
    def rollouts(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> tuple[RolloutBrief, ...]:
        """The newest rollouts."""
        return service.rollouts(limit)

    @router.get("/rollouts/{rollout_id}")
    def rollout(rollout_id: Name) -> RolloutView:
        """One rollout with all its routers."""
        return service.rollout(rollout_id)

    @router.post("/rollouts/{rollout_id}/stop")
    def stop(rollout_id: Name) -> RolloutView:
        """Take up no further router; runs that have begun go on to their end."""
        return service.stop_rollout(rollout_id)

    @router.post("/rollouts/{rollout_id}/resume")
    def resume(rollout_id: Name) -> RolloutView:
        """Take a stopped rollout up again with what is not done."""
        return service.resume_rollout(rollout_id)

    @router.post("/nodes/{name}/undrain")
    def undrain(name: Name) -> NodeView:
        """The node takes instances again."""
        return service.undrain(name)

    return router


def _pauses(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["pauses"])

    @router.get("/pauses")
    def pauses() -> tuple[Pause, ...]:
        """What must not be moved automatically."""
        return service.pauses()

    @router.post("/pauses")
    def pause(body: PauseBody) -> Pause:
        """No automatic moves of that any more; what people ask for goes on."""
        return service.pause(body.target, body.by, body.reason)

    @router.post("/pauses/resume")
    def resume(body: ResumeBody) -> Pause:
        """End that pause; answers with what it was."""
        return service.resume(body.target, body.by)

    return router


def _operations(service: Service) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/v1/status")
    def status() -> Status:
        """Everything at a glance."""
        return service.status()

    @router.get("/v1/health")
    def health() -> Health:
        """Whether the orchestrator can work."""
        return service.health()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {_METRICS_TYPE: {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        """Metrics in the text form of Prometheus."""
        return Response(service.metrics(), media_type=_METRICS_TYPE)

    return router


def _describe_bodies(app: FastAPI) -> None:
    """Add the schema of the bodies that handlers decode by themselves.

    They are the input side: there fields with defaults may be absent.
    """
    plain_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain_openapi()
            for kind in (Desired, Measurement):
                body = TypeAdapter(kind).json_schema(ref_template=_INPUT_REF, mode="validation")
                models = {**body.pop("$defs"), kind.__name__: body}
                schema["components"]["schemas"].update(
                    {f"{name}-Input": model for name, model in models.items()}
                )
        return plain_openapi()

    app.openapi = openapi  # type: ignore[method-assign]
