"""The service as one ASGI application: ``create_app(settings)``.

It checks requests and waits for answers; all computing is done in lanes, to which the dispatcher
hands tasks.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from fastapi.staticfiles import StaticFiles

from percoedge import __version__
from percoedge.bitstream.container import MAX_STREAM_BYTES, unpack
from percoedge.errors import PercoedgeError
from percoedge.runtime.info import describe
from percoedge.serving import documents
from percoedge.serving.access import AccessLog
from percoedge.serving.problems import Problem, handle_errors, problem_from_error
from percoedge.serving.requests import (
    ClientGone,
    check_query,
    chosen_format,
    read_body,
    while_connected,
)
from percoedge.serving.service import Service
from percoedge.serving.settings import ServiceSettings
from percoedge.serving.work import ClassicalTask, DecodeTask, EncodeTask, Outcome

__all__ = ["create_app"]

_PAGE = Path(__file__).parent / "page"
_NAMES = ("bundle", "bytes", "height", "notes", "width")
_STREAM_TYPE = "image/x-percoedge"

log = logging.getLogger("percoedge.serving")

Seed = Annotated[int | None, Query(ge=0, lt=1 << 32, description="of the decoder's noise")]
Cut = Annotated[bool, Query(description="decode what is left of a stream that was cut short")]


@dataclass(frozen=True)
class _Choices:
    """How a stream is to be decoded: parameters of two operations."""

    steps: Annotated[int | None, Query(ge=1, le=255, description="of the flow")] = None
    seed: Seed = None
    guidance: Annotated[float | None, Query(ge=0, le=16, description="1 is none")] = None
    cut: Cut = False
    format: Annotated[str | None, Query(description="png, jpeg, webp; else Accept decides")] = None

    def task(self, data: bytes, kind: str, passes: int | None = None) -> DecodeTask:
        """The task of decoding a stream to an image of this kind."""
        return DecodeTask(data, kind, self.steps, self.guidance, self.seed, self.cut, passes)


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """The application for these settings; its lifespan starts and drains the lanes.

    Raises BundleError when a bundle cannot be opened, BackendError when no backend works here.
    """
    service = Service(settings or ServiceSettings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start())  # meanwhile it is live, not ready
        try:
            yield
        finally:
            await service.stop()
            starting.cancel()

    app = FastAPI(
        title="percoedge",
        version=__version__,
        summary="A generative image codec: a photo in about a kilobyte.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    handle_errors(app, lambda kind: service.metrics.rejected.labels(kind).inc())
    _add_operations(app, service)
    _add_health(app, service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["server-timing", "x-request-id", *(f"x-percoedge-{n}" for n in _NAMES)],
        )
    app.add_middleware(AccessLog)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    return app


def _add_operations(app: FastAPI, service: Service) -> None:
    settings, metrics = service.settings, service.metrics

    async def answered(
        operation: str, request: Request, answer: Callable[[], Awaitable[Response]]
    ) -> Response:
        """Run one operation: who may, how long it took, what came of it."""
        began = time.perf_counter()
        status = 500
        try:
            _authorize(request, settings.token)
            check_query(request)
            response = await answer()
            status = response.status_code
            return response
        except PercoedgeError as error:
            problem = problem_from_error(error)
            status = problem.status
            raise problem from error
        except Problem as problem:
            status = problem.status
            raise
        except ClientGone:
            status = 499
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            log.exception("bug", extra={"request_id": request.state.request_id})
            raise Problem(
                500,
                "internal",
                "unexpected error: this is a bug; its traceback is in the log under the id of this "
                "request",
            ) from error
        finally:
            metrics.requests.labels(operation, str(status)).inc()
            metrics.latency.labels(operation).observe(time.perf_counter() - began)

    async def received(
        operation: str, request: Request, limit_bytes: int, kinds: tuple[str, ...]
    ) -> bytes:
        with service.place():
            body = await read_body(request, limit_bytes, settings.body_timeout_s, kinds)
        metrics.bytes_in.labels(operation).inc(len(body))
        return body

    def sent(operation: str, outcome: Outcome, media_type: str) -> Response:
        metrics.bytes_out.labels(operation).inc(len(outcome.body))
        return Response(outcome.body, media_type=media_type, headers=_headers(outcome))

    @app.post("/v1/decode", **documents.DECODE)
    async def decode(
        request: Request,
        choices: Annotated[_Choices, Depends()],
    ) -> Response:
        """Decode a stream to an image."""

        async def answer() -> Response:
            kind = chosen_format(request, choices.format)
            data = await received("decode", request, MAX_STREAM_BYTES, (_STREAM_TYPE,))
            service.opened(data, choices.cut)
            outcome = await while_connected(
                request, service.run("decode", choices.task(data, kind))
            )
            return sent("decode", outcome, f"image/{kind.lower()}")

        return await answered("decode", request, answer)

    @app.post("/v1/encode", **documents.ENCODE)
    async def encode(
        request: Request,
        bundle: Annotated[str | None, Query(description="a name of /v1/bundles")] = None,
        caption: Annotated[str, Query(max_length=1024)] = "",
        schedule: Annotated[str | None, Query(description="order of the tokens")] = None,
        passes: Annotated[int | None, Query(ge=1, le=255, description="passes to send")] = None,
        max_bytes: Annotated[
            int | None, Query(alias="bytes", ge=1, description="in place of passes: at most")
        ] = None,
        seed: Seed = None,
    ) -> Response:
        """Encode an image to a stream."""

        async def answer() -> Response:
            data = await received("encode", request, settings.max_body_bytes, ("image/",))
            task = EncodeTask(data, bundle, caption, schedule, passes, max_bytes, seed)
            outcome = await while_connected(request, service.run("encode", task))
            return sent("encode", outcome, _STREAM_TYPE)

        return await answered("encode", request, answer)

    @app.post("/v1/info", **documents.INFO)
    async def info(request: Request, cut: Cut = False) -> Response:
        """Say what a stream holds, and where each byte goes."""

        async def answer() -> Response:
            data = await received("info", request, MAX_STREAM_BYTES, (_STREAM_TYPE,))
            bundle = service.bundle_of(unpack(data, cut=cut))
            return JSONResponse(describe(data, bundle, cut=cut))

        return await answered("info", request, answer)

    @app.post("/v1/progressive", **documents.PROGRESSIVE)
    async def progressive(
        request: Request,
        choices: Annotated[_Choices, Depends()],
    ) -> Response:
        """Decode a stream to an image for each of its passes, as server-sent events."""

        async def answer() -> Response:
            kind = chosen_format(request, choices.format)
            data = await received("progressive", request, MAX_STREAM_BYTES, (_STREAM_TYPE,))
            total = service.passes_of(service.opened(data, choices.cut))

            def task(number: int) -> DecodeTask:
                passes = number if number < total else None
                return choices.task(data, kind, passes)

            first = await while_connected(request, service.run("progressive", task(1)))

            async def events() -> AsyncIterator[bytes]:
                outcome = first
                for number in range(1, total + 1):
                    if number > 1:
                        try:
                            outcome = await service.run("progressive", task(number))
                        except PercoedgeError as error:
                            yield _event("problem", problem_from_error(error).body(""))
                            return
                    metrics.bytes_out.labels("progressive").inc(len(outcome.body))
                    image = base64.b64encode(outcome.body).decode()
                    address = f"data:image/{kind.lower()};base64,{image}"
                    yield _event("image", {"pass": number, "of": total, "image": address})

            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(events(), media_type="text/event-stream", headers=headers)

        return await answered("progressive", request, answer)

    @app.post("/v1/classical", **documents.CLASSICAL)
    async def classical(
        request: Request,
        codec: Annotated[Literal["jpeg", "webp", "avif"], Query()],
        budget_bytes: Annotated[int, Query(alias="bytes", ge=1, description="at most")],
    ) -> Response:
        """Show what a classical codec makes of an image at a number of bytes, for comparison."""

        async def answer() -> Response:
            data = await received("classical", request, settings.max_body_bytes, ("image/",))
            task = ClassicalTask(data, codec.upper(), budget_bytes)
            outcome = await while_connected(request, service.run("classical", task))
            return sent("classical", outcome, "image/png")

        return await answered("classical", request, answer)

    @app.get("/v1/bundles", **documents.BUNDLES)
    async def bundles(request: Request) -> Response:
        """The bundles that this service encodes and decodes with."""

        async def answer() -> Response:
            return JSONResponse({"bundles": service.described_bundles()})

        return await answered("bundles", request, answer)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page for people."""
        return FileResponse(_PAGE / "index.html")

    @app.get("/health/live", **documents.HEALTH)
    async def live() -> Response:
        """Whether the process answers."""
        return PlainTextResponse("live\n")

    @app.get("/health/ready", **documents.HEALTH)
    async def ready() -> Response:
        """Whether every lane has warmed up and takes tasks."""
        if service.is_ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", 503, {"Retry-After": "1"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


def _authorize(request: Request, token: str | None) -> None:
    """Raises Problem 401 unless the request carries the token, where there is one."""
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), token.encode()):
        raise Problem(
            401,
            "unauthorized",
            "expected the header 'Authorization: Bearer TOKEN' with this service's token",
            {"WWW-Authenticate": "Bearer"},
        )


def _headers(outcome: Outcome) -> dict[str, str]:
    """Size, bundle, notes and times by stage, as headers."""
    timing = ", ".join(
        f"{stage.replace(' ', '-')};dur={time_ms:.2f}"
        for stage, time_ms in outcome.timings_ms.items()
    )
    headers = {
        "X-Percoedge-Width": str(outcome.width),
        "X-Percoedge-Height": str(outcome.height),
        "Server-Timing": timing,
    }
    if outcome.bundle is not None:
        headers["X-Percoedge-Bundle"] = outcome.bundle
    if outcome.classical_bytes is not None:
        headers["X-Percoedge-Bytes"] = str(outcome.classical_bytes)
    if outcome.notes:
        headers["X-Percoedge-Notes"] = json.dumps(outcome.notes)
    return headers


def _event(name: str, data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
