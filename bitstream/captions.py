"""Captions in few bytes: the smallest of three codings, behind one or two bytes of head.

0 is raw UTF-8, 1 raw deflate with a preset dictionary, 2 a static order-3 model of the bytes of
English photo captions with the range coder of the tokens. Any text makes the round trip exactly;
no normalisation. Specified in FORMAT.md, section 5. This module knows nothing of images.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.rangecoder import TokenDecoder, TokenEncoder
from percoedge.errors import StreamError, UsageError

__all__ = [
    "END",
    "MAX_CAPTION_BYTES",
    "ORDER",
    "TABLES_FILE",
    "pack_caption",
    "unpack_caption",
]

MAX_CAPTION_BYTES: Final = 1024
"""Longest caption, in bytes of UTF-8."""

ORDER: Final = 3
"""Length of the model's context, in bytes."""

END: Final = 0
"""Symbol that ends a caption in the model; also pads the context before its first byte."""

TABLES_FILE: Final = "caption_tables.bin"

_RAW, _DEFLATE, _MODEL = 0, 1, 2

# The low 6 bits of the head: a length below 60, or the top of (length - 60) in 10 bits.
_SHORT_LENGTHS = 60

_DISCOUNT = 6  # of 8: absolute discounting takes 3/4 from each count
_ONE = 1 << 24  # probability 1 inside the model
_SYMBOLS = 256


class _Tables(NamedTuple):
    """`followers[k]`: context of k bytes -> (symbols that followed it, their counts)."""

    dictionary: bytes
    followers: tuple[dict[bytes, tuple[NDArray[np.int64], NDArray[np.int64]]], ...]


def pack_caption(text: str) -> bytes:
    """Return the shortest coding of a caption.

    `text` may hold any characters, at most `MAX_CAPTION_BYTES` in UTF-8. The bytes tell their own
    length. Raises UsageError for a longer text or one with lone surrogates.
    """
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"expected a caption of Unicode characters; got a lone surrogate at {error.start}: "
            "decode the text properly or remove it"
        ) from error
    if len(raw) > MAX_CAPTION_BYTES:
        raise UsageError(
            f"expected a caption of at most {MAX_CAPTION_BYTES} bytes of UTF-8; got {len(raw)}: "
            "shorten it"
        )
    codings = [(_RAW, raw), (_DEFLATE, _deflate(raw))]
    if END not in raw:
        codings.append((_MODEL, _encode_with_model(raw)))
    method, coded = min(codings, key=lambda coding: len(coding[1]))
    return _pack_head(method, len(coded)) + coded


def unpack_caption(data: bytes) -> tuple[str, int]:
    """Return the caption at the beginning of `data` and the number of bytes it took.

    Raises StreamError where these are not a caption as `pack_caption` makes them.
    """
    method, length, start = _unpack_head(data)
    coded = data[start : start + length]
    if len(coded) != length:
        raise StreamError(
            f"expected a caption of {length} coded bytes; got {len(coded)}: the stream is cut"
        )
    if method == _RAW:
        raw = coded
    elif method == _DEFLATE:
        raw = _inflate(coded)
    elif method == _MODEL:
        raw = _decode_with_model(coded)
    else:
        raise StreamError("expected a caption coded with method 0, 1 or 2; got 3 (reserved)")
    if len(raw) > MAX_CAPTION_BYTES:
        raise StreamError(f"expected a caption of at most {MAX_CAPTION_BYTES} bytes; got more")
    try:
        return raw.decode(), start + length
    except UnicodeDecodeError as error:
        raise StreamError(f"expected a caption in UTF-8; got {error.reason}") from error


def _pack_head(method: int, length: int) -> bytes:
    if length < _SHORT_LENGTHS:
        return bytes([method << 6 | length])
    rest = length - _SHORT_LENGTHS
    return bytes([method << 6 | _SHORT_LENGTHS + (rest >> 8), rest & 0xFF])


def _unpack_head(data: bytes) -> tuple[int, int, int]:
    """Return method, length of the coded bytes and length of the head."""
    if not data:
        raise StreamError("expected a caption; got the end of the stream: it is cut")
    method, length = data[0] >> 6, data[0] & 0x3F
    if length < _SHORT_LENGTHS:
        return method, length, 1
    if len(data) < 2:
        raise StreamError("expected the length of a caption; got the end of the stream: it is cut")
    return method, ((length - _SHORT_LENGTHS) << 8 | data[1]) + _SHORT_LENGTHS, 2


def _deflate(raw: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=_tables().dictionary)
    return coder.compress(raw) + coder.flush()


def _inflate(coded: bytes) -> bytes:
    decoder = zlib.decompressobj(-15, zdict=_tables().dictionary)
    try:
        raw = decoder.decompress(coded, MAX_CAPTION_BYTES + 1)
    except zlib.error as error:
        raise StreamError(f"expected a caption in raw deflate; got {error}") from error
    if len(raw) <= MAX_CAPTION_BYTES and (not decoder.eof or decoder.unused_data):
        raise StreamError("expected a caption in raw deflate; got bytes past its end, or no end")
    return raw


def _encode_with_model(raw: bytes) -> bytes:
    encoder = TokenEncoder()
    context = bytes([END]) * ORDER
    rows = []
    for symbol in (*raw, END):
        rows.append(_weights(context))
        context = context[1:] + bytes([symbol])
    encoder.encode(np.frombuffer(raw + bytes([END]), np.uint8), np.stack(rows))
    return encoder.finish()


def _decode_with_model(coded: bytes) -> bytes:
    decoder = TokenDecoder(coded)
    padded = bytearray([END] * ORDER)
    while len(padded) <= ORDER + MAX_CAPTION_BYTES:
        symbol = int(decoder.decode(_weights(bytes(padded[-ORDER:])), 1)[0])
        if symbol == END:
            return bytes(padded[ORDER:])
        padded.append(symbol)
    raise StreamError(f"expected a caption of at most {MAX_CAPTION_BYTES} bytes; got more")


def _weights(context: bytes) -> NDArray[np.int64]:
    """Weights 1..65536 of the 256 symbols after a context of `ORDER` bytes.

    Interpolated absolute discounting: from the empty context to the longest one known, each order
    takes 3/4 from every count and spreads what it took as the order below. All in integers.
    """
    chances = np.full(_SYMBOLS, _ONE // _SYMBOLS, np.int64)
    for order, followers in enumerate(_tables().followers):
        entry = followers.get(context[ORDER - order :])
        if entry is None:
            break  # then no longer context is known either
        symbols, counts = entry
        chances = chances * (_DISCOUNT * len(symbols))
        chances[symbols] += (8 * counts - _DISCOUNT) * _ONE
        chances //= 8 * int(counts.sum())
    weights: NDArray[np.int64] = np.maximum(chances >> 8, 1)
    return weights


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    """Read the tables; below the longest order a count is that of the different bytes in front."""
    data = (Path(__file__).with_name("tables") / TABLES_FILE).read_bytes()
    start = 2 + int.from_bytes(data[:2], "big")
    entries = np.frombuffer(data, np.uint8, offset=start).reshape(-1, ORDER + 2).astype(np.int64)
    grams = entries[:, : ORDER + 1] @ (1 << 8 * np.arange(ORDER, -1, -1))
    counts = entries[:, ORDER + 1]
    followers = []
    for order in range(ORDER, -1, -1):
        contexts, first = np.unique(grams >> 8, return_index=True)
        followers.append(
            {
                int(context).to_bytes(order, "big"): (group & 0xFF, group_counts)
                for context, group, group_counts in zip(
                    contexts, np.split(grams, first[1:]), np.split(counts, first[1:]), strict=True
                )
            }
        )
        grams, counts = np.unique(grams & ((1 << 8 * order) - 1), return_counts=True)
    return _Tables(data[2:start], tuple(reversed(followers)))
