"""Streams of PerCo (SD)'s authors (``.pkl``): a caption, tokens and a size, pickled.

A pickle of ``{0: caption, 1: tokens, 2: size}`` whose values are pickles again: the caption as
bytes of zlib, the tokens as bytes of torchac (github.com/fab-jul/torchac), the size in pixels as
(height, width). Nothing tells the rate. Under torchac's uniform model, tokens of a power-of-two
codebook lie row by row, each in ``bits`` bits, the highest first, without gaps; then come the bits
01, and zeros up to a whole byte.

A pickle may run code when it is read. Here its instructions are read first, and nothing but those
that make dict, bytes, tuple and int are carried out.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zlib
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.captions import MAX_CAPTION_BYTES
from percoedge.bitstream.container import MAX_STREAM_BYTES
from percoedge.errors import StreamError

__all__ = ["pack_perco", "unpack_perco"]

# Of protocols 2 to 5; none of them looks anything up or calls it.
_INSTRUCTIONS = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("TUPLE", "TUPLE2", "MEMOIZE", "BINPUT", "BINGET"),
        *("BININT", "BININT1", "BININT2", "BINBYTES", "SHORT_BINBYTES"),
    }
)
_MOST_INSTRUCTIONS = 64
_PROTOCOL = 4
_END = 0b01


def unpack_perco(data: bytes, stride: int, bits: int) -> tuple[int, int, str, NDArray[np.int32]]:
    """Width and height in pixels, caption, and tokens int32 (h,w), of a stream.

    ``stride``: pixels a side that a token covers. Raises StreamError where it is no such pickle, is
    of another rate, or holds a longer caption than a ``.pco`` stream may.
    """
    table = _unpickled(data)
    if not isinstance(table, dict) or [*table] != [0, 1, 2]:
        raise StreamError("expected a pickle of {0: caption, 1: tokens, 2: size}, got another one")
    caption, payload, size = (_unpickled(_as_bytes(value)) for value in table.values())
    if not (
        isinstance(size, tuple)
        and len(size) == 2
        and all(type(side) is int and 0 < side < 1 << 16 for side in size)
    ):
        raise StreamError("expected height and width of 1 to 65535 pixels, got something else")
    height, width = size
    rows, columns = height // stride, width // stride
    tokens = _tokens(_as_bytes(payload), rows, columns, bits)
    if height % stride or width % stride or tokens is None:
        raise StreamError(
            f"expected a stream of {stride}x{stride} pixels and {bits} bits a token, got another "
            f"of {width}x{height} pixels; give the bundle of its rate (--bundle)"
        )
    return width, height, _caption(_as_bytes(caption)), tokens


def pack_perco(tokens: NDArray[np.int32], stride: int, bits: int, caption: str) -> bytes:
    """The stream of tokens (h,w), for an image of whole tokens."""
    rows, columns = tokens.shape
    digits = np.append(_digits(tokens, bits), (0, 1))
    parts = (
        zlib.compress(caption.encode("utf-8"), 9),
        np.packbits(digits).tobytes(),
        (rows * stride, columns * stride),
    )
    pickled = {key: pickle.dumps(part, _PROTOCOL) for key, part in enumerate(parts)}
    return pickle.dumps(pickled, _PROTOCOL)


def _digits(tokens: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    digits: NDArray[np.int32] = tokens[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return digits.astype(np.uint8).ravel()


def _tokens(data: bytes, rows: int, columns: int, bits: int) -> NDArray[np.int32] | None:
    """Tokens (h,w), or None where the bytes are not exactly those of so many."""
    count = rows * columns * bits
    if not count or len(data) != (count + 2 + 7) // 8:
        return None
    digits = np.unpackbits(np.frombuffer(data, np.uint8))
    if [*digits[count : count + 2]] != [0, 1] or digits[count + 2 :].any():
        return None
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.int32)
    tokens: NDArray[np.int32] = (digits[:count].reshape(rows, columns, bits) * weights).sum(
        axis=-1, dtype=np.int32
    )
    return tokens


def _caption(data: bytes) -> str:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_CAPTION_BYTES + 1)
        caption = text.decode("utf-8")
    except (zlib.error, UnicodeDecodeError) as error:
        raise StreamError(f"expected a caption in UTF-8, by zlib: {error}") from error
    if len(text) > MAX_CAPTION_BYTES or not inflater.eof or inflater.unused_data:
        raise StreamError(
            f"expected a caption of at most {MAX_CAPTION_BYTES} bytes and nothing behind it, got "
            "more, or a part of one"
        )
    return caption


def _as_bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise StreamError(f"expected bytes in the pickle, got {type(value).__name__}")
    return value


class _Unpickler(pickle.Unpickler):
    """Makes nothing but what the language of pickles has by itself."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is not for streams")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("no objects of elsewhere are for streams")


def _unpickled(data: bytes) -> Any:
    """What a pickle of few and harmless instructions makes. Raises StreamError for any other."""
    if len(data) > MAX_STREAM_BYTES:
        raise StreamError(f"expected at most {MAX_STREAM_BYTES} bytes, got {len(data)}")
    try:
        last = 0
        for number, (instruction, _, position) in enumerate(pickletools.genops(data), 1):
            if instruction.name not in _INSTRUCTIONS or number > _MOST_INSTRUCTIONS:
                raise StreamError(
                    "expected a pickle of dict, bytes, tuple and int, and of "
                    f"{_MOST_INSTRUCTIONS} instructions at most, got {instruction.name} as number "
                    f"{number}; this is no stream of PerCo (SD): do not open it otherwise"
                )
            last = position or 0
        if last + 1 != len(data):
            raise StreamError(f"expected a pickle of {last + 1} bytes, got {len(data)}")
        return _Unpickler(io.BytesIO(data)).load()
    except StreamError:
        raise
    except Exception as error:  # what instructions raise on values of other types is not laid down
        raise StreamError(f"expected a pickle: {error}; the stream is damaged") from error
