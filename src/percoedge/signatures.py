"""What a file is, by its first bytes: "JPEG", "PDF", "text", whatever its name says.

For those who expected a file of one kind and name what they got in the error.
"""

from __future__ import annotations

import codecs
import struct
from typing import Final

__all__ = ["WRAPPED", "format_name"]

WRAPPED: Final = {
    "Git LFS pointer": "fetch the file that it stands for with 'git lfs pull'",
    "ZIP": "unpack it first",
    "gzip": "unpack it first",
}
"""Formats that other files may be inside of, and how they come out."""

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
    (0, b"version https://git-lfs", "Git LFS pointer"),
    *((0, b"P%d%c" % (kind, space), "PPM") for kind in range(1, 8) for space in b" \t\r\n#"),
)
_TEXTS = ((b"<svg", "SVG"), (b"<!doctype html", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"))
_BRANDS: tuple[tuple[frozenset[bytes], str], ...] = (  # of the boxes of ISO/IEC 14496-12
    (frozenset({b"avif", b"avis"}), "AVIF"),
    (frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}), "HEIC"),
    (frozenset({b"crx "}), "Canon raw (CR3)"),
    (frozenset({b"qt  ", b"isom", b"iso2", b"mp41", b"mp42", b"M4V ", b"3gp4"}), "MP4 video"),
)


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
        if text.startswith(b"<") and (found := [name for mark, name in _TEXTS if mark in text]):
            return found[0]
        return "text" if _is_text(head) else None
    return name


def _is_text(head: bytes) -> bool:
    """Whether a file begins as one of text in UTF-8 does; fewer than 8 bytes may be anything."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return len(head) >= 8 and all(letter.isprintable() or letter in "\t\r\n\f" for letter in text)


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
