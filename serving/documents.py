"""What /openapi.json says of each operation beside its parameters: bodies, answers, examples."""

from __future__ import annotations

from typing import Any

__all__ = ["BUNDLES", "CLASSICAL", "DECODE", "ENCODE", "HEALTH", "INFO", "PROGRESSIVE"]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PROBLEM = {
    "application/problem+json": {
        "schema": {
            "type": "object",
            "required": ["type", "title", "status", "detail", "instance"],
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "instance": {"type": "string"},
            },
        },
        "example": {
            "type": "urn:percoedge:problem:stream",
            "title": "Unprocessable Entity",
            "status": 422,
            "detail": "expected a .pco stream, got data that begins with 47 49 46 38",
            "instance": "urn:percoedge:request:5f2b9c1e7a60d384",
        },
    }
}
_WHY = {
    400: "a parameter is unknown, given twice, or out of its range",
    401: "the bearer token is missing or wrong",
    406: "Accept takes none of PNG, JPEG, WebP",
    408: "the body came too slowly",
    409: "the stream was made with a bundle that this service does not have",
    413: "too many bytes or pixels",
    415: "the body is of another type",
    422: "the body is not such a file, or damaged",
    500: "an engine failed",
    503: "too many requests wait, or the service is stopping; see Retry-After",
    504: "not answered within the deadline",
}


def _answers(*statuses: int, **content: Any) -> dict[int | str, Any]:
    problems: dict[int | str, Any] = {
        status: {"description": _WHY[status], "content": _PROBLEM} for status in statuses
    }
    return {200: {"description": "done", "content": content["ok"]}, **problems}


def _body(*types: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": dict.fromkeys(types, _BINARY)}}


_STREAM_BODY = _body("image/x-percoedge", "application/octet-stream")
_IMAGES = {"image/png": _BINARY, "image/jpeg": _BINARY, "image/webp": _BINARY}
_JSON = {"application/json": {"schema": {"type": "object"}}}
_COMMON = (400, 401, 408, 413, 415, 422, 500, 503, 504)

DECODE: dict[str, Any] = {
    "responses": _answers(*_COMMON, 406, 409, ok=_IMAGES),
    "openapi_extra": _STREAM_BODY,
    "response_model": None,
}
ENCODE: dict[str, Any] = {
    "responses": _answers(*_COMMON, ok={"image/x-percoedge": _BINARY}),
    "openapi_extra": _body(
        *("image/jpeg", "image/png", "image/webp", "image/avif", "application/octet-stream")
    ),
    "response_model": None,
}
CLASSICAL: dict[str, Any] = {
    "responses": _answers(*_COMMON, ok={"image/png": _BINARY}),
    "openapi_extra": ENCODE["openapi_extra"],
    "response_model": None,
}
INFO: dict[str, Any] = {
    "responses": _answers(400, 401, 408, 413, 415, 422, ok=_JSON),
    "openapi_extra": _STREAM_BODY,
    "response_model": None,
}
PROGRESSIVE: dict[str, Any] = {
    "responses": _answers(
        *_COMMON, 406, 409, ok={"text/event-stream": {"schema": {"type": "string"}}}
    ),
    "openapi_extra": _STREAM_BODY,
    "response_model": None,
}
BUNDLES: dict[str, Any] = {"responses": _answers(400, 401, ok=_JSON), "response_model": None}
HEALTH: dict[str, Any] = {
    "responses": {
        200: {"description": "yes", "content": {"text/plain": {"schema": {"type": "string"}}}},
        503: {"description": "no", "content": {"text/plain": {"schema": {"type": "string"}}}},
    },
    "response_model": None,
}
