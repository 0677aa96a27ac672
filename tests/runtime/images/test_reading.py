"""percoedge.runtime.images: any photo in, sRGB pixels out, and back to a file."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_SIDE
from percoedge.errors import ImageError, InputError, UsageError
from percoedge.runtime.images import read_image
from tests.runtime.images.image_files import (
    chunk,
    picture,
    png,
    png_header,
    saved,
    webp_header,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


class TestSources:
    @pytest.mark.parametrize(
        ("kind", "options", "tolerance"),
        [
            ("PNG", {}, 0),
            ("WEBP", {"lossless": True}, 0),
            ("JPEG", {"quality": 100, "subsampling": 0}, 4),
            ("AVIF", {"quality": 100, "subsampling": "4:4:4"}, 4),
        ],
    )
    def test_formats(self, kind: str, options: dict[str, Any], tolerance: int) -> None:
        photo = read_image(saved(picture(), kind, **options))
        assert photo.pixels.shape == (32, 48, 3)
        assert photo.pixels.dtype == np.uint8
        assert photo.pixels.flags.c_contiguous
        difference = np.abs(photo.pixels.astype(int) - np.asarray(picture()).astype(int))
        assert difference.max() <= tolerance
        assert photo.notes == ()

    def test_paths(self, tmp_path: Path) -> None:
        path = tmp_path / "a.dat"  # the contents decide, not the suffix
        path.write_bytes(saved(picture(), "PNG"))
        assert np.array_equal(read_image(path).pixels, np.asarray(picture()))
        assert np.array_equal(read_image(str(path)).pixels, np.asarray(picture()))

    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = io.TextIOWrapper(io.BytesIO(saved(picture(), "PNG")))
        monkeypatch.setattr(sys, "stdin", stream)
        assert np.array_equal(read_image("-").pixels, np.asarray(picture()))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no such file"):
            read_image(tmp_path / "nothing.png")

    def test_arrays(self) -> None:
        rgb = np.asarray(picture())
        grey = np.ascontiguousarray(rgb[:, :, 0])
        assert np.array_equal(read_image(rgb).pixels, rgb)
        assert np.array_equal(read_image(rgb[:, ::-1]).pixels, rgb[:, ::-1])
        for array in (grey, grey[:, :, None]):
            assert np.array_equal(read_image(array).pixels, np.stack([grey] * 3, axis=-1))
        clear = np.concatenate([rgb, np.zeros_like(rgb[:, :, :1])], axis=2)
        assert (read_image(clear).pixels == 255).all()

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((4, 4, 3), np.float32),
            np.zeros((4, 4, 3), np.uint16),
            np.zeros((4, 4, 2), np.uint8),
            np.zeros((4,), np.uint8),
            np.zeros((1, 4, 4, 3), np.uint8),
        ],
    )
    def test_other_arrays_are_refused(self, array: NDArray[Any]) -> None:
        with pytest.raises(ImageError, match="expected uint8 pixels of shape"):
            read_image(array)

    @pytest.mark.parametrize(
        ("source", "kind"),
        [
            (3, "int"),
            (None, "NoneType"),
            ([[1]], "list"),
            ((row for row in ()), "generator"),
            (np.ma.masked_array(np.zeros((4, 4), np.uint8)), "MaskedArray"),
        ],
    )
    def test_other_things_are_refused(self, source: Any, kind: str) -> None:
        with pytest.raises(UsageError, match=f"expected a path, bytes.* got {kind}$"):
            read_image(source)

    @pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
    def test_matrices_are_refused(self) -> None:
        with pytest.raises(UsageError, match="got matrix"):
            read_image(np.matrix([[1, 2]], dtype=np.uint8))

    @pytest.mark.parametrize("kind", [bytearray, memoryview, io.BytesIO])
    def test_bytes_in_other_wrappings(self, kind: Callable[[bytes], Any]) -> None:
        photo = read_image(kind(saved(picture(), "PNG")))
        assert np.array_equal(photo.pixels, np.asarray(picture()))

    @pytest.mark.parametrize("buffering", [-1, 0])
    def test_open_files_are_read_from_where_they_stand(
        self, tmp_path: Path, buffering: int
    ) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"prefix" + saved(picture(), "PNG"))
        with open(path, "rb", buffering=buffering) as file:
            file.seek(6)
            assert np.array_equal(read_image(file).pixels, np.asarray(picture()))
            assert not file.closed

    def test_files_opened_as_text_are_refused(self) -> None:
        with pytest.raises(UsageError, match="gives str; open it in binary mode"):
            read_image(io.StringIO("text"))  # type: ignore[arg-type]

    def test_memory_maps_are_arrays(self, tmp_path: Path) -> None:
        pixels = np.asarray(picture())
        pixels.tofile(tmp_path / "a.raw")
        mapped = np.memmap(tmp_path / "a.raw", np.uint8, "r", shape=pixels.shape)
        assert np.array_equal(read_image(mapped).pixels, pixels)

    def test_pillow_images_are_left_alone(self) -> None:
        image = picture().convert("RGBA")
        image.putalpha(0)
        read_image(image)
        assert image.mode == "RGBA"
        assert image.getpixel((0, 0)) == (0, 0, 0, 0)


class TestModes:
    def test_grey(self) -> None:
        grey = picture().convert("L")
        for source in (grey, saved(grey, "PNG"), saved(grey, "JPEG", quality=100)):
            pixels = read_image(source).pixels.astype(int)
            assert np.abs(pixels - np.asarray(grey)[:, :, None]).max() <= 2

    def test_bilevel(self) -> None:
        image = Image.new("1", (3, 2), 1)
        image.putpixel((2, 1), 0)
        for source in (image, saved(image, "PNG")):
            pixels = read_image(source).pixels
            assert pixels[0, 0].tolist() == [255] * 3
            assert pixels[1, 2].tolist() == [0] * 3

    def test_palette(self) -> None:
        image = Image.new("P", (4, 4), 1)
        image.putpalette([*BLUE, *GREEN])
        photo = read_image(saved(image, "PNG"))
        assert (photo.pixels == GREEN).all()
        assert photo.notes == ()

    def test_palette_with_a_clear_colour(self) -> None:
        image = Image.new("P", (4, 4), 1)
        image.putpalette([*BLUE, *GREEN])
        image.putpixel((0, 0), 0)
        photo = read_image(saved(image, "PNG", transparency=0))
        assert tuple(photo.pixels[0, 0]) == WHITE
        assert tuple(photo.pixels[1, 1]) == GREEN
        assert photo.notes == ("its transparent parts were laid on white",)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_alpha_on_white(self, kind: str) -> None:
        image = Image.new("RGBA", (4, 1))
        for x, alpha in enumerate((0, 85, 170, 255)):
            image.putpixel((x, 0), (*RED, alpha))
        photo = read_image(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert photo.pixels[0].tolist() == [[255, v, v] for v in (255, 170, 85, 0)]
        assert photo.notes == ("its transparent parts were laid on white",)

    @pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
    def test_other_alpha_modes(self, mode: str) -> None:
        photo = read_image(Image.new(mode, (2, 2)))  # black and fully transparent
        assert (photo.pixels == 255).all()

    def test_clear_colour_of_an_rgb_png(self) -> None:
        photo = read_image(saved(Image.new("RGB", (2, 2), RED), "PNG", transparency=RED))
        assert (photo.pixels == 255).all()

    def test_opaque_alpha_is_not_worth_a_note(self) -> None:
        photo = read_image(saved(picture().convert("RGBA"), "PNG"))
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        assert photo.notes == ()

    def test_cmyk(self) -> None:
        image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
        photo = read_image(saved(image, "JPEG", quality=100))
        assert np.abs(photo.pixels.astype(int) - RED).max() <= 3
        assert photo.notes == (
            "its CMYK colours were converted without a profile and are approximate",
        )

    def test_16_bit_grey_is_scaled(self) -> None:
        values = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], np.uint16)
        image = Image.fromarray(values)
        assert image.mode == "I;16"
        for source in (image, saved(image, "PNG")):
            photo = read_image(source)
            assert photo.pixels[0, :, 1].tolist() == [0, 0, 1, 1, 128, 254, 255]
            assert photo.notes == ("its 16-bit grey values were scaled to 8 bits",)

    @pytest.mark.parametrize("mode", ["F", "I"])
    def test_modes_without_agreed_colours_are_refused(self, mode: str) -> None:
        with pytest.raises(ImageError, match=f"mode '{mode}'"):
            read_image(Image.new(mode, (16, 16)))

    def test_other_colour_modes(self) -> None:
        colour = (255, 10, 30)
        for other in (Image.new("RGB", (2, 2), colour).convert(mode) for mode in ("YCbCr", "HSV")):
            assert np.abs(read_image(other).pixels.astype(int) - colour).max() <= 4
        white = Image.new("LAB", (2, 2), (255, 128, 128))
        assert read_image(white).pixels.min() >= 253


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_is_applied(self, orientation: int, kind: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.new("RGB", (32, 16), RED)
        stored.paste(BLUE, (0, 0, 16, 16))
        stored.paste(WHITE, (0, 0, 8, 8))  # marks the stored top left corner
        photo = read_image(saved(stored, kind, exif=exif.tobytes(), quality=95))
        height, width = (16, 32) if orientation < 5 else (32, 16)
        assert photo.pixels.shape == (height, width, 3)
        corners = {
            (2, 2): (1, 5),
            (2, width - 3): (2, 6),
            (height - 3, width - 3): (3, 7),
            (height - 3, 2): (4, 8),
        }
        white = [at for at in corners if photo.pixels[at].min() > 200]
        assert len(white) == 1
        assert orientation in corners[white[0]]
        assert bool(photo.notes) == (orientation != 1)

    def test_unknown_values_are_ignored(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 99
        photo = read_image(saved(picture(), "PNG", exif=exif.tobytes()))
        assert np.array_equal(photo.pixels, np.asarray(picture()))

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_broken_exif_is_ignored(self) -> None:
        photo = read_image(saved(picture(), "PNG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff\x01"))
        assert np.array_equal(photo.pixels, np.asarray(picture()))


class TestAnimations:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "MPO"])
    def test_first_frame(self, kind: str) -> None:
        frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
        photo = read_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert np.abs(photo.pixels.astype(int) - RED).max() <= 8
        assert photo.notes == ("only the first of its 3 pictures is used",)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "GIF", "TIFF"])
    def test_frame_that_the_caller_chose(self, kind: str) -> None:
        frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
        stream = io.BytesIO(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        with Image.open(stream) as image:
            image.seek(1)
            photo = read_image(image)
        assert np.abs(photo.pixels.astype(int) - GREEN).max() <= 8
        assert photo.notes == ("only number 2 of its 3 pictures is used",)


class TestSizes:
    @pytest.mark.parametrize("size", [(1, 1), (15, 1), (1, 4096), (MAX_SIDE, 2), (2, MAX_SIDE)])
    def test_accepted(self, size: tuple[int, int]) -> None:
        photo = read_image(saved(Image.new("RGB", size, RED), "PNG"))
        assert photo.pixels.shape == (size[1], size[0], 3)

    @pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
    def test_refused(self, size: tuple[int, int]) -> None:
        image = Image.new("RGB", size)
        for source in (image, saved(image, "PNG"), np.asarray(image)):
            with pytest.raises(ImageError, match="expected 1 to 16384 px a side"):
                read_image(source)

    @pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3)])
    def test_empty_arrays_are_refused(self, shape: tuple[int, int, int]) -> None:
        with pytest.raises(ImageError, match="expected 1 to 16384"):
            read_image(np.zeros(shape, np.uint8))
        with pytest.raises(ImageError, match="expected 1 to 16384"):
            read_image(Image.new("RGB", (shape[1], shape[0])))

    def test_huge_header_is_refused_before_its_pixels(self) -> None:
        with pytest.raises(ImageError, match="has 100000x100000 px"):
            read_image(png_header(100_000, 100_000))

    def test_no_warning_about_sizes_within_the_limit(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match="damaged or cut short"):
                read_image(png_header(MAX_SIDE, MAX_SIDE), max_pixels=MAX_SIDE**2)

    def test_photos_of_48_and_61_megapixels_are_within_the_limit(self) -> None:
        for size in ((8064, 6048), (9504, 6336)):
            with pytest.raises(ImageError, match="damaged or cut short"):
                read_image(png_header(*size))

    @pytest.mark.parametrize(
        ("width", "height"), [(MAX_SIDE, MAX_SIDE), (DEFAULT_MAX_PIXELS // 8192 + 1, 8192)]
    )
    def test_area_is_limited(self, width: int, height: int) -> None:
        for data in (png_header(width, height), webp_header(width, height)):
            with pytest.raises(
                ImageError, match=f"expected at most {DEFAULT_MAX_PIXELS}; allow more with max_pix"
            ):
                read_image(data)

    def test_area_of_everything_is_limited(self) -> None:
        image = picture(20, 10)
        kinds = ("PNG", "JPEG", "WEBP", "AVIF")
        sources = [image, np.asarray(image), np.asarray(image.convert("RGBA"))]
        for source in (*sources, *(saved(image, kind) for kind in kinds)):
            assert read_image(source, max_pixels=200).pixels.shape == (10, 20, 3)
            with pytest.raises(ImageError, match="20x10 px, 200 in all: expected at most 199"):
                read_image(source, max_pixels=199)

    @pytest.mark.parametrize("limit", [0, -1, 1.5, "many", None])
    def test_limits_that_are_none_are_refused(self, limit: Any) -> None:
        with pytest.raises(UsageError, match="expected max_pixels to be"):
            read_image(picture(), max_pixels=limit)

    def test_numpy_integers_are_limits(self) -> None:
        with pytest.raises(ImageError, match="at most 7;"):
            read_image(picture(), max_pixels=np.int64(7))  # type: ignore[arg-type]

    def test_what_decoders_refuse_is_noted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("percoedge.runtime.images.reading.DEFAULT_MAX_PIXELS", 199)
        grey = np.zeros((10, 20), np.uint8)
        for source in (grey, picture(20, 10), saved(picture(20, 10), "PNG")):
            assert read_image(source, max_pixels=200).notes == (
                "it has more than 199 px: decoding it needs max_pixels (--max-pixels 200)",
            )

    @pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")
    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    def test_no_memory_is_taken_for_what_is_refused(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "bomb"
        data = png_header(MAX_SIDE, MAX_SIDE)
        if kind == "JPEG":
            data = saved(picture(), "JPEG")
            at = data.index(b"\xff\xc0") + 5
            data = data[:at] + struct.pack(">HH", MAX_SIDE, MAX_SIDE) + data[at + 4 :]
        path.write_bytes(data)
        script = (
            "import resource, sys\n"
            "from percoedge.errors import ImageError\n"
            "from percoedge.runtime.images import read_image\n"
            "pages = int(open('/proc/self/statm').read().split()[0])\n"
            "limit = pages * resource.getpagesize() + (64 << 20)\n"
            "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
            "try:\n"
            "    read_image(sys.argv[1])\n"
            "except ImageError as error:\n"
            "    print(error)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, check=True, text=True
        )
        assert "16384x16384 px, 268435456 in all" in result.stdout


class TestLength:
    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device here")
    def test_a_device_is_refused_by_its_first_bytes(self) -> None:
        with pytest.raises(ImageError, match="/dev/zero cannot be read: .* begins with 00 00"):
            read_image("/dev/zero")

    def test_no_more_is_read_of_what_is_no_image(self) -> None:
        file = Endless(b"GIF89a")
        with pytest.raises(ImageError, match="got GIF"):
            read_image(file)
        assert file.given <= 4096

    def test_an_image_without_an_end_is_read_to_a_limit(self, monkeypatch: Any) -> None:
        monkeypatch.setattr("percoedge.runtime.images.reading.MAX_IMAGE_BYTES", 1 << 20)
        file = Endless(b"\x89PNG\r\n\x1a\n")
        with pytest.raises(InputError, match="the image is too long: expected at most 1048576"):
            read_image(file, max_pixels=100)
        assert file.given == (1 << 20) + 1


class Endless(io.RawIOBase):
    """A file that goes on for ever."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.given = 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0
        part = self.head[self.given :][:size].ljust(size, b"\0")
        self.given += size
        return part


class TestTransparentColours:
    """A colour of a PNG that is transparent (tRNS), in every depth that it may have."""

    @pytest.mark.parametrize(
        ("depth", "row", "clear"),
        [
            (1, b"\0\x40", 1),
            (2, b"\0\x30", 3),
            (2, b"\0\x10", 1),
            (4, b"\0\x05\x00", 5),
            (8, b"\0\x00\x4d\x00", 77),
            (16, b"\0\x00\x00\x80\x00\x80\x01", 0x8000),
        ],
    )
    def test_grey(self, depth: int, row: bytes, clear: int) -> None:
        """The second of three pixels has the colour."""
        colour = chunk(b"tRNS", clear.to_bytes(2, "big"))
        opaque = read_image(png(3, 1, depth, 0, row)).pixels
        photo = read_image(png(3, 1, depth, 0, row, colour))
        assert photo.pixels[0, 1].tolist() == [255] * 3
        assert np.array_equal(photo.pixels[0, ::2], opaque[0, ::2])
        assert opaque[0, ::2].max() < 255
        assert "its transparent parts were laid on white" in photo.notes

    def test_16_bit_colour(self) -> None:
        row = b"\0" + bytes(6) + b"\x12\x34\x56\x78\x9a\xbc"
        photo = read_image(png(2, 1, 16, 2, row, chunk(b"tRNS", row[7:])))
        assert photo.pixels[0].tolist() == [[0] * 3, [255] * 3]
        assert photo.notes == (
            "its transparent colour was compared by the upper 8 of its 16 bits",
            "its transparent parts were laid on white",
        )
