"""Hostile files: pixels or an ImageError, whatever Pillow raises or warns about.

Every test here turns warnings into errors, as ``python -W error`` does.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from percoedge.errors import ImageError
from percoedge.runtime.images import read_image
from percoedge.runtime.images.library import guarded
from tests.runtime.images.image_files import chunk, picture, png, saved, with_chunks

pytestmark = pytest.mark.filterwarnings("error")

KINDS = ["JPEG", "PNG", "WEBP", "AVIF"]
BROKEN_EXIF = b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01"


def corpus() -> dict[str, bytes]:
    """Small files with much in them that a decoder may stumble over."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8769)[0xA005] = {1: "R98"}
    palette = picture().quantize(16)

    def animated(kind: str) -> bytes:
        frames = [picture().rotate(angle) for angle in (90, 180)]
        return saved(picture(), kind, save_all=True, append_images=frames)

    files = {kind: saved(picture(), kind, exif=exif) for kind in KINDS}
    files |= {f"{kind} animated": animated(kind) for kind in KINDS[1:]}
    files |= {
        "JPEG progressive": saved(picture(), "JPEG", progressive=True),
        "JPEG CMYK": saved(picture().convert("CMYK"), "JPEG"),
        "MPO": animated("MPO"),
        "PNG palette": saved(palette, "PNG", transparency=bytes(range(16))),
        "PNG chunks": with_chunks(
            saved(picture().convert("LA"), "PNG"),
            chunk(b"gAMA", struct.pack(">I", 55_000)),
            chunk(b"cHRM", struct.pack(">8I", *[30_000, 32_000] * 4)),
            chunk(b"cICP", b"\x09\x10\0\1"),
            chunk(b"iCCP", b"name\0\0" + zlib.compress(b"profile" * 30)),
            chunk(b"zTXt", b"key\0\0" + zlib.compress(b"text" * 30)),
            chunk(b"eXIf", BROKEN_EXIF[6:]),
        ),
        "GIF": animated("GIF"),
        "TIFF": animated("TIFF"),
    }
    return files


CORPUS = corpus()


def check(data: bytes, kind: str) -> None:
    """Read a file, and for formats that only Pillow images may have, open it there first."""
    source: Any = data
    if kind.split()[0] in ("GIF", "TIFF"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source = Image.open(io.BytesIO(data))
        except Exception:  # Pillow's own matter
            return
    try:
        photo = read_image(source)
    except ImageError as error:
        assert "\n" not in str(error)
        return
    assert photo.pixels.dtype == np.uint8
    assert photo.pixels.shape[2:] == (3,)


class TestDamage:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
    @pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
    def test_truncated(self, kind: str, share: float) -> None:
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
        data = saved(Image.fromarray(noise), kind)
        with pytest.raises(ImageError):
            read_image(data[: int(len(data) * share)])

    @pytest.mark.parametrize("kind", CORPUS)
    def test_cut_anywhere(self, kind: str) -> None:
        data = CORPUS[kind]
        for end in range(0, len(data), max(1, len(data) // 200)):
            check(data[:end], kind)

    @settings(max_examples=150, deadline=None)
    @given(
        kind=st.sampled_from(sorted(CORPUS)),
        changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4))),
        cut=st.floats(0.5, 1),
    )
    def test_altered_anywhere(
        self, kind: str, changes: list[tuple[float, bytes]], cut: float
    ) -> None:
        data = bytearray(CORPUS[kind])
        for where, value in changes:
            at = int(where * len(data))
            data[at : at + len(value)] = value
        check(bytes(data[: round(cut * len(data))]), kind)

    @settings(max_examples=150, deadline=None)
    @given(
        kind=st.sampled_from([0, 2, 3, 4, 6]),
        depth=st.sampled_from([1, 2, 4, 8, 16]),
        parts=st.lists(
            st.tuples(
                st.sampled_from(
                    [b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"iCCP", b"eXIf"]
                    + [b"acTL", b"fcTL", b"fdAT", b"zTXt", b"iTXt", b"tEXt", b"pHYs", b"IHDR"]
                ),
                st.binary(max_size=40),
            ),
            max_size=4,
        ),
        rows=st.none() | st.binary(max_size=40),
    )
    def test_any_chunks_with_sound_checksums(
        self, kind: int, depth: int, parts: list[tuple[bytes, bytes]], rows: bytes | None
    ) -> None:
        if rows is None:  # as many bytes as the header asks for
            samples = 3 * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
            rows = bytes(2 * (1 + (samples * depth + 7) // 8))
        check(png(3, 2, depth, kind, rows, *(chunk(*part) for part in parts)), "PNG")

    def test_palette_png_without_palette(self) -> None:
        with pytest.raises(ImageError, match="damaged or cut short"):
            read_image(png(2, 1, 8, 3, b"\0\0\0"))

    @pytest.mark.parametrize(
        "error", [AssertionError(), KeyError("key"), RuntimeError("a\nb"), struct.error("bad")]
    )
    def test_whatever_is_raised_is_one_line(self, error: Exception) -> None:
        class Hostile(Image.Image):
            def load(self) -> Any:
                raise error

        image = Hostile()
        image._size, image._mode = (2, 2), "RGB"
        with pytest.raises(ImageError, match=r"^the image is damaged or cut short \(.+\)[^\n]*$"):
            read_image(image)

    def test_short_memory_is_not_damage(self) -> None:
        with pytest.raises(MemoryError), guarded("the image"):
            raise MemoryError


class TestWarnings:
    def test_none_leak_and_none_change_the_result(self) -> None:
        """Corrupt EXIF and a wrong acTL chunk, of both of which Pillow warns."""
        sound = saved(picture(), "PNG")
        for data in (
            saved(picture(), "PNG", exif=BROKEN_EXIF),
            with_chunks(sound, chunk(b"acTL", bytes(8))),
        ):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                quiet = read_image(data)
            assert caught == []
            assert np.array_equal(quiet.pixels, np.asarray(picture()))
            strict = read_image(data)
            assert np.array_equal(strict.pixels, quiet.pixels)
            assert strict.notes == quiet.notes

    def test_filters_are_as_before_when_threads_are_done(self) -> None:
        before = list(warnings.filters)
        entered, leave = threading.Barrier(3), threading.Barrier(3)

        def read() -> None:
            with guarded("the image"):
                entered.wait()
                leave.wait()

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        entered.wait()
        leave.wait()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before

    def test_warnings_of_others_are_theirs(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with guarded("the image"):
                warnings.warn("mine", UserWarning, stacklevel=1)
        assert [str(warning.message) for warning in caught] == ["mine"]


@pytest.mark.parametrize("size", [12, 16, 20, 29])
def test_a_webp_cut_in_its_header_is_called_cut(size: int) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (40, 30)).save(whole, "WEBP")
    with pytest.raises(ImageError, match="damaged or cut short"):
        read_image(whole.getvalue()[:size])
