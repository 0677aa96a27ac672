"""Lanes that die, clients that leave, and bodies made to do harm."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from percoedge import Codec
from percoedge.bitstream.container import pack, unpack
from percoedge.errors import StreamError
from tests.serving.conftest import PATIENCE_S, Live, wait_for
from tests.serving.test_operations import STREAM, decode, image_of

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*.pco"))


def test_a_client_that_leaves_frees_its_place(live: Live, streams: list[bytes]) -> None:
    dispatcher = live.service.dispatcher
    head = (  # of other settings: it must not join the batch of the first
        "POST /v1/decode?seed=1 HTTP/1.1\r\nHost: x\r\nContent-Type: image/x-percoedge\r\n"
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
def test_lanes_that_are_killed_under_load_lose_no_request(
    live: Live, codec: Codec, streams: list[bytes]
) -> None:
    dispatcher, lane = live.service.dispatcher, live.service.lanes[0]
    expected = [codec.decode(data) for data in streams]
    enough = threading.Event()
    answers: list[tuple[int, httpx.Response]] = []

    def ask(number: int) -> None:
        while not enough.is_set():
            answers.append((number, decode(live, streams[number])))

    killed = []
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, number) for number in range(4)]
        for _ in range(3):
            answered = len(answers)
            wait_for(lambda answered=answered: len(answers) >= answered + 20)  # type: ignore[misc]
            killed.append(lane.pid or 0)  # none of their requests is hit twice
            os.kill(killed[-1], signal.SIGKILL)
            wait_for(lambda: lane.pid not in killed)
        enough.set()
        for client in clients:
            client.result()
    assert {answer.status_code for _, answer in answers} == {200}
    for number, answer in answers:
        difference = np.abs(
            np.asarray(image_of(answer.content), int) - np.asarray(expected[number], int)
        )
        assert difference.max() <= 8  # some were decoded in batches
    assert dispatcher.healthy


def hostile_bodies(codec: Codec, count: int) -> list[bytes]:
    """The corpus as it is, and damaged; half of it as if this bundle had made it."""
    chance = random.Random(0)
    bodies = [b"\0", bytes(1000), b"\x50\xc0", b"\x89PNG\r\n\x1a\n" + bytes(100)]
    bodies += [path.read_bytes() for path in CORPUS]
    while len(bodies) < count:
        data = bytearray(chance.choice(CORPUS).read_bytes())
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        del data[chance.choice((len(data), chance.randrange(1, len(data) + 1))) :]
        with contextlib.suppress(StreamError):  # so that lanes meet it, with a right checksum
            stream = unpack(bytes(data), bare=True, cut=True)
            data = bytearray(pack(stream.header, stream.tokens, codec.bundle.fingerprint))
        bodies.append(bytes(data))
    return bodies


@pytest.mark.slow
def test_hostile_bodies_are_refused_and_never_break_anything(
    live: Live, codec: Codec, streams: list[bytes]
) -> None:
    restarts = live.service.dispatcher.restarts
    paths = ("/v1/decode", "/v1/decode?cut=true", "/v1/info", "/v1/progressive", "/v1/encode")
    good = decode(live, streams[0]).content

    def ask(number: int, data: bytes) -> int:
        kind = {"Content-Type": "application/octet-stream"}
        path = paths[number % len(paths)]
        reply = live.client.post(path, content=data, headers=kind)
        assert reply.status_code < 500, (path, data[:40], reply.text)
        if reply.status_code >= 400:
            assert reply.headers["content-type"] == "application/problem+json"
        if number % 20 == 0:
            assert decode(live, streams[0]).content == good
        return reply.status_code

    bodies = hostile_bodies(codec, 300)
    with ThreadPoolExecutor(4) as pool:
        answered = set(pool.map(ask, range(len(bodies)), bodies))
    assert answered <= {200, 409, 413, 422} and {200, 422} <= answered
    assert live.service.dispatcher.healthy
    assert live.service.dispatcher.restarts == restarts


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


def test_a_client_that_reads_after_it_has_sent_all_learns_why_it_was_refused(live: Live) -> None:
    client = http.client.HTTPConnection("127.0.0.1", live.port, timeout=PATIENCE_S)
    client.request("POST", "/v1/encode", bytes(32 << 20), {"Content-Type": "image/png"})
    assert client.getresponse().status == 413
    client.close()


def test_the_service_outlives_what_was_done_to_it(live: Live, streams: list[bytes]) -> None:
    reply = httpx.post(
        f"http://127.0.0.1:{live.port}/v1/decode",
        content=streams[0],
        headers=STREAM,
        timeout=PATIENCE_S,
    )
    assert reply.status_code == 200
