"""Colours: profiles, PNG's chunks and code points become sRGB.

The conversions expected here are made the other way round, from sRGB, with formulae and matrices
as their standards print them; the code under test derives its own from primaries.
"""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from percoedge.runtime.images import read_image
from percoedge.runtime.images.tags import CodePoints, code_points_of_avif, code_points_of_png
from tests.runtime.images.image_files import (
    SRGB,
    chunk,
    gamma_profile,
    picture,
    png,
    saved,
    with_chunks,
)

WHITE = (255, 255, 255)
Floats = NDArray[np.float64]

# Linear sRGB to linear RGB of others, D65 both: ITU-R BT.2087 (its M2 inverted) and CSS Color 4.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
TO_P3 = np.array([[0.82246, 0.17754, 0.0], [0.03319, 0.96681, 0.0], [0.01708, 0.07240, 0.91052]])
TO_ADOBE = np.array([[0.71513, 0.28487, 0.0], [0.0, 1.0, 0.0], [0.0, 0.04117, 0.95883]])


def linear(image: Image.Image) -> Floats:
    values = np.asarray(image) / 255
    light: Floats = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return light


def srgb(light: Floats) -> Floats:
    values: Floats = np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055
    )
    return values


def pq(nits: Floats) -> Floats:
    """SMPTE ST 2084, the inverse EOTF."""
    y = (np.maximum(nits, 0) / 10_000) ** 0.1593017578125
    values: Floats = ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    return values


def hlg(scene: Floats) -> Floats:
    """ITU-R BT.2100, the OETF."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    with np.errstate(invalid="ignore"):
        values: Floats = np.where(
            scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(12 * scene - b) + c
        )
    return values


def hlg_scene(light: Floats) -> Floats:
    """Scene light of display light (1 is 203 cd/m2) at a peak of 1,000: the inverse OOTF."""
    display = light * 0.203
    y = np.maximum(display @ np.array([0.2627, 0.6780, 0.0593]), 1e-9)
    scene: Floats = display * (y ** ((1 - 1.2) / 1.2))[..., None]
    return scene


def levels(values: Floats) -> Image.Image:
    return Image.fromarray(np.round(255 * np.clip(values, 0, 1)).astype(np.uint8))


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(*white_red_green_blue: float) -> bytes:
    values = [round(value * 100_000) for value in white_red_green_blue]
    return chunk(b"cHRM", struct.pack(">8I", *values))


SRGB_CHUNK = chunk(b"sRGB", b"\0")
D65 = (0.3127, 0.3290)
ADOBE = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3 = (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
BT709 = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def nclx(data: bytes, primaries: int, transfer: int) -> bytes:
    """An AVIF or HEIC file with other code points; both files of Pillow have one nclx box."""
    at = data.index(b"nclx") + 4
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


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

    def test_a_profile_that_cannot_be_unpacked_is_noted(self) -> None:
        data = with_chunks(saved(picture(), "PNG"), chunk(b"iCCP", b"a\0\0not deflated"))
        photo = read_image(data)
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        assert photo.notes == ("its ICC profile is broken and was ignored",)

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


class TestCodePoints:
    @pytest.mark.parametrize(
        ("primaries", "transfer", "encode"),
        [
            (9, 13, lambda light: srgb(light @ TO_BT2020.T)),
            (12, 13, lambda light: srgb(light @ TO_P3.T)),
            (1, 8, lambda light: light),
            (1, 4, lambda light: light ** (1 / 2.2)),
            (12, 8, lambda light: light @ TO_P3.T),
        ],
    )
    def test_round_trip(self, primaries: int, transfer: int, encode: Any) -> None:
        """What sRGB becomes in wide gamut comes back; linear light has few dark levels."""
        stored = levels(encode(linear(picture())))
        photo = read_image(with_chunks(saved(stored, "PNG"), cicp(primaries, transfer)))
        error = np.abs(photo.pixels.astype(int) - np.asarray(picture()))
        bright = np.asarray(picture()) >= (48 if transfer == 8 else 16)
        assert np.percentile(error[bright], 99) <= (6 if transfer == 8 else 3)
        assert error.mean() <= (3 if transfer == 8 else 0.7)
        (note,) = photo.notes
        assert note.startswith("its colours were converted from ")
        assert note.endswith(" to sRGB")

    @pytest.mark.parametrize(
        ("transfer", "name", "encode"),
        [
            (16, "PQ", lambda light: pq(203 * light @ TO_BT2020.T)),
            (18, "HLG", lambda light: hlg(hlg_scene(light @ TO_BT2020.T))),
        ],
    )
    def test_high_dynamic_range(self, transfer: int, name: str, encode: Any) -> None:
        """Colours up to the reference white come back; eight bits of PQ are coarse."""
        stored = levels(encode(linear(picture())))
        photo = read_image(with_chunks(saved(stored, "PNG"), cicp(9, transfer)))
        error = np.abs(photo.pixels.astype(int) - np.asarray(picture()))
        assert np.percentile(error[np.asarray(picture()) >= 64], 99) <= 6
        assert error.mean() <= 2
        assert photo.notes == (
            f"its colours were converted from BT.2020 with {name} to sRGB; "
            "what is brighter than 203 cd/m2 was clipped",
        )

    @pytest.mark.parametrize(
        ("transfer", "value", "expected"),
        [
            (16, 148, 255),  # PQ of 203 cd/m2 is 0.581, ITU-R BT.2408 table 1
            (16, 255, 255),
            (16, 130, 188),  # 0.51 is about 100 cd/m2, half the light of white
            (18, 191, 255),  # HLG of the reference white is 0.75
            (18, 255, 255),
            (16, 0, 0),
            (18, 0, 0),
        ],
    )
    def test_known_levels(self, transfer: int, value: int, expected: int) -> None:
        grey = saved(Image.new("RGB", (4, 4), (value,) * 3), "PNG")
        photo = read_image(with_chunks(grey, cicp(9, transfer)))
        assert np.abs(photo.pixels.astype(int) - expected).max() <= 3

    @pytest.mark.parametrize("points", [(1, 13), (1, 1), (1, 6), (2, 2), (1, 2)])
    def test_srgb_by_code_points_changes_nothing(self, points: tuple[int, int]) -> None:
        photo = read_image(with_chunks(saved(picture(), "PNG"), cicp(*points)))
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        assert photo.notes == ()

    @pytest.mark.parametrize("points", [(200, 13), (1, 9)])
    def test_unknown_code_points_are_noted(self, points: tuple[int, int]) -> None:
        photo = read_image(with_chunks(saved(picture(), "PNG"), cicp(*points)))
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        (note,) = photo.notes
        assert note.endswith("by ITU-T H.273, cannot be converted and were left alone")

    def test_narrow_range(self) -> None:
        grey = saved(Image.new("L", (2, 1)), "PNG")
        for value, expected in ((16, 0), (235, 255), (0, 0), (255, 255), (126, 128)):
            grey = saved(Image.new("L", (2, 1), value), "PNG")
            pixels = read_image(with_chunks(grey, cicp(1, 13, full=0))).pixels
            assert np.abs(pixels.astype(int) - expected).max() <= 1

    def test_alpha_stays(self) -> None:
        image = Image.new("RGBA", (2, 1), (128, 128, 128, 255))
        image.putpixel((1, 0), (128, 128, 128, 0))
        photo = read_image(with_chunks(saved(image, "PNG"), cicp(1, 8)))
        assert abs(int(photo.pixels[0, 0, 0]) - 188) <= 1
        assert tuple(photo.pixels[0, 1]) == WHITE

    @pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
    def test_nclx(self, kind: str) -> None:
        if kind == "HEIF":
            pytest.importorskip("pillow_heif").register_heif_opener()
        stored = levels(srgb(linear(picture()) @ TO_P3.T))
        data = nclx(saved(stored, kind, quality=100), 12, 13)
        photo = read_image(data)
        assert np.abs(photo.pixels.astype(int) - np.asarray(picture())).mean() <= 3
        plain = np.abs(np.asarray(stored).astype(int) - np.asarray(picture())).mean()
        assert plain > 4  # what not to convert would cost
        assert photo.notes == ("its colours were converted from Display P3 to sRGB",)

    def test_nclx_of_avif_is_that_of_the_primary_image(self) -> None:
        data = nclx(saved(picture(), "AVIF"), 9, 16)
        assert code_points_of_avif(data) == CodePoints(9, 16)
        sequence = saved(picture(), "AVIF", save_all=True, append_images=[picture()])
        assert code_points_of_avif(sequence) == CodePoints(1, 13)

    def test_damaged_headers_say_nothing(self) -> None:
        avif, sound = saved(picture(), "AVIF"), with_chunks(saved(picture(), "PNG"), cicp(9, 16))
        assert code_points_of_png(sound) == CodePoints(9, 16)
        for cut in range(0, 300):
            code_points_of_avif(avif[:cut])
            with contextlib.suppress(ValueError):
                assert code_points_of_png(sound[:cut]) in (None, CodePoints(9, 16))
        assert code_points_of_png(sound[:8] + b"\xff" * 64) is None
        loop = b"\0\0\0\0meta" * 20_000  # boxes that have no end of their own
        assert code_points_of_avif(loop) is None

    @pytest.mark.parametrize("body", [b"", b"\1", bytes([9, 16, 1, 1]), bytes([9, 16, 0, 1, 0])])
    def test_a_broken_cicp_is_named_and_ignored(self, body: bytes) -> None:
        photo = read_image(with_chunks(saved(picture(), "PNG"), chunk(b"cICP", body)))
        assert photo.notes == ("its colours (cICP) are broken and were ignored",)
        assert (photo.pixels == read_image(saved(picture(), "PNG")).pixels).all()


class TestChunks:
    @pytest.mark.parametrize(
        ("chunks", "encode"),
        [
            ((gama(1.0),), lambda light: light),
            ((gama(1 / 1.8),), lambda light: light ** (1 / 1.8)),
            ((chrm(*P3),), lambda light: srgb(light @ TO_P3.T)),
            (
                (gama(256 / 563), chrm(*ADOBE)),
                lambda light: (light @ TO_ADOBE.T) ** (256 / 563),
            ),
        ],
    )
    def test_round_trip(self, chunks: tuple[bytes, ...], encode: Any) -> None:
        stored = levels(encode(linear(picture())))
        photo = read_image(with_chunks(saved(stored, "PNG"), *chunks))
        error = np.abs(photo.pixels.astype(int) - np.asarray(picture()))
        assert error[np.asarray(picture()) >= 48].max() <= 6
        assert error.mean() <= 3
        (note,) = photo.notes
        assert note.startswith("its colours were converted from the ")

    @pytest.mark.parametrize(
        "chunks",
        [
            (gama(0.45455),),  # what means sRGB, and is not its curve in the dark
            (gama(0.45455), chrm(*BT709)),
            (chrm(*BT709),),
            (SRGB_CHUNK, gama(1.0), chrm(*P3)),
        ],
    )
    def test_srgb_changes_nothing(self, chunks: tuple[bytes, ...]) -> None:
        photo = read_image(with_chunks(saved(picture(), "PNG"), *chunks))
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        assert photo.notes == ()

    @pytest.mark.parametrize(
        ("bad", "note"),
        [
            (gama(0), "its gamma of 0.0 makes no sense and was ignored"),
            (gama(30_000), "its gamma of 30000.0 makes no sense and was ignored"),
            (chrm(*D65, *[0.3] * 6), "its primaries make no sense"),
            (chrm(*[0.0] * 8), "its primaries make no sense"),
            (chrm(0.9, 0.05, *BT709[2:]), "its primaries make no sense"),
        ],
    )
    def test_nonsense_is_noted(self, bad: bytes, note: str) -> None:
        photo = read_image(with_chunks(saved(picture(), "PNG"), bad))
        assert np.array_equal(photo.pixels, np.asarray(picture()))
        assert [text.startswith(note) for text in photo.notes] == [True]

    def test_grey_of_16_bits(self) -> None:
        half = png(1, 1, 16, 0, b"\0\x80\0", gama(1.0))
        photo = read_image(half)
        assert np.abs(photo.pixels.astype(int) - 188).max() <= 1

    def test_order(self) -> None:
        """PNG, third edition, 4.3: cICP, then iCCP, then sRGB, then gAMA and cHRM."""
        image = Image.new("RGB", (2, 2), (128, 128, 128))
        dark, linear_profile = chunk(b"cICP", b"\1\5\0\1"), gamma_profile(b"RGB ", 1.0)
        plain, profiled = saved(image, "PNG"), saved(image, "PNG", icc_profile=linear_profile)
        found = {
            name: int(read_image(data).pixels[0, 0, 0])
            for name, data in {
                "cICP": with_chunks(profiled, dark, SRGB_CHUNK, gama(0.8)),
                "iCCP": with_chunks(profiled, SRGB_CHUNK, gama(0.8)),
                "sRGB": with_chunks(plain, SRGB_CHUNK, gama(0.8)),
                "gAMA": with_chunks(plain, gama(0.8)),
            }.items()
        }
        # 0.502 to the power of 2.8, 1 and 1/0.8, and as it is, in sRGB
        expected = {"cICP": 108, "iCCP": 188, "sRGB": 128, "gAMA": 173}
        assert all(abs(found[name] - expected[name]) <= 2 for name in found), found

    def test_profiles_come_before_code_points_in_avif(self) -> None:
        image = Image.new("RGB", (64, 64), (128, 128, 128))
        data = saved(image, "AVIF", quality=100, icc_profile=gamma_profile(b"RGB ", 1.0))
        if b"nclx" in data:
            data = nclx(data, 1, 5)
        pixels = read_image(data).pixels
        assert np.abs(pixels.astype(int) - 188).max() <= 2


class TestExif:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_adobe_rgb_by_exif_alone(self, kind: str) -> None:
        """Cameras say so by DCF's "R03", without a profile."""
        stored = levels((linear(picture()) @ TO_ADOBE.T) ** (256 / 563))
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
        exact: dict[str, dict[str, Any]] = {
            "JPEG": {"quality": 100, "subsampling": 0},
            "PNG": {},
            "WEBP": {"lossless": True},
        }
        photo = read_image(saved(stored, kind, exif=exif.tobytes(), **exact[kind]))
        error = np.abs(photo.pixels.astype(int) - np.asarray(picture()))
        assert error.mean() <= 1.5
        assert photo.notes == (
            "its colours were converted from Adobe RGB, as its EXIF data says, to sRGB",
        )


def test_pillow_images_are_converted_by_their_info() -> None:
    stored = with_chunks(saved(Image.new("RGB", (2, 2), (128,) * 3), "PNG"), gama(1.0))
    with Image.open(io.BytesIO(stored)) as image:
        assert np.abs(read_image(image).pixels.astype(int) - 188).max() <= 1
