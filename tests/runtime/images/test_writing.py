"""percoedge.runtime.images.writing: pixels become PNG, JPEG or WebP files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import MAX_SIDE
from percoedge.errors import ImageError, OutputError, UsageError
from percoedge.runtime.images import (
    WRITE_SUFFIXES,
    format_of,
    read_image,
    suffix_of,
    write_image,
)
from tests.runtime.images.image_files import picture


class TestWriteImage:
    @pytest.mark.parametrize(
        ("name", "kind", "tolerance"),
        [
            ("a.png", "PNG", 0),
            ("a.jpg", "JPEG", 8),
            ("a.JPEG", "JPEG", 8),
            ("a.webp", "WEBP", 24),
        ],
    )
    def test_suffix_decides(self, tmp_path: Path, name: str, kind: str, tolerance: int) -> None:
        pixels = np.asarray(picture())
        write_image(pixels, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == kind
            assert np.abs(np.asarray(image).astype(int) - pixels).max() <= tolerance

    def test_format_given_wins(self, tmp_path: Path) -> None:
        write_image(np.asarray(picture()), tmp_path / "a.png", "jpg")
        with Image.open(tmp_path / "a.png") as image:
            assert image.format == "JPEG"

    @pytest.mark.parametrize(("given", "kind"), [(None, "PNG"), ("png", "PNG"), ("webp", "WEBP")])
    def test_streams(self, given: str | None, kind: str) -> None:
        stream = io.BytesIO()
        write_image(np.asarray(picture()), stream, given)
        with Image.open(stream) as image:
            assert image.format == kind

    def test_standard_output(self, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
        write_image(np.asarray(picture()), "-")
        pixels = read_image(capsysbinary.readouterr().out).pixels
        assert np.array_equal(pixels, np.asarray(picture()))

    def test_unknown_formats(self, tmp_path: Path) -> None:
        pixels = np.asarray(picture())
        with pytest.raises(UsageError, match="expected a name that ends in"):
            write_image(pixels, tmp_path / "a.tiff")
        with pytest.raises(UsageError, match="choose PNG, JPEG or WEBP"):
            write_image(pixels, tmp_path / "a.png", "tiff")
        assert format_of("x.jpeg") == "JPEG"

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 3), np.float32),
            np.zeros((0, 4, 3), np.uint8),
        ],
    )
    def test_other_arrays_are_refused(self, tmp_path: Path, array: NDArray[Any]) -> None:
        with pytest.raises(UsageError, match="expected uint8 pixels"):
            write_image(array, tmp_path / "a.png")

    def test_webp_limit(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="at most 16383 px a side, got 16384x1"):
            write_image(np.zeros((1, MAX_SIDE, 3), np.uint8), tmp_path / "a.webp")

    def test_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="directory does not exist"):
            write_image(np.asarray(picture()), tmp_path / "no" / "a.png")

    def test_failing_stream(self) -> None:
        class Full(io.BytesIO):
            def write(self, data: object) -> int:
                raise OSError("disk full")

        with pytest.raises(OutputError, match="disk full"):
            write_image(np.asarray(picture()), Full())

    def test_pillow_images_are_written_as_they_are(self, tmp_path: Path) -> None:
        write_image(picture(), tmp_path / "a.png")
        assert np.array_equal(read_image(tmp_path / "a.png").pixels, np.asarray(picture()))

    @pytest.mark.parametrize("image", [Image.new("RGBA", (2, 2)), Image.new("RGB", (0, 2))])
    def test_other_pillow_images_are_refused(self, tmp_path: Path, image: Image.Image) -> None:
        with pytest.raises(UsageError, match="expected an image of mode 'RGB', got"):
            write_image(image, tmp_path / "a.png")


def test_suffixes_belong_to_formats() -> None:
    assert [suffix_of(kind) for kind in ("PNG", "JPEG", "WEBP")] == [".png", ".jpg", ".webp"]
    assert all(format_of(f"a{suffix}") == kind for suffix, kind in WRITE_SUFFIXES.items())
