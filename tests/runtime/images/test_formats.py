"""Formats are known by their first bytes; those that cannot be read are called by their names."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from percoedge.errors import ImageError
from percoedge.runtime.images import read_image
from percoedge.runtime.images.tags import size_of_jxl, size_of_webp
from percoedge.signatures import format_name
from tests.runtime.images.image_files import picture, saved


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """The beginning of a TIFF file with these tags, types, counts and values."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(64)


def ftyp(major: bytes, *others: bytes) -> bytes:
    brands = major + bytes(4) + b"".join(others)
    return struct.pack(">I", len(brands) + 8) + b"ftyp" + brands


class TestNames:
    @pytest.mark.parametrize(
        ("head", "name", "advice"),
        [
            (b"GIF89a", "GIF", "save it as PNG or JPEG"),
            (b"BM\x36\0\0\0", "BMP", "save it as PNG or JPEG"),
            (b"%PDF-1.7", "PDF", "render a page"),
            (b'<svg xmlns="http://www.w3.org/2000/svg">', "SVG", "render it"),
            (b'<?xml version="1.0"?>\n<!-- a drawing -->\n<svg>', "SVG", "render it"),
            (b"\xef\xbb\xbf\r\n<!DOCTYPE html><html>", "HTML", "fetch the image itself"),
            (b"<HTML><body>404", "HTML", "fetch the image itself"),
            (tiff((0x100, 4, 1, 640)), "TIFF", "save it as"),
            (tiff((0xFE, 4, 1, 0), (0x10F, 2, 6, 90)), "TIFF", "save it as"),
            (tiff((0xC612, 1, 4, 0x0401)), r"Adobe raw \(DNG\)", "develop it"),
            (tiff((0xFE, 4, 1, 1), (0x10F, 2, 6, 90)), r"camera raw \(NEF", "develop it"),
            (b"II*\0\x10\0\0\0CR\x02\0", r"Canon raw \(CR2\)", "develop it"),
            (ftyp(b"crx ", b"crx ", b"isom"), r"Canon raw \(CR3\)", "develop it"),
            (b"FUJIFILMCCD-RAW 0201", r"Fujifilm raw \(RAF\)", "develop it"),
            (ftyp(b"isom", b"mp41"), "MP4 video", "save one picture"),
            (b"\x50\xc0\x01", "percoedge stream", "decode it"),
            (b"P6\n640 480\n255\n", "PPM", "save it as PNG or JPEG"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", "git lfs pull"),
            (b"Not found\r\n", "text", "is it the right file"),
            ("<3 für Fotos".encode(), "text", "is it the right file"),
            (b"\x00\x01\x02", "data that begins with 00 01 02", "convert it"),
            (b"", r"nothing \(0 bytes\)", "from its beginning"),
        ],
    )
    def test_error_says_what_it_is_and_what_to_do(
        self, head: bytes, name: str, advice: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "photo.jpg"  # the contents decide, not the suffix
        path.write_bytes(head)
        for source in (head, path):
            with pytest.raises(ImageError, match=f"cannot be read: .* got {name}.*; .*{advice}"):
                read_image(source)

    @pytest.mark.parametrize(
        ("kind", "name"), [("GIF", "GIF"), ("TIFF", "TIFF"), ("BMP", "BMP"), ("ICO", "icon (ICO)")]
    )
    def test_whole_files(self, kind: str, name: str) -> None:
        assert format_name(saved(picture(), kind)[:4096]) == name

    @pytest.mark.parametrize(
        ("brands", "name"),
        [
            ((b"avif", b"mif1", b"miaf"), "AVIF"),
            ((b"mif1", b"miaf", b"avif"), "AVIF"),
            ((b"avis", b"msf1", b"iso8"), "AVIF"),
            ((b"heic", b"mif1", b"heic"), "HEIC"),
            ((b"mif1", b"heic"), "HEIC"),
            ((b"msf1", b"hevc"), "HEIC"),
            ((b"qt  ",), "MP4 video"),
            ((b"what",), None),
        ],
    )
    def test_brands(self, brands: tuple[bytes, ...], name: str | None) -> None:
        assert format_name(ftyp(*brands)) == name


class TestPlugins:
    @pytest.mark.parametrize(
        ("head", "name", "module", "package"),
        [
            (ftyp(b"heic", b"mif1"), "HEIC", "pillow_heif", "pillow-heif"),
            (b"\xff\x0a", "JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
        ],
    )
    def test_missing_package_is_named(
        self, monkeypatch: pytest.MonkeyPatch, head: bytes, name: str, module: str, package: str
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
        for submodule in [name for name in sys.modules if name.startswith(f"{module}.")]:
            monkeypatch.delitem(sys.modules, submodule)
        with pytest.raises(
            ImageError, match=f"is a {name} image, .* run 'pip install {package}', or export"
        ):
            read_image(head)

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_heic(self, orientation: int) -> None:
        pytest.importorskip("pillow_heif").register_heif_opener()
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo = read_image(saved(picture(), "HEIF", quality=100, chroma=444, exif=exif.tobytes()))
        upright = np.rot90(picture(), -1 if orientation == 6 else 0)
        assert photo.pixels.shape == upright.shape
        assert np.abs(photo.pixels.astype(int) - upright).max() <= 6

    def test_jpeg_xl(self) -> None:
        pytest.importorskip("pillow_jxl")
        photo = read_image(saved(picture(), "JXL", lossless=True))
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        assert photo.notes == ()

    @pytest.mark.parametrize(
        "size", [(1, 1), (16, 8), (17, 300), (3, 600), (32, 18), (24, 20), (200, 100)]
    )
    def test_sizes_are_known_before_pixels_are_decoded(self, size: tuple[int, int]) -> None:
        image = Image.new("RGB", size)
        for lossless in (True, False):
            assert size_of_webp(saved(image, "WEBP", lossless=lossless)) == size
        clear = Image.new("RGBA", size, (1, 2, 3, 4))
        assert size_of_webp(saved(clear, "WEBP", lossless=False)) == size
        pytest.importorskip("pillow_jxl")
        for lossless in (True, False):
            data = saved(image, "JXL", lossless=lossless)
            assert size_of_jxl(data) == size
            assert read_image(data, max_pixels=size[0] * size[1]).pixels.shape[1::-1] == size

    def test_jpeg_xl_is_limited(self) -> None:
        pytest.importorskip("pillow_jxl")
        with pytest.raises(ImageError, match="48x32 px, 1536 in all: expected at most 1535"):
            read_image(saved(picture(), "JXL"), max_pixels=1535)


class TestJpeg:
    @pytest.mark.parametrize(
        ("marker", "bits", "name"),
        [
            (0xC1, 12, "12-bit JPEG"),
            (0xC2, 12, "12-bit JPEG"),
            (0xC3, 8, "lossless JPEG"),
            (0xF7, 8, "JPEG-LS"),
        ],
    )
    def test_kinds_that_pillow_does_not_read(self, marker: int, bits: int, name: str) -> None:
        data = bytearray(saved(picture(), "JPEG"))
        at = data.index(b"\xff\xc0")
        data[at + 1], data[at + 4] = marker, bits
        with pytest.raises(ImageError, match=f"is a {name}, which is not supported") as caught:
            read_image(bytes(data))
        assert "damaged" not in str(caught.value)

    def test_fill_bytes_before_markers(self) -> None:
        data = saved(picture(), "JPEG", quality=100, subsampling=0)
        at = data.index(b"\xff\xdb")
        photo = read_image(data[:at] + b"\xff\xff" + data[at:])
        assert np.abs(photo.pixels.astype(int) - np.asarray(picture())).max() <= 4


def test_stream_of_an_open_pillow_image_is_left_alone() -> None:
    stream = io.BytesIO(saved(picture(), "PNG"))
    image: Any = Image.open(stream)
    read_image(image)
    assert not stream.closed
