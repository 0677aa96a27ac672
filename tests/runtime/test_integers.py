"""The shipped bundle in 8-bit integers, as CPUs run it, beside FP32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from percoedge import Codec
from percoedge.bundles import shipped_photo
from percoedge.runtime.images.metrics import ms_ssim, psnr_db

SIZE = (256, 192)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(shipped_photo()) as image:
        return image.convert("RGB").resize(SIZE)


@pytest.fixture(scope="module")
def codecs() -> Iterator[tuple[Codec, Codec]]:
    """In integers, and in FP32."""
    with (
        Codec.load("tiny", "onnxruntime-cpu") as fast,
        Codec.load("tiny", "onnxruntime-cpu:fp32") as exact,
    ):
        assert (fast.backend.variant, exact.backend.variant) == ("int8", "fp32")
        yield fast, exact


def test_streams_are_read_alike(codecs: tuple[Codec, Codec], photo: Image.Image) -> None:
    for codec in codecs:
        data = codec.encode(photo)
        tokens = [reader.decode_tokens(data) for reader in codecs]
        np.testing.assert_array_equal(tokens[0], tokens[1])


def test_other_tokens_are_as_good(codecs: tuple[Codec, Codec], photo: Image.Image) -> None:
    original, streams = np.asarray(photo), [codec.encode(photo) for codec in codecs]
    fast, exact = (np.asarray(codecs[1].decode(data)) for data in streams)
    assert abs(psnr_db(original, exact) - psnr_db(original, fast)) < 0.3
    assert abs(ms_ssim(original, exact) - ms_ssim(original, fast)) < 0.01
    assert len(streams[0]) < 1.03 * len(streams[1])


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_pictures_look_the_same(
    codecs: tuple[Codec, Codec], photo: Image.Image, steps: int
) -> None:
    data = codecs[0].encode(photo)
    fast, exact = (np.asarray(codec.decode(data, steps=steps)) for codec in codecs)
    assert 38 < psnr_db(exact, fast) < np.inf
    original = np.asarray(photo)
    assert abs(psnr_db(original, exact) - psnr_db(original, fast)) < 0.1
    assert abs(ms_ssim(original, exact) - ms_ssim(original, fast)) < 0.002


def test_pictures_do_not_depend_on_their_batch(
    codecs: tuple[Codec, Codec], photo: Image.Image
) -> None:
    """Not on the others at all; its size moves last bits, which integers round up or down."""
    codec = codecs[0]
    turned, black = photo.transpose(Image.Transpose.ROTATE_180), Image.new("RGB", SIZE)
    first, second, third = (codec.encode(image) for image in (photo, turned, black))
    alone, among, beside = (
        np.asarray(codec.decode_batch(streams)[0])
        for streams in ([first], [first, second, first], [first, third, third])
    )
    np.testing.assert_array_equal(among, beside)
    assert psnr_db(alone, among) > 40
