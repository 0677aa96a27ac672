"""Formats of image files: known by their first bytes, never by a name's suffix.

JPEG, PNG, WebP and AVIF are read by Pillow, HEIC and JPEG XL by its plugins where these are
installed. Other files are called by their names in the error, with what to do about them.
"""

from __future__ import annotations

import importlib
import struct
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

__all__ = ["READ_SUFFIXES", "check_head", "format_name", "open_image"]

CheckSize = Callable[[int, int], None]

READ_SUFFIXES = (".avif", ".heic", ".heif", ".jpeg", ".jpg", ".jxl", ".png", ".webp")
"""How names of the files end that `open_image` reads, where plugins are installed."""

_READABLE = "expected a JPEG, PNG, WebP or AVIF image"

# (offset, bytes there, name); the first that fits.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"GIF8", "GIF"),
    (8, b"CR\x02", "Canon raw (CR2)"),
    (0, b"FUJIFILMCCD-RAW", "Fujifilm raw (RAF)"),
    (0, b"IIRO", "Olympus raw (ORF)"),
    (0, b"IIRS", "Olympus raw (ORF)"),
    (0, b"MMOR", "Olympus raw (ORF)"),
    (0, b"IIU\0", "Panasonic raw (RW2)"),
    (0, b"FOVb", "Sigma raw (X3F)"),
    (0, b"\0MRM", "Minolta raw (MRW)"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"\0\0\1\0", "icon (ICO)"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"qoif", "QOI"),
    (0, b"DDS ", "DDS"),
    (0, b"PK\3\4", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM video"),
    (0, b"\x50\xc0", "percoedge stream"),
)
_TEXTS = ((b"<svg", "SVG"), (b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"))
_BRANDS: tuple[tuple[frozenset[bytes], str], ...] = (  # of the boxes of ISO/IEC 14496-12
    (frozenset({b"avif", b"avis"}), "AVIF"),
    (frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}), "HEIC"),
    (frozenset({b"crx "}), "Canon raw (CR3)"),
    (frozenset({b"qt  ", b"isom", b"iso2", b"mp41", b"mp42", b"M4V ", b"3gp4"}), "MP4 video"),
)
_PLUGINS = {  # name: package, module, class
    "HEIC": ("pillow-heif", "pillow_heif", "HeifImageFile"),
    "JPEG XL": ("pillow-jxl-plugin", "pillow_jxl.JpegXLImagePlugin", "JXLImageFile"),
}
_ADVICE = {
    "HTML": "this is a web page, not the image shown on it: fetch the image itself",
    "MP4 video": "save one picture of it as PNG or JPEG first",
    "Matroska or WebM video": "save one picture of it as PNG or JPEG first",
    "PDF": "render a page of it to PNG first",
    "SVG": "render it to PNG first",
    "XML": "if it is a drawing, render it to PNG first",
    "ZIP": "unpack it first",
    "gzip": "unpack it first",
    "percoedge stream": "it is encoded already: decode it",
}
# Kinds of JPEG that libjpeg does not read into 8 bits, by the marker of the frame (ITU-T T.81).
_JPEG_KINDS = {0xC3: "lossless JPEG", 0xC7: "lossless JPEG", 0xCB: "lossless JPEG", 0xF7: "JPEG-LS"}
_MAX_SEGMENTS = 4096
_JPEG_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


def format_name(head: bytes) -> str | None:
    """Return what a file is that begins with `head` ("JPEG", "HEIC", "PDF", ...), None if unknown.

    `head`: the first 4 KiB, or all where there is less.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
        return next((name for known, name in _BRANDS if brands & known), None)
    name = next((name for at, magic, name in _SIGNATURES if head.startswith(magic, at)), None)
    if name == "TIFF":
        return _tiff_name(head)
    if name is None:
        text = head[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
        if text.startswith(b"<"):
            return next((name for mark, name in _TEXTS if mark in text), None)
    return name


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


def _tiff_name(head: bytes) -> str:
    """Tell cameras' raw files from other TIFF by the tags of the first directory in `head`."""
    order = "<" if head.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", head, 4)
        (count,) = struct.unpack_from(f"{order}H", head, start)
        tags = {}
        for index in range(min(count, (len(head) - start - 2) // 12)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHII", head, start + 2 + 12 * index)
            tags[tag] = value >> 16 if kind == 3 and order == ">" else value
    except struct.error:
        return "TIFF"
    if 0xC612 in tags:  # DNGVersion
        return "Adobe raw (DNG)"
    if tags.get(0xFE) == 1 and 0x010F in tags:  # a preview comes first, and a camera is named
        return "camera raw (NEF, ARW, PEF or the like)"
    return "TIFF"


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
