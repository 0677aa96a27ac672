"""Images in: whatever holds one becomes sRGB pixels, 8 bits, upright, opaque.

Everything that changes what a person sees is named in the notes. Limits are checked on the header,
before pixels are decoded: sides of 1 to `MAX_SIDE` px as in the stream format, and an area that
callers choose. This module knows nothing of models; padding to their stride is the codec's work.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_SIDE
from percoedge.errors import ImageError, UsageError
from percoedge.runtime.files import ByteSource, is_byte_source, read_bytes, source_name
from percoedge.runtime.images.colours import Colours, srgb_from_colours
from percoedge.runtime.images.formats import check_head, open_image
from percoedge.runtime.images.library import guarded
from percoedge.runtime.images.tags import CodePoints, code_points_of_avif, code_points_of_png

__all__ = ["MAX_IMAGE_BYTES", "Photo", "Source", "read_image"]

Source: TypeAlias = "ByteSource | Image.Image | NDArray[np.uint8]"
"""What `read_image` takes: a path or ``-``, bytes, an open file, a Pillow image, or an array."""

MAX_IMAGE_BYTES = 4 * DEFAULT_MAX_PIXELS
"""Longest file that is read, 256 MiB: the largest image with four bytes a pixel, not compressed.

Where more pixels are allowed, so are four times as many bytes.
"""

_INTEROPERABILITY_IFD, _ORIENTATION_TAG = 0xA005, 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # of a PNG's samples, by the raw mode of its pixels


@dataclass(frozen=True)
class Photo:
    """A photo as the models take it.

    pixels: uint8 (H, W, 3), sRGB, contiguous, perhaps read-only; H and W are 1 to `MAX_SIDE`.
    notes: sentences for the user about what was changed or left out; empty when nothing was.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


def read_image(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Photo:
    """Read an image from a path, ``-`` (standard input), bytes, a file, a Pillow image or an array.

    Files may be JPEG, PNG, WebP or AVIF, and HEIC or JPEG XL where Pillow's plugins for these are
    installed; one that is open, in binary mode, is read from where it stands. Pillow images may be
    of any format. Arrays are uint8 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), in sRGB.

    Greyscale, palette and CMYK become RGB, 16-bit grey is scaled to 8 bits, alpha is laid on white,
    EXIF orientation is applied, and of several pictures the first is taken. Colours become sRGB, by
    an ICC profile, code points (cICP, nclx), or gamma and primaries; of a Pillow image only those
    that its ``info`` tells. Sides are 1 to `MAX_SIDE` pixels, the area at most `max_pixels`.

    Raises ImageError for what is no such image, InputError for a file that cannot be read, and
    UsageError for sources of other types.
    """
    limit = _limit(max_pixels)
    if isinstance(source, Image.Image):
        with guarded("the image"):
            _check_size(source.width, source.height, "the image", limit)
            return _photo_from_pillow(source, "the image")
    if type(source) in (np.ndarray, np.memmap):
        return _photo_from_array(np.asarray(source), limit)
    if not is_byte_source(source):
        raise UsageError(
            f"expected a path, bytes, a file, a Pillow image or a numpy array, got "
            f"{type(source).__name__}"
        )
    name = source_name(source, "the image")
    with guarded(name):
        data = read_bytes(
            source,
            limit_bytes=max(MAX_IMAGE_BYTES, 4 * limit),
            check_head=lambda head: check_head(head, name),
            unnamed=name,
        )
        with open_image(data, name, lambda w, h: _check_size(w, h, name, limit)) as image:
            points, broken = None, []
            if image.format == "PNG":
                try:
                    points = code_points_of_png(data)
                except ValueError:
                    broken.append("its colours (cICP) are broken and were ignored")
            elif image.format == "AVIF":
                points = code_points_of_avif(data)
            return _photo_from_pillow(image, name, points, broken)


def _limit(max_pixels: int) -> int:
    try:
        limit = operator.index(max_pixels)
    except TypeError as error:
        raise UsageError(
            f"expected max_pixels to be an integer, got {type(max_pixels).__name__}"
        ) from error
    if limit < 1:
        raise UsageError(f"expected max_pixels to be at least 1, got {limit}")
    return limit


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ImageError(
            f"{name} has {width}x{height} px: expected 1 to {MAX_SIDE} px a side; "
            f"scale it or cut it into parts first"
        )
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width}x{height} px, {width * height} in all: expected at most "
            f"{max_pixels}; allow more with max_pixels (--max-pixels) if you trust the file, or "
            f"scale it first"
        )


def _notes_on_size(width: int, height: int) -> list[str]:
    """What to say of an image that a decoder refuses by default."""
    if width * height <= DEFAULT_MAX_PIXELS:
        return []
    return [
        f"it has more than {DEFAULT_MAX_PIXELS} px: decoding it needs max_pixels "
        f"(--max-pixels {width * height})"
    ]


def _photo_from_array(array: NDArray[np.uint8], max_pixels: int) -> Photo:
    shape = array.shape
    if (
        array.dtype != np.uint8
        or len(shape) not in (2, 3)
        or shape[2:] not in ((), (1,), (3,), (4,))
    ):
        raise ImageError(
            f"expected uint8 pixels of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got "
            f"{array.dtype} {shape}; scale other types to 0..255 first"
        )
    _check_size(shape[1], shape[0], "the array", max_pixels)
    if shape[2:] == (4,):
        image = Image.fromarray(np.ascontiguousarray(array))
        return _photo_from_pillow(image, "the array")
    notes = tuple(_notes_on_size(shape[1], shape[0]))
    if shape[2:] == (3,):
        return Photo(np.ascontiguousarray(array), notes)
    return Photo(np.repeat(array.reshape(*shape[:2], 1), 3, axis=2), notes)


def _photo_from_pillow(
    image: Image.Image, name: str, points: CodePoints | None = None, broken: Iterable[str] = ()
) -> Photo:
    """Load an image whose size has been checked, and make it upright, opaque and sRGB."""
    notes = [*_notes_on_size(image.width, image.height), *broken]
    tile = getattr(image, "tile", None)
    raw_mode = str(tile[0][3]) if tile else ""  # gone once the pixels are loaded
    frames, frame = getattr(image, "n_frames", 1), image.tell()
    image.load()
    if frames > 1:
        which = "the first" if frame == 0 else f"number {frame + 1}"
        notes.append(f"only {which} of its {frames} pictures is used")
    if image.info.get("icc_profile", b"") is None:  # Pillow's sign of one that cannot be unpacked
        notes.append("its ICC profile is broken and was ignored")
    turn, adobe_rgb = _facts_from_exif(image, notes)
    colours = _colours_of(image, points, adobe_rgb)
    opaque, alpha = _opaque_and_alpha(image, raw_mode, name, notes)
    rgb = srgb_from_colours(opaque, colours, notes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        notes.append("its transparent parts were laid on white")
        white = Image.new("RGB", rgb.size, (255, 255, 255))
        white.paste(rgb, mask=alpha)
        rgb = white
    if turn is not None:
        rgb = rgb.transpose(turn)
    return Photo(np.asarray(rgb), tuple(notes))


def _facts_from_exif(image: Image.Image, notes: list[str]) -> tuple[Image.Transpose | None, bool]:
    """The transposition that EXIF asks for, if any, and whether it says Adobe RGB ("R03")."""
    try:
        exif = image.getexif()
        turn = _UPRIGHT.get(exif.get(_ORIENTATION_TAG, 1))
        try:
            adobe_rgb = exif.get_ifd(_INTEROPERABILITY_IFD).get(1) == "R03"
        except KeyError:  # how Pillow before 13 says that there is none
            adobe_rgb = False
    except Exception:  # broken metadata must not spoil a sound picture
        notes.append("its EXIF data is broken and was ignored")
        return None, False
    if turn is not None:
        notes.append("it was turned upright, as its EXIF orientation says")
    return turn, adobe_rgb


def _colours_of(image: Image.Image, points: CodePoints | None, adobe_rgb: bool) -> Colours:
    """What an image says of its colours: by its ``info``, and code points from its file."""
    info = image.info
    nclx = info.get("nclx_profile")  # of pillow-heif
    if points is None and isinstance(nclx, dict):
        points = CodePoints(nclx["color_primaries"], nclx["transfer_characteristics"])
    return Colours(
        profile=info.get("icc_profile"),
        points=points,
        points_first=image.format == "PNG",
        srgb="srgb" in info,
        gamma=info.get("gamma"),
        chromaticities=info.get("chromaticity"),
        adobe_rgb=adobe_rgb,
    )


def _opaque_and_alpha(
    image: Image.Image, raw_mode: str, name: str, notes: list[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Split a loaded image of any mode into "L", "RGB" or "CMYK", and its alpha "L" or None."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        alpha = None if clear is None else _alpha_from(values != clear)
        scaled = (values.astype(np.uint32) * 255 + 32767) // 65535
        notes.append("its 16-bit grey values were scaled to 8 bits")
        return Image.fromarray(scaled.astype(np.uint8)), alpha
    if image.mode in ("F", "I"):
        raise ImageError(
            f"{name} has 32-bit pixels (Pillow's mode {image.mode!r}), which have no agreed white: "
            f"expected 8-bit pixels or 16-bit grey; scale them to 0..255 first"
        )
    if image.mode == "L" and isinstance(clear, int):  # the value in the file, before Pillow's steps
        return image, _alpha_from(np.asarray(image) != clear * _GREY_STEPS.get(raw_mode, 1))
    if raw_mode == "RGB;16B" and clear is not None:
        notes.append("its transparent colour was compared by the upper 8 of its 16 bits")
        upper = np.array(clear, np.int64) >> 8
        return image, _alpha_from((np.asarray(image) != upper).any(axis=2))
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        opaque = "L" if image.mode in ("L", "LA") else "RGB"
        image = image.convert("RGBA")
        return image.convert(opaque), image.getchannel("A")
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image, None


def _alpha_from(visible: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(visible.astype(np.uint8) * 255)
