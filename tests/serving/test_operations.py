"""What the service answers is what the codec gives, one by one and in batches."""

from __future__ import annotations

import base64
import json
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, features

from percoedge import Codec, StreamError, __version__
from percoedge.bitstream.container import pack, unpack
from percoedge.runtime.images.classical import CLASSICAL, PhotoRival
from tests.serving.conftest import Live, photo, wait_for

STREAM = {"Content-Type": "image/x-percoedge"}


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_of(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image.convert("RGB")


def decode(live: Live, data: bytes, **query: Any) -> httpx.Response:
    return live.client.post("/v1/decode", content=data, params=query, headers=STREAM)


def poisoned(codec: Codec, like: bytes) -> bytes:
    """A stream of the same header and a right checksum whose tokens no encoder makes."""
    data = pack(unpack(like).header, b"\xff" * 40, codec.bundle.fingerprint)
    with pytest.raises(StreamError):
        codec.decode_tokens(data)
    return data


def test_an_image_goes_there_and_back_as_with_the_codec(live: Live, codec: Codec) -> None:
    pixels = photo(40, 72)
    options = {"passes": 6, "seed": 7, "caption": "a boat", "schedule": "qlds-8"}
    reply = live.client.post(
        "/v1/encode", content=png(pixels), params=options, headers={"Content-Type": "image/png"}
    )
    assert reply.status_code == 200, reply.text
    assert reply.content == codec.encode(pixels, **options)  # type: ignore[arg-type]
    assert reply.headers["content-type"] == "image/x-percoedge"
    back = decode(live, reply.content, steps=2, seed=3)
    assert image_of(back.content) == codec.decode(reply.content, steps=2, seed=3)
    assert (back.headers["x-percoedge-width"], back.headers["x-percoedge-height"]) == ("72", "40")
    assert "decoder;dur=" in back.headers["server-timing"]


def test_an_image_is_sent_within_a_number_of_bytes(live: Live, codec: Codec) -> None:
    pixels = photo(40, 72)

    def encoded(**query: int) -> httpx.Response:
        headers = {"Content-Type": "image/png"}
        return live.client.post("/v1/encode", content=png(pixels), params=query, headers=headers)

    assert encoded(bytes=25).content == codec.encode(pixels, max_bytes=25)
    for refused, words in (
        (encoded(bytes=1), "expected bytes of "),
        (encoded(bytes=25, passes=2), "expected passes or bytes, got both"),
    ):
        assert (refused.status_code, words in refused.json()["detail"]) == (400, True)


def test_the_caller_chooses_the_format(live: Live, streams: list[bytes]) -> None:
    def kind(query: dict[str, str], accept: str) -> str | None:
        headers = {**STREAM, "Accept": accept}
        reply = live.client.post("/v1/decode", content=streams[0], params=query, headers=headers)
        image = Image.open(BytesIO(reply.content))
        assert reply.headers["content-type"] == f"image/{str(image.format).lower()}"
        return image.format

    assert kind({}, "*/*") == "PNG"
    assert kind({}, "text/html, image/webp;q=0.9, image/jpeg;q=0.8, */*;q=0.1") == "WEBP"
    assert kind({"format": "jpg"}, "image/webp") == "JPEG"


def test_an_image_too_large_for_a_format_is_the_callers_business(live: Live, codec: Codec) -> None:
    wide = codec.encode(photo(1, 16384), schedule="uniform")
    refused = decode(live, wide, format="webp", steps=1)
    assert (refused.status_code, "write PNG instead" in refused.json()["detail"]) == (422, True)


def test_a_cut_stream_is_decoded_when_asked(live: Live, codec: Codec, streams: list[bytes]) -> None:
    cut = streams[0][:-6]
    refused = decode(live, cut)
    assert (refused.status_code, "; cut=true decodes" in refused.json()["detail"]) == (422, True)
    assert image_of(decode(live, cut, cut=True).content) == codec.decode(cut, cut=True)


def test_passes_arrive_one_by_one(live: Live, codec: Codec, streams: list[bytes]) -> None:
    reply = live.client.post("/v1/progressive", content=streams[0], headers=STREAM)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in reply.text.strip().split("\n\n")]
    assert {name for name, _ in events} == {"event: image"}
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert [one["pass"] for one in data] == list(range(1, data[0]["of"] + 1))
    images = [image_of(base64.b64decode(one["image"].partition(",")[2])) for one in data]
    assert images == [codec.decode(streams[0], passes=one["pass"]) for one in data]
    assert images[-1] == codec.decode(streams[0]) != images[0]


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_classical_codecs_are_shown_at_the_same_size(live: Live, name: str) -> None:
    if not features.check({"jpeg": "jpg"}.get(name, name)):
        pytest.skip(f"Pillow has no {name}")
    pixels = photo(48, 64)
    headers = {"Content-Type": "image/png"}
    query = {"codec": name, "bytes": 800}
    reply = live.client.post("/v1/classical", content=png(pixels), params=query, headers=headers)
    (rival,) = (rival for rival in CLASSICAL if rival.format == name.upper())
    best = PhotoRival(rival, pixels).best(800)
    assert int(reply.headers["x-percoedge-bytes"]) == best.size_bytes <= 800
    assert (np.asarray(image_of(reply.content)) == best.pixels).all()
    query = {"codec": "jpeg2000", "bytes": 800}
    reply = live.client.post("/v1/classical", content=png(pixels), params=query, headers=headers)
    assert (reply.status_code, "codec" in reply.json()["detail"]) == (400, True)


def test_streams_and_bundles_are_described(live: Live, codec: Codec, streams: list[bytes]) -> None:
    reply = live.client.post("/v1/info", content=streams[0], headers=STREAM)
    assert reply.json() == codec.info(streams[0])
    (bundle,) = live.client.get("/v1/bundles").json()["bundles"]
    assert (bundle["name"], bundle["fingerprint"]) == ("tiny", codec.bundle.fingerprint.hex())
    assert bundle["schedules"][bundle["schedule"]] > 1


def test_a_batch_gives_each_what_it_would_get_alone(
    live: Live, codec: Codec, streams: list[bytes]
) -> None:
    """Among them one that breaks its batch, which is nobody else's business."""
    bad = poisoned(codec, streams[0])
    largest = 'percoedge_batch_size_bucket{le="2.0"}'
    small, total = _metric(live, largest), _metric(live, "percoedge_batch_size_count")
    with ThreadPoolExecutor(8) as pool, live.stopped_lane():
        first = pool.submit(decode, live, streams[0])
        wait_for(lambda: live.service.dispatcher.running == 1)
        replies: list[Future[httpx.Response]] = [
            pool.submit(decode, live, data) for data in [*streams, bad]
        ]
        wait_for(lambda: live.service.dispatcher.waiting == 6)
        os.kill(live.service.lanes[0].pid or 0, signal.SIGCONT)
        images = [image_of(reply.result().content) for reply in [first, *replies[:-1]]]
    refused = replies[-1].result()
    assert refused.status_code == 422
    with pytest.raises(StreamError) as caught:
        codec.decode(bad)
    assert refused.json()["detail"] == str(caught.value)
    assert _metric(live, "percoedge_batch_size_count") == total + 2  # one alone, six together
    assert _metric(live, largest) == small + 1
    for image, data in zip(images, [streams[0], *streams], strict=True):
        difference = np.abs(np.asarray(image, int) - np.asarray(codec.decode(data), int))
        assert difference.max() <= 8 and difference.mean() < 0.5


def _metric(live: Live, name: str) -> float:
    text = live.client.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_metrics_count_what_was_done(live: Live, streams: list[bytes]) -> None:
    names = {
        'percoedge_requests_total{operation="decode",status="200"}': 1,
        'percoedge_requests_total{operation="decode",status="422"}': 1,
        'percoedge_rejected_total{kind="stream"}': 1,
        'percoedge_received_bytes_total{operation="decode"}': len(streams[0]) + 4,
        'percoedge_request_seconds_count{operation="decode"}': 2,
        'percoedge_stage_seconds_count{operation="decode",stage="decoder"}': 1,
    }
    before = {name: _metric(live, name) for name in names}
    size = len(decode(live, streams[0]).content)
    decode(live, b"GIF8")
    assert {name: _metric(live, name) - before[name] for name in names} == names
    assert _metric(live, 'percoedge_sent_bytes_total{operation="decode"}') >= size
    assert _metric(live, f'percoedge_info{{version="{__version__}"}}') == 1
    assert _metric(live, "percoedge_ready") == 1
    assert live.client.get("/health/live").text == "live\n"
    assert live.client.get("/health/ready").text == "ready\n"
