"""Photos in and out: any JPEG, PNG, WebP or AVIF becomes sRGB pixels, 8 bits, upright, opaque.

Everything that changes what a person sees is told in the photo's notes. Limits are checked on the
header, before pixels are decoded: 1 to `MAX_SIDE` px a side as in the stream format, hence at
most 2^28 px. This module knows nothing of models; padding to their stride is the codec's work.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from percoedge.bitstream.container import MAX_SIDE
from percoedge.errors import ImageError, OutputError, UsageError
from percoedge.runtime.files import STANDARD_STREAM, atomic_write, read_bytes
from percoedge.runtime.images.colours import srgb_from_profile

__all__ = ["Photo", "Source", "format_of", "read_image", "write_image"]

Source: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"
"""What `read_image` takes: a path or ``-``, the bytes of a file, a Pillow image, or an array."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
# What a decoder makes has no strings that come back: looking for none but runs, zlib writes PNGs of
# it in half the time of level 4 and a quarter of that of Pillow's own, 6, and 0.5 to 1 % smaller.
_SAVE_OPTIONS: dict[str, dict[str, int]] = {
    "PNG": {"compress_type": zlib.Z_RLE},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}
_MAX_WEBP_SIDE = 16383


@dataclass(frozen=True)
class Photo:
    """A photo as the models take it.

    pixels: uint8 (H, W, 3), sRGB, contiguous, perhaps read-only; H and W are 1 to `MAX_SIDE`.
    notes: sentences for the user about what was changed or left out; empty when nothing was.
    """

    pixels: NDArray[np.uint8]
    notes: tuple[str, ...] = ()


def read_image(source: Source) -> Photo:
    """Read a photo from a path, ``-`` (standard input), a file's bytes, a Pillow image or an array.

    Files may be JPEG, PNG, WebP or AVIF; Pillow images of any format. Arrays are uint8 of shape
    (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), in sRGB. Greyscale, palette and CMYK become RGB,
    16-bit grey is scaled to 8 bits, alpha is laid on white, EXIF orientation and ICC profiles are
    applied, and of several pictures the first is taken. Sides are 1 to `MAX_SIDE` pixels.
    Raises ImageError for what is no such image, and InputError for a file that cannot be read.
    """
    if isinstance(source, np.ndarray):
        return _photo_from_array(source)
    if isinstance(source, Image.Image):
        return _photo_from_pillow(source, "the image")
    if isinstance(source, bytes):
        return _photo_from_bytes(source, "the image")
    if isinstance(source, (str, os.PathLike)):
        is_standard = os.fspath(source) == STANDARD_STREAM
        return _photo_from_bytes(
            read_bytes(source), "standard input" if is_standard else f"{source}"
        )
    raise UsageError(
        f"expected a path, bytes, a Pillow image or a numpy array, got {type(source).__name__}"
    )


def write_image(
    pixels: NDArray[np.uint8],
    destination: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
) -> None:
    """Write uint8 pixels of shape (H, W, 3) as PNG, JPEG or WebP.

    A path is replaced as a whole or left as it was; ``-`` is standard output. `format` is "PNG",
    "JPEG" or "WEBP" in any case; without it the path's suffix decides, and PNG is the format of
    streams. JPEG and WebP are written at quality 95, JPEG without chroma subsampling.
    Raises UsageError for other formats and arrays, OutputError when it cannot be written.
    """
    path = destination if isinstance(destination, (str, os.PathLike)) else None
    kind = format_of(STANDARD_STREAM if path is None else path, format)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(
            f"expected uint8 pixels of shape (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    if kind == "WEBP" and max(pixels.shape) > _MAX_WEBP_SIDE:
        raise OutputError(
            f"a WebP image has at most {_MAX_WEBP_SIDE} px a side, got "
            f"{pixels.shape[1]}x{pixels.shape[0]}; write PNG instead"
        )
    image = Image.fromarray(np.ascontiguousarray(pixels))

    def write(stream: BinaryIO) -> None:
        image.save(stream, kind, **_SAVE_OPTIONS[kind])

    if isinstance(destination, (str, os.PathLike)):
        atomic_write(destination, write)
        return
    try:
        write(destination)
    except OSError as error:
        raise OutputError(f"cannot write the image to the stream given: {error}") from error


def format_of(destination: str | os.PathLike[str], format: str | None = None) -> str:
    """Return "PNG", "JPEG" or "WEBP": `format` if given, else by the suffix; PNG for ``-``.

    Cheap, so that a wrong name can be refused before a picture is decoded.
    Raises UsageError when neither names one of the three.
    """
    if format is not None:
        kind = {"JPG": "JPEG"}.get(format.upper(), format.upper())
        if kind not in _SAVE_OPTIONS:
            raise UsageError(f"cannot write {format!r} images: choose PNG, JPEG or WEBP")
        return kind
    if os.fspath(destination) == STANDARD_STREAM:
        return "PNG"
    suffix = Path(destination).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(
            f"cannot tell the image format of {str(destination)!r}: expected a name that ends in "
            f"{', '.join(_SUFFIXES)}, or name the format"
        )
    return _SUFFIXES[suffix]


def _photo_from_array(array: NDArray[np.uint8]) -> Photo:
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
    _check_size(shape[1], shape[0], "the array")
    if shape[2:] == (3,):
        return Photo(np.ascontiguousarray(array))
    if shape[2:] == (4,):
        return _photo_from_pillow(Image.fromarray(np.ascontiguousarray(array)), "the array")
    return Photo(np.repeat(array.reshape(*shape[:2], 1), 3, axis=2))


def _photo_from_bytes(data: bytes, name: str) -> Photo:
    stream = BytesIO(data)
    try:
        image = _open(data[:64], stream)
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder raises on hostile bytes
        raise ImageError(
            f"{name} has a damaged header ({error}): expected a JPEG, PNG, WebP or AVIF image; "
            f"fetch or export it anew"
        ) from error
    if image is None:
        found = "nothing (0 bytes)" if not data else f"data that begins with {data[:8].hex(' ')}"
        raise ImageError(
            f"{name} is no image that can be read: expected JPEG, PNG, WebP or AVIF, got {found}; "
            f"convert it to one of these first"
        )
    with image:
        return _photo_from_pillow(image, name)


def _open(head: bytes, stream: IO[bytes]) -> ImageFile.ImageFile | None:
    """Read an image's header; None when it is of none of the four formats.

    The plugins are called directly: Image.open would guess among formats that nobody asked for,
    and warn about or refuse sizes that are within our own limit.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.jpeg_factory(stream)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(stream)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(stream)
    if head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]):
        return AvifImagePlugin.AvifImageFile(stream)
    return None


def _photo_from_pillow(image: Image.Image, name: str) -> Photo:
    _check_size(image.width, image.height, name)
    notes: list[str] = []
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # whatever a decoder raises on hostile bytes
        raise ImageError(
            f"{name} is damaged or cut short ({error}): expected a whole image; "
            f"fetch or export it anew"
        ) from error
    if frames > 1:
        notes.append(f"only the first of its {frames} pictures is used")
    turn = _upright_turn(image, notes)
    rgb = _rgb_from_any(image, name, notes)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return Photo(np.asarray(rgb), tuple(notes))


def _check_size(width: int, height: int, name: str) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ImageError(
            f"{name} has {width}x{height} px: expected 1 to {MAX_SIDE} px a side; "
            f"scale it or cut it into parts first"
        )


def _upright_turn(image: Image.Image, notes: list[str]) -> Image.Transpose | None:
    """Return the transposition that EXIF asks for, if any."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken metadata must not spoil a sound picture
        notes.append("its EXIF data is broken and was ignored")
        return None
    if turn is not None:
        notes.append("it was turned upright, as its EXIF orientation says")
    return turn


def _rgb_from_any(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Convert a loaded image of any mode to sRGB."""
    profile = image.info.get("icc_profile")
    alpha: Image.Image | None = None
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
        notes.append("its 16-bit grey values were scaled to 8 bits")
    elif image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image
        opaque = "L" if image.mode in ("L", "LA") else "RGB"
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert(opaque)
    elif image.mode in ("F", "I"):
        raise ImageError(
            f"{name} has 32-bit pixels (Pillow's mode {image.mode!r}), which have no agreed white: "
            f"expected 8-bit pixels or 16-bit grey; scale them to 0..255 first"
        )
    elif image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    rgb = srgb_from_profile(image, profile, notes)
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    notes.append("its transparent parts were laid on white")
    white = Image.new("RGB", rgb.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white
