"""Image files made for tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth picture without symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (255 * x // width, 255 * y // height, 255 * (x + y) // (width + height))
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks between header and pixels; `rows` begin with their filter's byte."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG of any size that ends where its pixels would begin."""
    return png(width, height, 8, 2, b"")


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """A PNG file with more chunks behind its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def webp_header(width: int, height: int) -> bytes:
    """An animated WebP of any size with one small frame."""

    def part(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    def number(value: int) -> bytes:
        return value.to_bytes(3, "little")

    still = saved(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    frame = number(0) * 2 + number(15) * 2 + number(100) + b"\0" + still
    canvas = b"\2\0\0\0" + number(width - 1) + number(height - 1)
    parts = part(b"VP8X", canvas) + part(b"ANIM", bytes(6)) + part(b"ANMF", frame)
    return part(b"RIFF", b"WEBP" + parts)


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
