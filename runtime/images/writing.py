"""Images out: pixels become PNG, JPEG or WebP files."""

from __future__ import annotations

import os
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percoedge.errors import ImageError, OutputError, UsageError
from percoedge.runtime.files import STANDARD_STREAM, atomic_write

__all__ = ["WRITE_SUFFIXES", "format_of", "image_bytes", "suffix_of", "write_image"]

WRITE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Suffixes of the images that are written, and their formats; the usual one comes first."""

# What a decoder makes has no strings that come back: looking for none but runs, zlib writes PNGs of
# it in half the time of level 4 and a quarter of that of Pillow's own, 6, and 0.5 to 1 % smaller.
_SAVE_OPTIONS: dict[str, dict[str, int]] = {
    "PNG": {"compress_type": zlib.Z_RLE},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}
_MAX_WEBP_SIDE = 16383


def write_image(
    image: Image.Image | NDArray[np.uint8],
    destination: str | os.PathLike[str] | BinaryIO,
    format: str | None = None,
) -> None:
    """Write a Pillow image of mode "RGB", or uint8 pixels (H, W, 3), as PNG, JPEG or WebP.

    A path is replaced as a whole or left as it was; ``-`` is standard output. `format` is "PNG",
    "JPEG" or "WEBP" in any case; without it the path's suffix decides, and PNG is the format of
    streams. JPEG and WebP are written at quality 95, JPEG without chroma subsampling.
    Raises UsageError for other formats and images, ImageError for one too large for its format,
    and OutputError when it cannot be written.
    """
    path = destination if isinstance(destination, (str, os.PathLike)) else None
    kind = format_of(STANDARD_STREAM if path is None else path, format)
    rgb = image if isinstance(image, Image.Image) else _image_from_array(image)
    if rgb.mode != "RGB" or 0 in rgb.size:
        raise UsageError(
            f"expected an image of mode 'RGB', got {rgb.mode!r} of {rgb.width}x{rgb.height} px; "
            f"convert it first"
        )
    if kind == "WEBP" and max(rgb.size) > _MAX_WEBP_SIDE:
        raise ImageError(
            f"a WebP image has at most {_MAX_WEBP_SIDE} px a side, got {rgb.width}x{rgb.height}; "
            f"write PNG instead"
        )

    def write(stream: BinaryIO) -> None:
        rgb.save(stream, kind, **_SAVE_OPTIONS[kind])

    if isinstance(destination, (str, os.PathLike)):
        atomic_write(destination, write)
        return
    try:
        write(destination)
    except OSError as error:
        raise OutputError(f"cannot write the image to the stream given: {error}") from error


def image_bytes(image: Image.Image | NDArray[np.uint8], format: str) -> bytes:
    """The file that ``write_image`` would write, from what it takes; raises as it does."""
    stream = BytesIO()
    write_image(image, stream, format)
    return stream.getvalue()


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
    if suffix not in WRITE_SUFFIXES:
        raise UsageError(
            f"cannot tell the image format of {str(destination)!r}: expected a name that ends in "
            f"{', '.join(WRITE_SUFFIXES)}, or name the format"
        )
    return WRITE_SUFFIXES[suffix]


def suffix_of(kind: str) -> str:
    """Return the usual suffix of a format that `format_of` returns: ".jpg" for "JPEG"."""
    return next(suffix for suffix, format in WRITE_SUFFIXES.items() if format == kind)


def _image_from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise UsageError(
            f"expected uint8 pixels of shape (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
