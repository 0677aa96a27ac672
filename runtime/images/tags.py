"""What headers of images say and Pillow does not tell: colours in code points, and sizes.

Small parsers that look at a bounded number of chunks or boxes and pass over what is broken: the
decoder proper says what is wrong with a file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "CodePoints",
    "code_points_of_avif",
    "code_points_of_png",
    "size_of_jxl",
    "size_of_webp",
]

_MAX_PARTS = 4096  # chunks or boxes looked at


@dataclass(frozen=True)
class CodePoints:
    """Colours by the numbers of ITU-T H.273; 2 is "unspecified".

    primaries: its table 2. transfer: its table 3. full_range: whether 0 and 255 are black and
    white, rather than 16 and 235; always so of pixels that come from YCbCr.
    """

    primaries: int
    transfer: int
    full_range: bool = True


def code_points_of_png(data: bytes) -> CodePoints | None:
    """Return the cICP chunk of a PNG, None without one (PNG, third edition, 11.3.2.6).

    Raises ValueError for one that is broken or of a matrix, which PNG does not have.
    """
    at = 8
    for _ in range(_MAX_PARTS):
        if at + 12 > len(data):
            return None
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"IDAT", b"IEND"):
            return None
        if kind == b"cICP":
            body = data[at + 8 : at + 8 + length]
            if len(body) != 4 or body[2] != 0:
                raise ValueError("expected 4 bytes in the chunk cICP, the third of them 0")
            return CodePoints(body[0], body[1], bool(body[3]))
        at += 12 + length
    return None


def code_points_of_avif(data: bytes) -> CodePoints | None:
    """Return the colours ("nclx") of an AVIF's primary image, None where it says nothing.

    ISO/IEC 23008-12: boxes pitm, ipco and ipma in meta; ISO/IEC 14496-12, 12.1.5: colr.
    """
    try:
        return _primary_nclx(data)
    except (IndexError, struct.error):
        return None


def _primary_nclx(data: bytes) -> CodePoints | None:
    meta = _box(data, b"meta", 0, len(data))
    if meta is None:
        return None
    inside = (meta[0] + 4, meta[1])  # behind version and flags
    pitm, iprp = _box(data, b"pitm", *inside), _box(data, b"iprp", *inside)
    ipco = iprp and _box(data, b"ipco", *iprp)
    ipma = iprp and _box(data, b"ipma", *iprp)
    if not (pitm and ipco and ipma):
        return None
    (item,) = struct.unpack_from(">I" if data[pitm[0]] else ">H", data, pitm[0] + 4)
    properties = list(_boxes(data, *ipco))
    for index in _associated(data, ipma[0], item):
        if not 1 <= index <= len(properties):
            continue
        kind, start, end = properties[index - 1]
        if kind == b"colr" and data[start : start + 4] == b"nclx" and end - start >= 11:
            return CodePoints(*struct.unpack_from(">HH", data, start + 4))
    return None


def _associated(data: bytes, start: int, wanted: int) -> list[int]:
    """Indices of the properties of an item, from 1, of the ipma box whose body is at `start`."""
    version, wide = data[start], data[start + 3] & 1
    (entries,) = struct.unpack_from(">I", data, start + 4)
    at = start + 8
    for _ in range(min(entries, _MAX_PARTS)):
        (item,) = struct.unpack_from(">I" if version else ">H", data, at)
        at += 4 if version else 2
        count = data[at]
        at += 1
        size = 2 if wide else 1
        if item == wanted:
            parts = (data[at + n * size : at + (n + 1) * size] for n in range(count))
            return [int.from_bytes(part, "big") & (0x7FFF if wide else 0x7F) for part in parts]
        at += count * size
    return []


def size_of_webp(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP; raises ValueError where it is cut short (RFC 9649).

    Pillow's plugin reserves two whole pictures before it tells a size.
    """

    def number(start: int, end: int) -> int:
        return int.from_bytes(data[start:end], "little")

    if len(data) < 30:
        raise ValueError(f"expected a header of 30 bytes, got {len(data)}")
    kind = data[12:16]
    if kind == b"VP8X":
        return number(24, 27) + 1, number(27, 30) + 1
    if kind == b"VP8L":
        return (number(21, 25) & 0x3FFF) + 1, (number(21, 25) >> 14 & 0x3FFF) + 1
    return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF


def size_of_jxl(data: bytes) -> tuple[int, int]:
    """Return width and height of a JPEG XL; raises ValueError where its header is broken.

    ISO/IEC 18181-1, SizeHeader. The plugin for Pillow decodes all pixels before it tells a size.
    """
    if not data.startswith(b"\xff\x0a"):
        boxes = list(_boxes(data, 0, len(data)))
        start = next((at for kind, at, _ in boxes if kind == b"jxlc"), None)
        if start is None:
            start = next((at + 4 for kind, at, _ in boxes if kind == b"jxlp"), None)
        data = b"" if start is None else data[start : start + 64]
    if data[:2] != b"\xff\x0a" or len(data) < 12:
        raise ValueError("no header of a JPEG XL")
    bits = _Bits(int.from_bytes(data[2:32], "little"))
    small = bits.take(1)
    height = bits.side(small)
    ratio = bits.take(3)
    if ratio == 0:
        return bits.side(small), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under, height


@dataclass
class _Bits:
    """Bits of a little-endian number, the lowest first."""

    left: int

    def take(self, count: int) -> int:
        value = self.left & ((1 << count) - 1)
        self.left >>= count
        return value

    def side(self, small: int) -> int:
        if small:
            return 8 * (self.take(5) + 1)
        return self.take((9, 13, 18, 30)[self.take(2)]) + 1


def _box(data: bytes, wanted: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Begin and end of the body of the first box of a kind."""
    found = (box[1:] for box in _boxes(data, start, end) if box[0] == wanted)
    return next(found, None)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of the body of boxes between `start` and `end` (ISO/IEC 14496-12)."""
    for _ in range(_MAX_PARTS):
        if start + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        body = start + 8
        if size == 1 and start + 16 <= end:
            (size,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = end if size == 0 else start + size
        if not body <= stop <= end:
            return
        yield kind, body, stop
        start = stop
