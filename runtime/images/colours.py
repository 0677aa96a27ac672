"""Colours: pixels of any ICC profile, PNG's colour chunks or code points become sRGB.

ICC profiles are converted by LittleCMS, through Pillow; the others by the published formulae of
percoedge.runtime.images.curves. Whether colours are sRGB's is found out by what the conversion does
to them, not by a name: names are many, and some lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from percoedge.runtime.images.curves import (
    ADOBE_RGB,
    PRIMARIES,
    REFERENCE_WHITE,
    TRANSFERS,
    Display,
    gamma_curve,
    srgb_curve,
    srgb_from_display,
)
from percoedge.runtime.images.tags import CodePoints

__all__ = ["Colours", "srgb_from_colours"]

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's mode -> ICC's colour space
_SAME = 2  # levels of 255 by which variants of the sRGB profile differ
_SRGB_GAMMA = 1 / 2.2
_NEAR = 0.05  # share by which a PNG's gamma may differ from sRGB's to mean it, as in libpng
_GAMMAS = (0.05, 20.0)
_NAMES = {1: "BT.709", 2: "BT.709", 9: "BT.2020", 11: "DCI P3", 12: "Display P3"}
_CURVES = {4: "gamma 2.2", 8: "linear light", 16: "PQ", 18: "HLG"}
_BRIGHTER = f"what is brighter than {REFERENCE_WHITE:.0f} cd/m2 was clipped"

Convert = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Colours:
    """What a file says of its colours; None or False where it says nothing.

    profile: an ICC profile. points: code points, which come before the profile with `points_first`
    (PNG) and after it without (AVIF, HEIC). srgb: PNG's sRGB chunk. gamma, chromaticities: PNG's
    gAMA (the exponent of the file, 0.45 for 1/2.2) and cHRM (x and y of white, red, green, blue).
    adobe_rgb: EXIF says "R03".
    """

    profile: bytes | None = None
    points: CodePoints | None = None
    points_first: bool = False
    srgb: bool = False
    gamma: float | None = None
    chromaticities: tuple[float, ...] | None = None
    adobe_rgb: bool = False


def srgb_from_colours(image: Image.Image, colours: Colours, notes: list[str]) -> Image.Image:
    """Return an "L", "RGB" or "CMYK" image as "RGB" in sRGB, and append to `notes` what was done.

    The first of what the file says that can be used decides; what cannot be is noted. Without any,
    grey and RGB are taken as sRGB and CMYK is converted by formula.
    """
    ways = [_by_profile, _by_points]
    for way in (*(ways[::-1] if colours.points_first else ways), _by_chunks, _by_exif):
        found = way(image.mode, colours, notes)
        if found is None:
            continue
        convert, what = found
        if not _changes_colours(convert, image.mode):
            break
        converted = convert(image)
        notes.append(f"its colours were converted from {what}")
        return converted
    else:
        if image.mode == "CMYK":
            notes.append("its CMYK colours were converted without a profile and are approximate")
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_profile(mode: str, colours: Colours, notes: list[str]) -> tuple[Convert, str] | None:
    if not colours.profile:
        return None
    try:
        from PIL import ImageCms  # here, for it takes time and Pillow may be built without it

        source = ImageCms.ImageCmsProfile(BytesIO(colours.profile))
        space = source.profile.xcolor_space.strip()
        if space == _SPACES[mode]:
            target = ImageCms.createProfile("sRGB")
            transform = ImageCms.buildTransform(source, target, mode, "RGB")
            return transform.apply, "its ICC profile to sRGB"
        notes.append(f"its ICC profile is for {space} pixels, not its own, and was ignored")
    except ImportError:
        notes.append("its ICC profile was ignored: this build of Pillow has no LittleCMS")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        notes.append("its ICC profile is broken and was ignored")
    return None


def _by_points(mode: str, colours: Colours, notes: list[str]) -> tuple[Convert, str] | None:
    points = colours.points
    if points is None or mode == "CMYK" or (points.primaries, points.transfer) == (2, 2):
        return None
    primaries = PRIMARIES.get(1 if points.primaries == 2 else points.primaries)
    transfer = TRANSFERS.get(points.transfer)
    name = _NAMES.get(points.primaries, f"primaries {points.primaries}")
    if transfer is not srgb_curve:
        name += f" with {_CURVES.get(points.transfer, f'transfer {points.transfer}')}"
    if primaries is None or transfer is None:
        notes.append(f"its colours, {name} by ITU-T H.273, cannot be converted and were left alone")
        return None
    values = np.arange(256) / 255
    if not points.full_range:
        values = np.clip((255 * values - 16) / 219, 0, 1)
    display = Display(transfer(values), primaries, hlg=points.transfer == 18)
    what = f"{name} to sRGB" + (f"; {_BRIGHTER}" if points.transfer in (16, 18) else "")
    return _converter(display), what


def _by_chunks(mode: str, colours: Colours, notes: list[str]) -> tuple[Convert, str] | None:
    if mode == "CMYK" or colours.srgb:
        return None
    gamma, white_first = colours.gamma, colours.chromaticities
    values = np.arange(256) / 255
    curve, primaries = srgb_curve(values), PRIMARIES[1]
    if gamma is not None and not _GAMMAS[0] <= gamma <= _GAMMAS[1]:
        notes.append(f"its gamma of {gamma} makes no sense and was ignored")
        gamma = None
    if white_first is not None:
        primaries = (*white_first[2:], *white_first[:2])
    same_primaries = bool(np.allclose(primaries, PRIMARIES[1], atol=0.002))
    if gamma is not None and not (same_primaries and abs(gamma / _SRGB_GAMMA - 1) < _NEAR):
        curve = gamma_curve(values, 1 / gamma)
    elif same_primaries:
        return None
    convert = _converter(Display(curve, primaries))
    try:
        convert(Image.new("RGB", (1, 1)))
    except ValueError as error:
        notes.append(f"its primaries make no sense ({error}) and were ignored")
        return _by_chunks(mode, Colours(gamma=gamma), notes)
    chunks = [name for name, value in (("gamma", gamma), ("primaries", white_first)) if value]
    return convert, f"the {' and '.join(chunks)} that it states to sRGB"


def _by_exif(mode: str, colours: Colours, notes: list[str]) -> tuple[Convert, str] | None:
    if not colours.adobe_rgb or colours.srgb or mode != "RGB":
        return None
    return _converter(ADOBE_RGB), "Adobe RGB, as its EXIF data says, to sRGB"


def _converter(display: Display) -> Convert:
    def convert(image: Image.Image) -> Image.Image:
        rgb = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
        return Image.fromarray(srgb_from_display(rgb, display))

    return convert


def _changes_colours(convert: Convert, mode: str) -> bool:
    """Tell whether a conversion to sRGB moves any colour of a probe visibly."""
    if mode == "CMYK":
        return True
    levels = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None, :])
    else:
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        probe = Image.fromarray(cube.reshape(levels.size, -1, 3))
    before = np.asarray(probe.convert("RGB"), dtype=np.int16)
    after = np.asarray(convert(probe), dtype=np.int16)
    return bool(np.abs(after - before).max() > _SAME)
