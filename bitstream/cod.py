"""Streams of CoD-Lite's authors (``.cod``): a size, then tokens of a fixed number of bits.

Two 16-bit little-endian integers, width and height in pixels; then the tokens row by row, each in
``bits`` bits, the highest first, without gaps, zeros at the end up to a whole byte. Nothing tells
the rate or the models: those who exchange such files know them.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from percoedge.errors import StreamError, UsageError

__all__ = ["pack_cod", "unpack_cod"]

_SIZE = struct.Struct("<HH")
_MAX_SIDE = (1 << 16) - 1


def unpack_cod(data: bytes, stride: int, bits: int) -> tuple[int, int, NDArray[np.int32]]:
    """Width and height in pixels, and tokens int32 (h,w), of a stream.

    ``stride``: pixels a side that a token covers. Raises StreamError where the length is not that
    of an image of whole tokens: the stream is cut, or of another rate.
    """
    if len(data) < _SIZE.size:
        raise StreamError(f"expected {_SIZE.size} bytes of width and height, got {len(data)}")
    width, height = _SIZE.unpack_from(data)
    rows, columns = height // stride, width // stride
    expected = _SIZE.size + -(-rows * columns * bits // 8)
    if not rows * columns or height % stride or width % stride or len(data) != expected:
        raise StreamError(
            f"expected a .cod stream of {stride}x{stride} pixels and {bits} bits a token, which "
            f"has {expected} bytes at {width}x{height}, got {len(data)}; give the bundle of its "
            "rate (--bundle)"
        )
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8, offset=_SIZE.size))
    digits = unpacked[: rows * columns * bits].reshape(rows, columns, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int32)
    return width, height, (digits * weights).sum(axis=-1, dtype=np.int32)


def pack_cod(tokens: NDArray[np.int32], stride: int, bits: int) -> bytes:
    """The stream of tokens (h,w), for an image of whole tokens. Raises UsageError if too large."""
    rows, columns = tokens.shape
    if max(rows, columns) * stride > _MAX_SIDE:
        raise UsageError(
            f"expected sides of at most {_MAX_SIDE} pixels in a .cod stream, got "
            f"{columns * stride}x{rows * stride}"
        )
    digits = tokens[..., None] >> np.arange(bits - 1, -1, -1) & 1
    size = _SIZE.pack(columns * stride, rows * stride)
    return size + np.packbits(digits.astype(np.uint8).ravel()).tobytes()
