"""What is refused, how, and before what: the application itself, with no lane started.

So tasks wait for ever here, and what is answered was answered without decoding anything.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from percoedge.bitstream.container import Header, pack
from percoedge.engines.bundle import Bundle
from percoedge.engines.processors import usable_processors
from percoedge.errors import UsageError
from percoedge.serving.app import create_app
from percoedge.serving.service import Service
from percoedge.serving.settings import ServiceSettings
from tests.serving.conftest import httpx

STREAM = {"Content-Type": "image/x-percoedge"}
DECODE = "/v1/decode"
GOOD = pack(Header(16, 16), b"\1", Bundle.open("tiny").fingerprint)


def ask(
    talk: Callable[[httpx.AsyncClient], Awaitable[Any]], app: Any = None, **settings: Any
) -> Any:
    """What comes of talking to an application with these settings."""
    app = app or create_app(ServiceSettings(lanes=1, in_process=True, **settings))

    async def run() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await talk(client)

    return asyncio.run(run())


def post(
    path: str, content: Any = GOOD, headers: dict[str, str] = STREAM, **settings: Any
) -> httpx.Response:
    return ask(lambda client: client.post(path, content=content, headers=headers), **settings)


async def chunks(size: int, seen: list[int]) -> AsyncIterator[bytes]:
    for _ in range(1000):
        seen.append(size)
        yield bytes(size)


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "kind", "words"),
    [
        (DECODE, b"GIF89a", STREAM, 422, "stream", "got GIF"),
        (DECODE, b"", STREAM, 422, "empty-body", "got nothing"),
        (DECODE, GOOD, {"Content-Type": "text/plain"}, 415, "media-type", "'text/plain'"),
        (DECODE, GOOD, {**STREAM, "Content-Encoding": "gzip"}, 415, "media-type", "as it is"),
        (DECODE, GOOD, {**STREAM, "Accept": "text/html"}, 406, "not-acceptable", "image/png"),
        (f"{DECODE}?steps=0", GOOD, STREAM, 400, "usage", "steps"),
        (f"{DECODE}?guidance=nan", GOOD, STREAM, 400, "usage", "guidance"),
        (f"{DECODE}?step=2", GOOD, STREAM, 400, "usage", "guidance, cut, format, each once"),
        (f"{DECODE}?seed=1&seed=2", GOOD, STREAM, 400, "usage", "'seed'"),
        ("/v1/encode?max_bytes=99", b"x", {}, 400, "usage", "passes, bytes, seed"),
        ("/v1/info?cut=1&steps=1", GOOD, STREAM, 400, "usage", "expected no parameters but cut, "),
        (DECODE, GOOD[6:], STREAM, 422, "stream", "bare streams are not taken here"),
        (f"{DECODE}?format=gif", GOOD, STREAM, 400, "usage", "'gif'"),
        (f"/v1/encode?caption={'a' * 1025}", GOOD, STREAM, 400, "usage", "got an object of type"),
        (DECODE, pack(Header(8, 8), b"", b"abcd"), STREAM, 409, "other-bundle", "61626364"),
        (DECODE, pack(Header(200, 200), b"", b"abcd"), STREAM, 413, "too-many-pixels", "200x200"),
        ("/v1/encode", bytes(2000), {"Content-Type": "image/png"}, 413, "too-large", "1000 bytes"),
        ("/v2/encode", b"x", {}, 404, "not-found", "see /openapi.json"),
    ],
)
def test_a_refusal_says_what_is_wrong(
    path: str, content: bytes, headers: dict[str, str], status: int, kind: str, words: str
) -> None:
    reply = post(path, content, headers, max_pixels=10_000, max_body_bytes=1000)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["type"] == f"urn:percoedge:problem:{kind}"
    assert problem["status"] == status
    assert words in problem["detail"]
    assert problem["instance"].endswith(reply.headers["x-request-id"])


def test_parameters_are_refused_where_there_are_none() -> None:
    reply = ask(lambda client: client.get("/v1/bundles?name=tiny"))
    assert reply.status_code == 400
    assert "but none, each once, got 'name'" in reply.json()["detail"]
    assert ask(lambda client: client.get("/?from=a-link")).status_code == 200


def test_methods_are_told_apart() -> None:
    reply = ask(lambda client: client.get(DECODE))
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert reply.json()["type"] == "urn:percoedge:problem:method"


def test_no_more_of_a_long_body_is_read_than_allowed() -> None:
    seen: list[int] = []
    headers = {"Content-Type": "image/png"}
    reply = post("/v1/encode", chunks(100, seen), headers, max_body_bytes=1000)
    assert (reply.status_code, len(seen)) == (413, 11)


def test_a_slow_body_is_given_up() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield GOOD[:3]
        await asyncio.sleep(3600)

    reply = post(DECODE, never(), body_timeout_s=0.05)
    assert (reply.status_code, reply.json()["type"]) == (408, "urn:percoedge:problem:slow-body")


def test_no_answer_in_time_is_an_answer() -> None:
    reply = post(DECODE, deadline_s=0.05)
    assert (reply.status_code, reply.json()["type"]) == (504, "urn:percoedge:problem:deadline")
    assert "0.05 s" in reply.json()["detail"]


def test_what_exceeds_the_queue_is_turned_away_before_its_body_is_read() -> None:
    app = create_app(ServiceSettings(lanes=1, in_process=True, max_queue=2))
    seen: list[int] = []

    async def talk(client: httpx.AsyncClient) -> tuple[httpx.Response, str]:
        waiting = [
            asyncio.create_task(client.post(DECODE, content=GOOD, headers=STREAM)) for _ in "ab"
        ]
        while app.state.service.dispatcher.waiting < 2:
            await asyncio.sleep(0)
        reply = await client.post(DECODE, content=chunks(9, seen), headers=STREAM)
        text = (await client.get("/metrics")).text
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return reply, text

    reply, text = ask(talk, app)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["type"] == "urn:percoedge:problem:queue-full"
    assert seen == []
    assert "percoedge_queue 2.0" in text
    assert 'percoedge_rejected_total{kind="queue-full"} 1.0' in text
    assert app.state.service.dispatcher.waiting == 0


def test_what_is_not_answered_in_the_time_of_draining_is_refused() -> None:
    app = create_app(ServiceSettings(lanes=1, in_process=True, drain_s=0.05))

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        waiting = asyncio.create_task(client.post(DECODE, content=GOOD, headers=STREAM))
        while not app.state.service.dispatcher.waiting:
            await asyncio.sleep(0)
        await app.state.service.stop()
        return [await waiting, await client.post(DECODE, content=GOOD, headers=STREAM)]

    for reply in ask(talk, app):
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["type"] == "urn:percoedge:problem:stopping"


def test_not_ready_before_the_lanes_are() -> None:
    reply = ask(lambda client: client.get("/health/ready"))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert ask(lambda client: client.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Basic c2VjcmV0", "secret", "Bearer sécret", "Bearer "]
)
def test_a_token_is_asked_for_where_there_is_one(given: str | None) -> None:
    headers = [] if given is None else [(b"authorization", given.encode())]
    reply = ask(lambda client: client.get("/v1/bundles", headers=headers), token="secret")
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "secret'" not in reply.text
    right = {"Authorization": "bearer secret"}
    reply = ask(lambda client: client.get("/v1/bundles", headers=right), token="secret")
    assert reply.status_code == 200
    for path in ("/health/live", "/"):  # probes have no token, nor has a browser that asks for one
        assert ask(lambda client, p=path: client.get(p), token="secret").status_code == 200


def test_only_origins_that_are_named_may_call() -> None:
    def allowed(origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        reply = ask(
            lambda client: client.options(DECODE, headers=headers),
            cors_origins=("https://photos.example",),
        )
        return reply.headers.get("access-control-allow-origin")  # type: ignore[no-any-return]

    assert allowed("https://photos.example") == "https://photos.example"
    assert allowed("https://elsewhere.example") is None
    headers = {"Origin": "https://photos.example"}
    reply = ask(lambda client: client.get("/v1/bundles", headers=headers))
    assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize("path", ["/", "/v1/bundles", "/nothing", "/page/app.js"])
def test_every_answer_has_the_headers_of_security_and_an_id(path: str) -> None:
    ids = {"mine-1": "mine-1", "bad id\t": None, "x" * 65: None}
    for given, expected in ids.items():
        reply = ask(lambda client, g=given: client.get(path, headers={"X-Request-ID": g}))
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-frame-options"] == "DENY"
        assert (reply.headers["x-request-id"] == given) == (expected is not None)


def test_nothing_beside_the_page_is_served_from_the_disk() -> None:
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/app.py"):
        assert ask(lambda client, p=path: client.get(p)).status_code == 404


def test_the_description_is_openapi() -> None:
    document = ask(lambda client: client.get("/openapi.json")).json()
    OpenAPI.model_validate(document)
    paths = {"/v1/decode", "/v1/encode", "/v1/info", "/v1/progressive", "/v1/bundles"}
    assert paths <= set(document["paths"])
    answers = document["paths"]["/v1/decode"]["post"]["responses"]
    assert {"200", "400", "401", "409", "413", "415", "422", "503", "504"} <= set(answers)
    assert "image/webp" in answers["200"]["content"]
    assert "application/problem+json" in answers["422"]["content"]
    assert json.dumps(document).count("HTTPValidationError") == 0  # of FastAPI: not what is sent


@pytest.mark.parametrize(
    ("backend", "chosen", "in_process", "lanes"),
    [
        ("onnxruntime-cpu", None, False, None),
        ("onnxruntime-cpu:fp32", True, True, None),
        ("onnxruntime-cuda", None, True, 2),
        ("tensorrt", None, True, 2),
        ("tensorrt", False, False, None),
    ],
)
def test_lanes_are_threads_on_a_gpu(
    backend: str, chosen: bool | None, in_process: bool, lanes: int | None
) -> None:
    settings = Service(ServiceSettings(backend=backend, in_process=chosen)).settings
    assert settings.in_process is in_process
    assert settings.lanes == (lanes or min(usable_processors(), 4))


@pytest.mark.parametrize(
    "settings",
    [
        *({"max_batch": 0}, {"bundles": ()}, {"token": " "}),
        *({"lanes": 0}, {"lanes": 100_000}, {"threads": 100_000}),
        *({"deadline_s": 0.0}, {"deadline_s": math.nan}, {"drain_s": math.inf}),
    ],
)
def test_settings_out_of_their_ranges_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServiceSettings(**settings)
