"""Client of the orchestrator's API over its Unix socket."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

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
from vrha.model.runs import Strategy
from vrha.model.spec import Desired
from vrha.model.views import (
    ApplyResult,
    Change,
    Event,
    Health,
    NetworkView,
    NodeView,
    RouterView,
    RunView,
)

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 30.0
_ERRORS: dict[int, type[VrhaError]] = {
    404: NotFoundError,
    409: RefusedError,
    503: UnreachableError,
    504: DeadlineError,
}


class Client:
    """One connection to the orchestrator; methods are those of `vrha.ports.Service`.

    All of them raise UnreachableError when nothing (sensible) answers, and the error that the
    orchestrator answered with, as the same class and code that it was there.
    """

    def __init__(self, socket: str, answer_seconds: float = ANSWER_SECONDS) -> None:
        # Half of the start-up time of a command is this import.
        import httpx

        self._httpx = httpx
        self._socket = socket
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket),
            base_url="http://orchestrator",
            timeout=httpx.Timeout(answer_seconds, connect=CONNECT_SECONDS),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def desired(self) -> Desired:
        return self._get(Desired, "/v1/desired")

    def diff(self, desired: Desired) -> tuple[Change, ...]:
        answer = self._send("POST", "/v1/diff", content=encode(desired))
        return self._read(tuple[Change, ...], answer)

    def apply(self, desired: Desired) -> ApplyResult:
        return self._read(ApplyResult, self._send("PUT", "/v1/desired", content=encode(desired)))

    def plan_restart(self, network: str, strategy: Strategy | None) -> RunView:
        return self._restart(network, strategy, dry_run=True)

    def restart_network(self, network: str, strategy: Strategy | None) -> RunView:
        return self._restart(network, strategy, dry_run=False)

    def networks(self) -> tuple[NetworkView, ...]:
        return self._get(tuple[NetworkView, ...], "/v1/networks")

    def routers(self) -> tuple[RouterView, ...]:
        return self._get(tuple[RouterView, ...], "/v1/routers")

    def nodes(self) -> tuple[NodeView, ...]:
        return self._get(tuple[NodeView, ...], "/v1/nodes")

    def run(self, run_id: str) -> RunView:
        return self._get(RunView, f"/v1/runs/{quote(run_id, safe='')}")

    def runs(self, open_only: bool = False, limit: int = 50) -> tuple[RunView, ...]:
        params = {"open_only": open_only, "limit": limit}
        return self._get(tuple[RunView, ...], "/v1/runs", params)

    def events(self, after: int = 0, limit: int = 200) -> tuple[Event, ...]:
        return self._get(tuple[Event, ...], "/v1/events", {"after": after, "limit": limit})

    def health(self) -> Health:
        return self._get(Health, "/v1/health")

    def _restart(self, network: str, strategy: Strategy | None, *, dry_run: bool) -> RunView:
        path = f"/v1/networks/{quote(network, safe='')}/restart"
        return self._read(
            RunView, self._send("POST", path, json={"strategy": strategy, "dry_run": dry_run})
        )

    def _get(self, kind: type[T], path: str, params: dict[str, Any] | None = None) -> T:
        return self._read(kind, self._send("GET", path, params=params))

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **request)
        except self._httpx.ReadTimeout as error:
            if method == "GET":
                raise self._unreachable("orchestrator-silent", "does not answer") from error
            raise DeadlineError(
                "no-answer",
                "the orchestrator did not answer in time; it may still do what was asked",
                "See `vrha run list` before you try again.",
            ) from error
        except self._httpx.HTTPError as error:
            raise self._unreachable("orchestrator-unreachable", _reason(error)) from error

    def _unreachable(self, code: str, what: str) -> UnreachableError:
        return UnreachableError(
            code,
            f"orchestrator at {self._socket}: {what}",
            "Is vrha-orchestrator running, and may this user open its socket? See `vrha doctor`.",
        )

    def _read(self, kind: type[T], answer: httpx.Response) -> T:
        if answer.is_success:
            try:
                return decode(kind, answer.content)
            except InputError as error:
                what = "answered what this version of vrha cannot read"
                raise self._unreachable("not-an-orchestrator", what) from error
        try:
            body = answer.json()
            code, message, hint = str(body["code"]), str(body["message"]), str(body["hint"])
        except (ValueError, KeyError, TypeError) as error:
            what = f"answered with status {answer.status_code} and no reason"
            raise self._unreachable("not-an-orchestrator", what) from error
        if code == "spec-invalid":
            raise SpecError(message.splitlines())
        status = answer.status_code
        kind_of_error = _ERRORS.get(status, InputError if status < 500 else VrhaError)
        raise kind_of_error(code, message, hint)


def _reason(error: BaseException) -> str:
    """What the operating system said, where one of the causes of `error` came from it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
