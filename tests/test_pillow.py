"""percoedge.pillow: Pillow opens and saves .pco files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

import percoedge.pillow
from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, Header, pack, unpack
from percoedge.errors import StreamError
from percoedge.runtime.codec import Codec

COLOUR = (10, 20, 30)


class FakeCodec:
    """Keeps the size and the caption only; every picture has one colour."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.decoded = 0

    def encode(self, image: Image.Image, **options: Any) -> bytes:
        self.options = options
        header = Header(image.width, image.height, caption=options.get("caption", ""))
        return pack(header, b"", b"fake")

    def decode(self, data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
        self.decoded += 1
        header = unpack(data).header
        if header.width * header.height > max_pixels:
            raise StreamError("too many pixels")
        return Image.new("RGB", (header.width, header.height), COLOUR)


@pytest.fixture
def codec() -> Iterator[FakeCodec]:
    fake = FakeCodec()
    percoedge.pillow.use_codec(cast(Codec, fake))
    yield fake
    percoedge.pillow.use_codec(None)


def test_save_and_open(codec: FakeCodec, tmp_path: Path) -> None:
    path = tmp_path / "a.pco"
    Image.new("RGB", (40, 30)).save(path, caption="a red barn", seed=7, quality=50)
    assert codec.options == {"caption": "a red barn", "seed": 7}
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("PCO", "RGB", (40, 30))
        assert image.get_format_mimetype() == "image/x-percoedge"
        assert image.info == {"caption": "a red barn"}
        assert codec.decoded == 0  # the header is enough until here
        assert (np.asarray(image) == COLOUR).all()
        assert image.getpixel((39, 29)) == COLOUR
        assert codec.decoded == 1


def test_streams(codec: FakeCodec) -> None:
    stream = io.BytesIO()
    Image.new("L", (3, 2)).save(stream, "PCO")
    assert codec.options == {}
    stream.seek(0)
    image = Image.open(stream)
    image.load()
    assert image.size == (3, 2)
    assert image.info == {}


def test_damaged_stream_is_named_as_such(codec: FakeCodec) -> None:
    data = bytearray(codec.encode(Image.new("RGB", (3, 2)), caption="words"))
    data[-1] ^= 1
    with pytest.raises(StreamError) as caught:
        Image.open(io.BytesIO(data))
    assert isinstance(caught.value, OSError)  # what callers of Pillow catch


def test_other_formats_still_open(codec: FakeCodec) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2)).save(stream, "PNG")
    stream.seek(0)
    assert Image.open(stream).format == "PNG"
    assert codec.decoded == 0


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_what_pillow_opens_can_be_loaded(codec: FakeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that counts is Pillow's own, Image.MAX_IMAGE_PIXELS."""
    width, height = DEFAULT_MAX_PIXELS // 8192 + 1, 8192
    data = pack(Header(width, height), b"", b"fake")
    with Image.open(io.BytesIO(data)) as image:
        assert image.getpixel((0, 0)) == COLOUR
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", DEFAULT_MAX_PIXELS // 2)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", DEFAULT_MAX_PIXELS - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        image = Image.open(io.BytesIO(data))
    assert image.getpixel((0, 0)) == COLOUR


def test_saving_takes_the_limit(codec: FakeCodec) -> None:
    Image.new("RGB", (3, 2)).save(io.BytesIO(), "PCO", max_pixels=6)
    assert codec.options == {"max_pixels": 6}
