"""Errors of the API: one JSON form for all of them, and the status that goes with each class."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from vrha.errors import (
    DeadlineError,
    InputError,
    NotFoundError,
    NotLeaderError,
    RefusedError,
    UnreachableError,
    VrhaError,
)

STATUSES: tuple[tuple[type[VrhaError], int], ...] = (
    (NotLeaderError, 503),
    (NotFoundError, 404),
    (InputError, 400),
    (RefusedError, 409),
    (UnreachableError, 503),
    (DeadlineError, 504),
)
"""First match wins; an error of none of these classes is a 500."""

_CODES = {404: "no-such-route", 405: "no-such-route", 413: "too-large"}


@dataclass(frozen=True, slots=True)
class Problem:
    """Body of every answer that is not a success."""

    code: str
    """Stable word, for programs."""
    message: str
    hint: str
    """What to do next; may be empty."""


def status_of(error: VrhaError) -> int:
    """HTTP status for `error`."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def problem(status: int, code: str, message: str, hint: str = "") -> Response:
    """The answer that says what went wrong."""
    return JSONResponse({"code": code, "message": message, "hint": hint}, status_code=status)


def install(app: FastAPI) -> None:
    """Give every failure of `app` the form of Problem."""

    @app.exception_handler(VrhaError)
    def known(request: Request, error: VrhaError) -> Response:
        return problem(status_of(error), error.code, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: RequestValidationError) -> Response:
        text = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        return problem(400, "malformed", f"does not fit the schema: {text[:500]}")

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "malformed")
        where = f"{request.method} {request.url.path}"
        return problem(error.status_code, code, f"{where}: {error.detail}")

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> Response:
        # The server logs the traceback; the client learns no more than the type.
        answer = problem(
            500,
            "internal",
            f"unexpected {type(error).__name__}",
            "This is a bug of vrha; the log of the orchestrator has the traceback.",
        )
        # The server drops the connection; a client that is not told would use it once more.
        answer.headers["connection"] = "close"
        return answer
