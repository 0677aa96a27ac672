"""percoedge.runtime.images: any photo in, sRGB pixels out, and back to a file."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from percoedge.bitstream.container import MAX_SIDE
from percoedge.errors import ImageError, InputError, OutputError, UsageError
from percoedge.runtime.images import format_of, read_image, write_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture without symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (255 * x // width, 255 * y // height, 255 * (x + y) // (width + height))
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of any size that ends where its pixels would begin."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")


def gamma_profile(space: bytes, gamma: float) -> bytes:
    """A small ICC version 2 display profile: sRGB's colours, or grey, with another gamma."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"test gamma\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(79),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
    }
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        tags[b"rXYZ"] = xyz(0.4361, 0.2225, 0.0139)
        tags[b"gXYZ"] = xyz(0.3851, 0.7169, 0.0971)
        tags[b"bXYZ"] = xyz(0.1431, 0.0606, 0.7141)
        tags[b"rTRC"] = tags[b"gTRC"] = tags[b"bTRC"] = curve
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        offset = 128 + 4 + 12 * len(tags) + len(body)
        table += tag + struct.pack(">II", offset, len(data))
        body += data
    header = struct.pack(
        ">I4s4s4s4s4s", 132 + len(body), b"", b"\2\x20\0\0", b"mntr", space, b"XYZ "
    )
    header += bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    whole = header.ljust(128, b"\0") + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


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

    def test_other_things_are_refused(self) -> None:
        with pytest.raises(UsageError, match="got int"):
            read_image(3)  # type: ignore[arg-type]

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


class TestProfiles:
    def test_srgb_changes_nothing(self) -> None:
        for icc in (SRGB, None):
            photo = read_image(saved(picture(), "PNG", icc_profile=icc))
            assert np.array_equal(photo.pixels, np.asarray(picture()))
            assert photo.notes == ()

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
    def test_other_profiles_are_converted(self, kind: str) -> None:
        image = Image.new("RGB", (16, 16), (128, 128, 128))
        photo = read_image(saved(image, kind, icc_profile=gamma_profile(b"RGB ", 1.0)))
        assert np.abs(photo.pixels.astype(int) - 188).max() <= 2  # linear 0.5 is 188 in sRGB
        assert photo.notes == ("its colours were converted from its ICC profile to sRGB",)

    def test_grey_profile(self) -> None:
        image = Image.new("L", (16, 16), 128)
        photo = read_image(saved(image, "PNG", icc_profile=gamma_profile(b"GRAY", 1.0)))
        assert np.abs(photo.pixels.astype(int) - 188).max() <= 2
        assert photo.notes == ("its colours were converted from its ICC profile to sRGB",)

    def test_grey_profile_with_alpha(self) -> None:
        image = Image.new("LA", (16, 16), (128, 255))
        photo = read_image(saved(image, "PNG", icc_profile=gamma_profile(b"GRAY", 1.0)))
        assert np.abs(photo.pixels.astype(int) - 188).max() <= 2

    def test_palette_and_alpha_are_converted(self) -> None:
        icc = gamma_profile(b"RGB ", 1.0)
        image = Image.new("RGBA", (2, 1), (128, 128, 128, 255))
        image.putpixel((1, 0), (128, 128, 128, 0))
        photo = read_image(saved(image, "PNG", icc_profile=icc))
        assert abs(int(photo.pixels[0, 0, 0]) - 188) <= 2
        assert tuple(photo.pixels[0, 1]) == WHITE
        palette = Image.new("P", (1, 1), 0)
        palette.putpalette([128, 128, 128])
        photo = read_image(saved(palette, "PNG", icc_profile=icc))
        assert abs(int(photo.pixels[0, 0, 0]) - 188) <= 2

    @pytest.mark.parametrize("icc", [b"nonsense", SRGB[:200], bytes(200)])
    def test_broken_profile_is_ignored(self, icc: bytes) -> None:
        photo = read_image(saved(picture(), "PNG", icc_profile=icc))
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        assert photo.notes == ("its ICC profile is broken and was ignored",)

    def test_profile_for_other_pixels_is_ignored(self) -> None:
        photo = read_image(saved(picture().convert("L"), "PNG", icc_profile=SRGB))
        assert np.array_equal(photo.pixels[:, :, 0], np.asarray(picture().convert("L")))
        assert photo.notes == ("its ICC profile is for RGB pixels, not its own, and was ignored",)


class TestAnimations:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "MPO"])
    def test_first_frame(self, kind: str) -> None:
        frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
        photo = read_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert np.abs(photo.pixels.astype(int) - RED).max() <= 8
        assert photo.notes == ("only the first of its 3 pictures is used",)


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
                read_image(png_header(MAX_SIDE, MAX_SIDE))


class TestDamage:
    @pytest.mark.parametrize("data", [b"", b"\x00", b"not an image", b"GIF89a", b"%PDF-1.7"])
    def test_other_data_is_refused(self, data: bytes) -> None:
        with pytest.raises(ImageError, match="expected JPEG, PNG, WebP or AVIF"):
            read_image(data)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
    @pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
    def test_truncated(self, kind: str, share: float) -> None:
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
        data = saved(Image.fromarray(noise), kind)
        with pytest.raises(ImageError):
            read_image(data[: int(len(data) * share)])

    @settings(max_examples=150, deadline=None)
    @given(
        kind=st.sampled_from(["JPEG", "PNG", "WEBP", "AVIF"]),
        changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))),
    )
    @pytest.mark.filterwarnings("ignore")
    def test_altered_files_give_pixels_or_an_image_error(
        self, kind: str, changes: list[tuple[float, int]]
    ) -> None:
        data = bytearray(saved(picture(), kind))
        for where, value in changes:
            data[int(where * len(data))] = value
        try:
            photo = read_image(bytes(data))
        except ImageError:
            return
        assert photo.pixels.dtype == np.uint8
        assert photo.pixels.shape[2:] == (3,)


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
        with pytest.raises(OutputError, match="at most 16383 px a side, got 16384x1"):
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
