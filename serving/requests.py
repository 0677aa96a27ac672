"""What a request holds, read within limits: body, format, and whether its client is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from percoedge.arguments import shown
from percoedge.serving.problems import Problem

__all__ = ["ClientGone", "check_query", "chosen_format", "read_body", "while_connected"]

_Result = TypeVar("_Result")

_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


class ClientGone(Exception):
    """The client closed the connection before it had its answer."""


def check_query(request: Request) -> None:
    """Raise Problem 400 for parameters that /openapi.json does not have, or given twice."""
    route = request.scope["route"].path
    operation = request.app.openapi()["paths"][route][request.method.lower()]
    known = [parameter["name"] for parameter in operation.get("parameters", ())]
    given = Counter(name for name, _ in request.query_params.multi_items())
    wrong = [name for name, count in given.items() if name not in known or count > 1]
    if wrong:
        raise Problem(
            400,
            "usage",
            f"expected no parameters but {', '.join(known) or 'none'}, each once, got "
            f"{', '.join(map(shown, wrong))}; see /openapi.json",
        )


async def read_body(
    request: Request, limit_bytes: int, timeout_s: float, accepted: tuple[str, ...]
) -> bytes:
    """The body of a request, of at most ``limit_bytes``.

    ``accepted``: media types, or their beginnings ("image/"), besides application/octet-stream.
    Raises Problem (408, 411, 413, 415) before more than the limit has been kept, and ClientGone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != "application/octet-stream" and not kind.startswith(accepted):
        raise Problem(
            415,
            "media-type",
            f"expected a body of type {', '.join(accepted)} or application/octet-stream, got "
            f"{kind!r}; send the file itself as the body, and its type as Content-Type",
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(
            415, "media-type", "expected a body without Content-Encoding; send the file as it is"
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise _too_large(limit_bytes)

    async def read() -> bytes:
        parts: list[bytes] = []
        size_bytes = 0
        async for part in request.stream():
            size_bytes += len(part)
            if size_bytes > limit_bytes:
                raise _too_large(limit_bytes)
            parts.append(part)
        return b"".join(parts)

    try:
        body = await asyncio.wait_for(read(), timeout_s)
    except asyncio.TimeoutError:
        raise Problem(
            408,
            "slow-body",
            f"expected the whole body within {timeout_s:g} s; send it faster, or make it smaller",
            {"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    if not body:
        raise Problem(422, "empty-body", "expected a file as the body, got nothing; send one")
    return body


def _too_large(limit_bytes: int) -> Problem:
    # The connection stays, and what is still sent is dropped as it comes: a client that sends all
    # before it reads would otherwise meet a reset, and not learn why.
    return Problem(
        413, "too-large", f"expected a body of at most {limit_bytes} bytes; send a smaller file"
    )


def chosen_format(request: Request, format: str | None) -> str:
    """ "PNG", "JPEG" or "WEBP": the query's, else the first that Accept prefers, else PNG.

    Raises Problem 400 for an unknown name, 406 when Accept takes none of the three.
    """
    if format is not None:
        name = {"jpg": "JPEG"}.get(format.lower(), format.upper())
        if name not in _FORMATS.values():
            raise Problem(400, "usage", f"expected format to be png, jpeg or webp, got {format!r}")
        return name
    best: tuple[float, str] | None = None
    for item in request.headers.get("accept", "*/*").split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        share = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    share = float(parameter[2:])
                except ValueError:
                    share = 0.0
        name = "PNG" if kind in ("*/*", "image/*") else _FORMATS.get(kind, "")
        if name and share > 0 and (best is None or share > best[0]):
            best = (share, name)
    if best is None:
        raise Problem(
            406,
            "not-acceptable",
            f"expected Accept to take one of {', '.join(_FORMATS)}; add one, or set ?format=",
        )
    return best[1]


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of ``work``, which is cancelled when the client goes. Raises ClientGone."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
