"""Range coding of tokens with integer weights, down to the last byte.

A queue range coder does the work (32-bit words, 64-bit state, 24-bit probabilities): that of
constriction where it is installed, else purecoder.py, which makes the same bytes more slowly. This
module adds the shortest tail, and decoding of streams that were cut. The arithmetic is part of the
stream format (FORMAT.md, section 7). This module knows neither grids nor models.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from percoedge.bitstream import purecoder
from percoedge.errors import StreamError, UsageError

__all__ = ["DEFAULT", "MAX_WEIGHT", "PURE", "Coder", "CutDecoder", "TokenDecoder", "TokenEncoder"]

MAX_WEIGHT: Final = 1 << 16
"""Largest weight of a symbol; with at most 2**16 symbols every sum is exact in binary64."""

_MAX_SYMBOLS = 1 << 16
_WORD_BITS = 32
_STATE_BITS = 64


class Coder(NamedTuple):
    """An implementation of the arithmetic: three classes that go by these names in constriction.

    `dtype`: in which it takes weights.
    """

    encoder: Any
    decoder: Any
    categorical: Any
    dtype: DTypeLike


PURE: Final = Coder(purecoder.RangeEncoder, purecoder.RangeDecoder, purecoder.Categorical, np.int32)
"""Runs wherever numpy does."""


def _fastest() -> Coder:
    try:
        from constriction import stream
    except ImportError:  # it has no wheels for Linux on ARM
        return PURE
    queue, categorical = stream.queue, stream.model.Categorical
    # With its first array it imports from numpy, and an interrupt there is a panic: so it is here,
    # where a module is being imported and interrupts wait.
    queue.RangeDecoder(np.zeros(1, np.uint32))
    return Coder(queue.RangeEncoder, queue.RangeDecoder, categorical, np.float64)


DEFAULT: Final = _fastest()
"""The fastest implementation installed; which one it is cannot be known from bytes or symbols."""


class TokenEncoder:
    """Codes symbols one pass after the other into one string of bytes."""

    def __init__(self, coder: Coder = DEFAULT) -> None:
        self._library, self._coder = coder, coder.encoder()

    def encode(self, symbols: ArrayLike, weights: ArrayLike) -> None:
        """Append symbols.

        `symbols`: integers, shape `(P,)`, values 0..K-1. `weights`: integers 1..`MAX_WEIGHT`,
        shape `(P, K)`, or `(K,)` for one table shared by all symbols; 2 <= K <= 2**16. They are
        frequencies and need no normalisation. Raises UsageError where a shape or value differs.
        """
        table = _checked_weights(weights)
        values = np.asarray(symbols)
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise UsageError(
                f"expected symbols as a vector of integers; got {values.dtype} {values.shape}"
            )
        if table.ndim == 2 and len(table) != len(values):
            raise UsageError(
                f"expected one row of weights per symbol; got {len(table)} rows for "
                f"{len(values)} symbols"
            )
        if values.size == 0:
            return
        if values.min() < 0 or values.max() >= table.shape[-1]:
            raise UsageError(
                f"expected symbols 0..{table.shape[-1] - 1}; got {values.min()}..{values.max()}"
            )
        values = np.ascontiguousarray(values, dtype=np.int32)
        self._coder.encode(values, *_model(self._library, table))

    def finish(self) -> bytes:
        """Return the shortest bytes that decode to all symbols, zeros being read behind the end.

        No trial decoding: the coder's interval is known, and the answer is its member with the
        most trailing zero bytes (the smallest, where there are several). The encoder stays usable.
        """
        n_words: int
        lower: int
        size: int
        n_words, (lower, size) = self._coder.pos()
        # The sealed words hold the carry that `pos` leaves out: sealing adds 2**32 - 1 to lower.
        words = self._coder.get_compressed()[:n_words].astype(">u4").tobytes()
        carried = lower + (1 << _WORD_BITS) - 1 >> _STATE_BITS
        first = ((int.from_bytes(words, "big") - carried) << _STATE_BITS) + lower
        # A multiple of 2**64 in the interval is the only one there; else finer multiples are many.
        drop = next(
            bits
            for bits in range(_STATE_BITS, -1, -8)
            if -(-first >> bits) << bits < first + size  # rounded up to a multiple of 2**bits
        )
        n_bytes = 4 * n_words + (_STATE_BITS - drop) // 8
        return (-(-first >> drop)).to_bytes(n_bytes, "big").rstrip(b"\0")


class TokenDecoder:
    """Decodes what a `TokenEncoder` made; bytes behind the end of `data` are read as zeros."""

    def __init__(self, data: bytes, coder: Coder = DEFAULT) -> None:
        self._library, self._coder = coder, coder.decoder(_words(data))

    def decode(self, weights: ArrayLike, count: int | None = None) -> NDArray[np.int32]:
        """Return the next symbols, int32 `(P,)`.

        `weights` as for `TokenEncoder.encode`; `count` is P, to be given only with weights of
        shape `(K,)`. Raises StreamError where the data cannot come from an encoder that used
        these weights (most damage cannot be seen here: that is the checksum's work), and
        UsageError for weights out of their domain.
        """
        table = _checked_weights(weights)
        if (table.ndim == 2) != (count is None):
            raise UsageError("expected `count` with weights of shape (K,), and only with these")
        try:
            return _decode(self._coder, self._library, table, count)
        except AssertionError as error:
            raise StreamError(_INVALID_POINT) from error


class CutDecoder:
    """Decodes the beginning of a stream of which only the first bytes are left.

    Interval decoding is monotone, so two decoders, one reading 0x00 and one reading 0xFF behind
    the end, enclose whatever the missing bytes were: what both agree on is certain. As the weights
    of a pass depend on earlier symbols, both run in lock-step, and stop for good at the first
    symbol they do not share.
    """

    def __init__(self, data: bytes, coder: Coder = DEFAULT) -> None:
        self._library = coder
        self._low = coder.decoder(_words(data))
        # Behind the last true byte the two differ by a whole state, so they part within two words.
        padding = b"\xff" * (-len(data) % 4 + 8)
        self._high = coder.decoder(_words(data + padding))
        self._high_is_top = False
        self._parted = False

    @property
    def exhausted(self) -> bool:
        """Whether a symbol was met that the bytes left do not settle."""
        return self._parted

    def decode(self, weights: ArrayLike) -> tuple[NDArray[np.int32], int]:
        """Return `(symbols, n_certain)` of the next pass.

        `weights`: integers, shape `(P, K)`, as for `TokenEncoder.encode`. `symbols`: int32 `(P,)`;
        the first `n_certain` are those of the uncut stream, all others are K (the MASK id). Raises
        StreamError where the bytes left cannot begin a stream coded with these weights, and
        UsageError for weights out of their domain.
        """
        table = _checked_weights(weights)
        if table.ndim != 2:
            raise UsageError(f"expected weights of shape (P, K); got {table.shape}")
        count, n_symbols = table.shape
        symbols = np.full(count, n_symbols, np.int32)
        if self._parted or count == 0:
            return symbols, 0
        low = _decode_while_valid(self._low, self._library, table)
        high = np.full(count, n_symbols - 1, np.int32)
        if not self._high_is_top:
            begun = _decode_while_valid(self._high, self._library, table)
            high[: len(begun)] = begun
            # Past the last interval: the highest legal stream has the last symbol from here on.
            self._high_is_top = len(begun) < count
        differs = np.flatnonzero(low != high[: len(low)])
        n_certain = int(differs[0]) if len(differs) else len(low)
        if n_certain == len(low) < count:
            raise StreamError(_INVALID_POINT)
        self._parted = n_certain < count
        symbols[:n_certain] = low[:n_certain]
        return symbols, n_certain


_INVALID_POINT = (
    "expected range-coded tokens; got bytes that no encoder makes with these weights: "
    "the stream is corrupted or was made with another bundle"
)


def _words(data: bytes) -> NDArray[np.uint32]:
    padded = data + b"\0" * (-len(data) % 4)
    return np.frombuffer(padded, ">u4").astype(np.uint32)


def _checked_weights(weights: ArrayLike) -> NDArray[Any]:
    table = np.asarray(weights)
    if (
        table.ndim not in (1, 2)
        or not 2 <= table.shape[-1] <= _MAX_SYMBOLS
        or table.dtype.kind not in "iu"
    ):
        raise UsageError(
            f"expected integer weights of shape (P, K) or (K,), 2 <= K <= {_MAX_SYMBOLS}; "
            f"got {table.dtype} {table.shape}"
        )
    if table.size and (table.min() < 1 or table.max() > MAX_WEIGHT):
        raise UsageError(
            f"expected weights 1..{MAX_WEIGHT}; got {table.min()}..{table.max()}: "
            "clip them in the entropy graph"
        )
    return table


def _model(library: Coder, table: NDArray[Any]) -> tuple[Any, ...]:
    """Arguments that follow the symbols (or the count) in the coder's calls."""
    # constriction takes rows for columns in a Fortran-ordered matrix, without an error.
    weights = np.ascontiguousarray(table, dtype=library.dtype)
    if table.ndim == 1:
        return (library.categorical(weights, perfect=False),)
    return library.categorical(perfect=False), weights


def _decode(
    coder: Any, library: Coder, table: NDArray[Any], count: int | None = None
) -> NDArray[np.int32]:
    if len(table) == 0 or count == 0:
        return np.empty(0, np.int32)
    decoded = coder.decode(*_model(library, table), *(() if count is None else (count,)))
    return np.asarray(decoded, dtype=np.int32)


def _decode_while_valid(coder: Any, library: Coder, table: NDArray[Any]) -> NDArray[np.int32]:
    """Symbols of a pass up to the first at which the coder's point lies in no interval."""
    retry = coder.clone()
    try:
        return _decode(coder, library, table)
    except AssertionError:
        symbols: list[NDArray[np.int32]] = []
        try:
            for row in range(len(table)):
                symbols.append(_decode(retry, library, table[row : row + 1]))
        except AssertionError:
            pass
        return np.concatenate([np.empty(0, np.int32), *symbols])
