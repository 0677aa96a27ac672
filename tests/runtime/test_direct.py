"""Bundles without latents: tokens go straight to the decoder, pictures through it in one piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from percoedge import Codec
from percoedge.engines import memory
from percoedge.engines.bundle import Bundle, GraphFiles, write_manifest
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec
from percoedge.engines.fake import FakeBackend
from percoedge.errors import BackendError, BundleError, UsageError

K = 16
IMAGE = TensorSpec("image", "uint8", ("n", "8*h", "8*w", 3))
TOKENS = TensorSpec("tokens", "int32", ("n", "h", "w"))
SPECS = {"encoder": ((IMAGE,), (TOKENS,)), "decoder": ((TOKENS,), (IMAGE,))}
CONSTANTS = CodecConstants(stride=8, codebook_size=K, schedule="uniform", entropy_tile=4)
Feeds = Any


def _global(values: NDArray[Any]) -> NDArray[Any]:
    """Something that every part of a picture has a share in."""
    return values.reshape(len(values), -1).sum(axis=1)[:, None, None]


def encoder(feeds: Feeds) -> dict[str, NDArray[Any]]:
    image = feeds["image"].astype(np.int64)
    return {"tokens": ((image[:, ::8, ::8, 0] + _global(image)) % K).astype(np.int32)}


def decoder(feeds: Feeds) -> dict[str, NDArray[Any]]:
    tokens = feeds["tokens"]
    level = ((tokens * 7 + _global(tokens)) % 251).astype(np.uint8)
    return {"image": level.repeat(8, axis=1).repeat(8, axis=2)[..., None].repeat(3, axis=3)}


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bundle]:
    def write(pixel_bytes: int | None = None) -> Bundle:
        (tmp_path / "graph.onnx").write_bytes(b"fake")
        graphs = {
            kind: GraphFiles(*specs, {"fp32": ("graph.onnx",)}, pixel_bytes)
            for kind, specs in SPECS.items()
        }
        return write_manifest(
            tmp_path,
            name="direct",
            family="another-one",
            language="1" * 64,
            codec=CONSTANTS,
            graphs=graphs,
            licence="CC0-1.0",
        )

    return write


@pytest.fixture
def codec(make: Callable[..., Bundle]) -> Codec:
    return Codec(make(), FakeBackend({"encoder": encoder, "decoder": decoder}))


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (61, 90), (33, 8)])
def test_the_decoder_sees_all_tokens_at_once(codec: Codec, size: tuple[int, int]) -> None:
    """Larger than a tile of the entropy model: an encoder or decoder in tiles would show."""
    pixels = photo(*size)
    data = codec.encode(pixels)
    whole = np.pad(pixels, [(0, -size[0] % 8), (0, -size[1] % 8), (0, 0)], mode="edge")
    tokens = encoder({"image": whole[None]})["tokens"]
    np.testing.assert_array_equal(codec.decode_tokens(data), tokens[0])
    image = np.asarray(codec.decode(data))
    expected = decoder({"tokens": tokens})["image"][0, : size[0], : size[1]]
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(np.asarray(codec.decode_batch([data, data])[1]), image)
    *_, last = codec.decode_progressive(data)
    np.testing.assert_array_equal(np.asarray(last.image), image)


def test_a_stream_is_as_long_as_its_tokens(codec: Codec) -> None:
    pixels = photo(64, 64)
    bits = 64 * 4
    assert len(codec.encode(pixels)) <= 13 + bits // 8
    assert len(codec.encode(pixels, bare=True)) <= 4 + bits // 8


def test_there_are_no_steps_to_choose(codec: Codec) -> None:
    data = codec.encode(photo(16, 16))
    assert codec.decode(data, steps=1) == codec.decode(data)
    with pytest.raises(UsageError, match="expected 1 step, .* got 4"):
        codec.decode(data, steps=4)
    with pytest.raises(BundleError, match="expected a graph 'entropy'"):
        codec.encode(photo(16, 16), schedule="qlds-4")


def test_pictures_that_memory_does_not_hold_are_refused(
    make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend({"encoder": encoder, "decoder": decoder})
    codec = Codec(make(pixel_bytes=1000), backend)
    data = codec.encode(photo(64, 64))
    monkeypatch.setattr(memory, "available_bytes", lambda: 64 * 64 * 1000 - 1)
    for call in (lambda: codec.encode(photo(64, 64)), lambda: codec.decode(data)):
        with pytest.raises(BackendError, match="4096 pixels, which go through it in one piece"):
            call()
    assert codec.decode(codec.encode(photo(56, 64))).size == (64, 56)


@pytest.mark.parametrize("value", [0, 255])
def test_a_decoder_that_overflows_is_found_out(make: Callable[..., Bundle], value: int) -> None:
    def blank(feeds: Feeds) -> dict[str, NDArray[Any]]:
        return {"image": np.full_like(decoder(feeds)["image"], value)}

    codec = Codec(make(), FakeBackend({"encoder": encoder, "decoder": blank}))
    with pytest.raises(BackendError, match="for the opposite input too"):
        codec.decode(codec.encode(photo(16, 24)))
