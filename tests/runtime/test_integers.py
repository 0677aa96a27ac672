"""The shipped bundle in 8-bit integers, as CPUs run it, beside FP32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from percoedge import Codec
from percoedge.runtime.demo import shipped_photo
from percoedge.runtime.metrics import ms_ssim, psnr_db

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


def test_streams_are_the_same(codecs: tuple[Codec, Codec], photo: Image.Image) -> None:
    fast, exact = codecs
    assert fast.encode(photo) == exact.encode(photo)


@pytest.mark.parametrize("settings", [{"steps": 1}, {"steps": 4}, {"steps": 3, "guidance": 2.0}])
def test_pictures_look_the_same(
    codecs: tuple[Codec, Codec], photo: Image.Image, settings: dict[str, float]
) -> None:
    data = codecs[0].encode(photo)
    fast, exact = (np.asarray(codec.decode(data, **settings)) for codec in codecs)  # type: ignore[arg-type]
    assert 38 < psnr_db(exact, fast) < np.inf
    original = np.asarray(photo)
    assert abs(psnr_db(original, exact) - psnr_db(original, fast)) < 0.1
    assert abs(ms_ssim(original, exact) - ms_ssim(original, fast)) < 0.002


def test_pictures_do_not_depend_on_their_batch(
    codecs: tuple[Codec, Codec], photo: Image.Image
) -> None:
    other = photo.transpose(Image.Transpose.ROTATE_180)
    streams = [codecs[0].encode(image) for image in (photo, other, photo)]
    alone = np.asarray(codecs[0].decode(streams[0]))
    for index in (0, 2):
        together = np.asarray(codecs[0].decode_batch(streams)[index])
        assert psnr_db(alone, together) > 40
