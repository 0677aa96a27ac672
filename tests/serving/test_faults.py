"""Lanes that die, clients that leave, and bodies made to do harm."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from percoedge import Codec
from percoedge.bitstream.container import pack, unpack
from percoedge.errors import StreamError
from tests.serving.conftest import PATIENCE_S, Live, wait_for
from tests.serving.test_operations import STREAM, decode, image_of

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*.pco"))


def test_a_client_that_leaves_frees_its_place(live: Live, streams: list[bytes]) -> None:
    dispatcher = live.service.dispatcher
    head = (
        "POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Type: image/x-percoedge\r\n"
        f"Content-Length: {len(streams[1])}\r\n\r\n"
    )
    with ThreadPoolExecutor(1) as pool, live.stopped_lane():
        first = pool.submit(decode, live, streams[0])
        wait_for(lambda: dispatcher.running == 1)
        with socket.create_connection(("127.0.0.1", live.port), PATIENCE_S) as client:
            client.sendall(head.encode() + streams[1])
            wait_for(lambda: dispatcher.waiting == 1)
        wait_for(lambda: dispatcher.waiting == 0)  # before the lane goes on
        assert not first.done()
        os.kill(live.service.lanes[0].pid or 0, signal.SIGCONT)
        assert first.result().status_code == 200


def test_a_lane_that_is_killed_loses_no_request(
    live: Live, codec: Codec, streams: list[bytes]
) -> None:
    restarts = live.service.dispatcher.restarts
    with ThreadPoolExecutor(4) as pool, live.stopped_lane() as pid:
        replies = [pool.submit(decode, live, data) for data in streams[:3]]
        dispatcher = live.service.dispatcher
        wait_for(lambda: dispatcher.running + dispatcher.waiting == 3)
        os.kill(pid, signal.SIGKILL)
        images = [image_of(reply.result().content) for reply in replies]
    assert [image.size for image in images] == [(64, 48)] * 3
    assert images[0] == codec.decode(streams[0])
    assert live.service.dispatcher.restarts == restarts + 1
    assert live.service.lanes[0].pid != pid
    assert live.client.get("/health/ready").status_code == 200


@pytest.mark.slow
def test_hostile_bodies_are_refused_and_never_break_anything(live: Live, codec: Codec) -> None:
    ours = codec.bundle.fingerprint
    bodies = [path.read_bytes() for path in CORPUS[::2]]
    for data in list(bodies):  # as if this bundle had made them, so that lanes meet them
        try:
            stream = unpack(data)
        except StreamError:
            continue
        bodies.append(pack(stream.header, stream.tokens, ours))
    bodies += [b"\0", bytes(1000), b"\x50\xc0", b"\x89PNG\r\n\x1a\n" + bytes(100)]
    answered: dict[int, int] = {}
    for number, data in enumerate(bodies):
        paths = ["/v1/decode", "/v1/decode?cut=true", "/v1/info", "/v1/info?cut=true"]
        if number % 10 == 0:
            paths += ["/v1/progressive", "/v1/encode"]
        for path in paths:
            kind = {"Content-Type": "application/octet-stream"}
            reply = live.client.post(path, content=data, headers=kind)
            answered[reply.status_code] = answered.get(reply.status_code, 0) + 1
            assert reply.status_code < 500, (path, data[:40], reply.text)
            if reply.status_code >= 400:
                assert reply.headers["content-type"] == "application/problem+json"
    assert set(answered) == {200, 409, 422}
    assert live.service.dispatcher.healthy


@pytest.mark.parametrize("sent", [b"", b"\x50\xc0\x01"])
def test_half_a_body_is_nobodys_request(live: Live, sent: bytes) -> None:
    live.wait_until_idle()
    head = (
        "POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Type: image/x-percoedge\r\n"
        "Content-Length: 100\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", live.port), PATIENCE_S) as client:
        client.sendall(head.encode() + sent)
        wait_for(lambda: live.service.reading == 1)
    wait_for(lambda: live.service.reading == 0)
    assert live.service.dispatcher.running == 0


def test_the_service_outlives_what_was_done_to_it(live: Live, streams: list[bytes]) -> None:
    reply = httpx.post(
        f"http://127.0.0.1:{live.port}/v1/decode",
        content=streams[0],
        headers=STREAM,
        timeout=PATIENCE_S,
    )
    assert reply.status_code == 200
