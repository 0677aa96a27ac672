"""Formats of image files: known by their first bytes, never by a name's suffix.

JPEG, PNG, WebP and AVIF are read by Pillow, HEIC and JPEG XL by its plugins where these are
installed. Other files are called by their names in the error, with what to do about them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

from PIL import (
    AvifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from percoedge.errors import ImageError
from percoedge.runtime.images.tags import size_of_jxl, size_of_webp
from percoedge.signatures import WRAPPED, format_name

__all__ = ["READ_SUFFIXES", "check_head", "open_image"]

CheckSize = Callable[[int, int], None]

READ_SUFFIXES = (".avif", ".heic", ".heif", ".jpeg", ".jpg", ".jxl", ".png", ".webp")
"""How names of the files end that `open_image` reads, where plugins are installed."""

_READABLE = "expected a JPEG, PNG, WebP or AVIF image"

_PLUGINS = {  # name: package, module, class
    "HEIC": ("pillow-heif", "pillow_heif", "HeifImageFile"),
    "JPEG XL": ("pillow-jxl-plugin", "pillow_jxl.JpegXLImagePlugin", "JXLImageFile"),
}
_ADVICE = {
    **WRAPPED,
    "HTML": "this is a web page, not the image shown on it: fetch the image itself",
    "MP4 video": "save one picture of it as PNG or JPEG first",
    "Matroska or WebM video": "save one picture of it as PNG or JPEG first",
    "PDF": "render a page of it to PNG first",
    "SVG": "render it to PNG first",
    "XML": "if it is a drawing, render it to PNG first",
    "percoedge stream": "it is encoded already: decode it",
    "text": "is it the right file?",
}
# Kinds of JPEG that libjpeg does not read into 8 bits, by the marker of the frame (ITU-T T.81).
_JPEG_KINDS = {0xC3: "lossless JPEG", 0xC7: "lossless JPEG", 0xCB: "lossless JPEG", 0xF7: "JPEG-LS"}
_MAX_SEGMENTS = 4096
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def check_head(head: bytes, name: str) -> None:
    """Raise ImageError, naming the format, unless a file that begins so can be read here."""
    kind = format_name(head)
    if kind in _PLUGINS:
        package, module, _ = _PLUGINS[kind]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImageError(
                f"{name} is a {kind} image, which needs the package {package}: expected it to be "
                f"installed; run 'pip install {package}', or export the image as JPEG or PNG"
            ) from error
    elif kind in ("JPEG", "PNG", "WebP", "AVIF"):
        supported = {"WebP": WebPImagePlugin.SUPPORTED, "AVIF": AvifImagePlugin.SUPPORTED}
        if not supported.get(kind, True):
            raise ImageError(
                f"{name} is a {kind} image, which this build of Pillow does not read: "
                f"install one of Pillow's own wheels, or export the image as JPEG or PNG"
            )
    else:
        if kind is not None:
            usual = "develop it to JPEG or PNG" if "raw" in kind else "save it as PNG or JPEG"
            got, advice = kind, _ADVICE.get(kind, f"{usual} first")
        elif head:
            got = f"data that begins with {head[:8].hex(' ')}"
            advice = "convert it to one of these first"
        else:
            got, advice = "nothing (0 bytes)", "is it the right file, and read from its beginning?"
        raise ImageError(f"{name} cannot be read: {_READABLE}, got {got}; {advice}")


def open_image(data: bytes, name: str, check_size: CheckSize) -> ImageFile.ImageFile:
    """Read the header of an image of a format that `check_head` has passed; pixels come later.

    `check_size` is given width and height, and raises what it likes when they are not wanted,
    before any memory is taken for pixels.

    Plugins are called directly: Image.open would guess among formats that nobody asked for, and
    warn about or refuse sizes that are within our own limit. Call it inside `guarded`: it raises
    whatever a plugin does, and ImageError for kinds of JPEG that cannot be read.
    """
    kind = format_name(data[:4096])
    if kind == "JPEG XL":
        check_size(*size_of_jxl(data))
    elif kind == "WebP":
        check_size(*size_of_webp(data))
    image = _opened(kind, data, name)
    check_size(*image.size)
    return image


def _opened(kind: str | None, data: bytes, name: str) -> ImageFile.ImageFile:
    stream = BytesIO(data)
    if kind == "JPEG":
        special = _jpeg_kind(data)
        if special is not None:
            raise ImageError(
                f"{name} is a {special}, which is not supported: expected a JPEG of 8 bits; "
                f"export it as one, or as PNG"
            )
        return JpegImagePlugin.jpeg_factory(stream)
    openers: dict[str | None, Callable[[BytesIO], ImageFile.ImageFile]] = {
        "PNG": PngImagePlugin.PngImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
    }
    if kind in openers:
        return openers[kind](stream)
    _, module, plugin = _PLUGINS[kind or ""]
    opener: Any = getattr(importlib.import_module(module), plugin)
    opened: ImageFile.ImageFile = opener(stream)
    return opened


def _jpeg_kind(data: bytes) -> str | None:
    """Return what a JPEG is that Pillow cannot read ("12-bit JPEG"), None for the others."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        if at + 5 > len(data) or data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_FRAMES:
            bits = data[at + 4]
            return _JPEG_KINDS.get(marker) or (f"{bits}-bit JPEG" if bits in (12, 16) else None)
        elif marker == 0xDA:  # a scan without a frame
            return None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
