"""Errors as problem details, RFC 9457: status, type, title, and the error's own text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from percoedge.arguments import shown
from percoedge.errors import (
    BundleMismatchError,
    EngineError,
    ImageError,
    InputError,
    PercoedgeError,
    StreamError,
    UsageError,
)
from percoedge.serving.dispatcher import DeadlinePassed, Draining, QueueFull

__all__ = ["MEDIA_TYPE", "Problem", "handle_errors", "problem_from_error"]

MEDIA_TYPE = "application/problem+json"

# The first class that fits decides, so the narrow ones stand first.
_KINDS: tuple[tuple[type[PercoedgeError], int, str], ...] = (
    (QueueFull, 503, "queue-full"),
    (Draining, 503, "stopping"),
    (DeadlinePassed, 504, "deadline"),
    (BundleMismatchError, 409, "other-bundle"),
    (StreamError, 422, "stream"),
    (ImageError, 422, "image"),
    (UsageError, 400, "usage"),
    (InputError, 422, "input"),
    (EngineError, 500, "engine"),
    (PercoedgeError, 500, "internal"),
)

# How the codec's errors speak to its caller and on the command line, and what that is here.
_HERE = {
    "max_bytes (--bytes)": "bytes",
    "max_bytes": "bytes",
    "cut=True (--cut)": "cut=true",
    "max_pixels (--max-pixels)": "the service's --max-pixels",
    "for a bare stream say so (--bare, bare=True)": "bare streams are not taken here",
}


class Problem(Exception):
    """A request that is refused before it becomes a task: what HTTP itself has a status for."""

    def __init__(
        self, status: int, kind: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.headers = dict(headers or {})

    def response(self, request_id: str) -> JSONResponse:
        """The answer: status, headers and a body of problem details."""
        return JSONResponse(
            self.body(request_id), self.status, headers=self.headers, media_type=MEDIA_TYPE
        )

    def body(self, request_id: str) -> dict[str, Any]:
        """The members of the problem details."""
        return {
            "type": f"urn:percoedge:problem:{self.kind}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "instance": f"urn:percoedge:request:{request_id}",
        }


def problem_from_error(error: PercoedgeError) -> Problem:
    """The problem that stands for an error of the codec or the dispatcher.

    Its detail is the error's own text, in which parameters have their names of the query.
    """
    status, kind = next((status, kind) for cls, status, kind in _KINDS if isinstance(error, cls))
    headers = {}
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(error.retry_after_s)
    elif status == 503:
        headers["Retry-After"] = "1"
    detail = str(error)
    for said, here in _HERE.items():
        detail = detail.replace(said, here)
    return Problem(status, kind, detail, headers)


def handle_errors(app: FastAPI, refused: Callable[[str], None]) -> None:
    """Answer with problem details whatever an operation raises; ``refused``: told their kinds."""

    async def on_problem(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, Problem)
        refused(problem.kind)
        return problem.response(request.state.request_id)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        detail = "; ".join(
            f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}, got {shown(each.get('input'))}"
            for each in error.errors()
        )
        return await on_problem(request, Problem(400, "usage", f"expected other values: {detail}"))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = {404: "not-found", 405: "method"}.get(error.status_code, "http")
        detail = f"{error.detail}: see /openapi.json"
        problem = Problem(error.status_code, kind, detail, error.headers)
        return await on_problem(request, problem)

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
