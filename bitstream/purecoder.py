"""The range coder of FORMAT.md, section 7, in numpy and Python integers.

For machines without constriction: the part of `constriction.stream` that rangecoder.py uses, under
the same names, with the same words, symbols and errors, bit for bit. numpy adds the weights of all
rows of a call up; one Python loop goes over the coded symbols, and finds each by bisection of these
sums. Arguments are trusted: rangecoder.py checks them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Categorical", "RangeDecoder", "RangeEncoder"]

_PRECISION: Final = 24
_WORD_BITS: Final = 32
_WORD: Final = (1 << _WORD_BITS) - 1
_STATE_BITS: Final = 64
_STATE: Final = (1 << _STATE_BITS) - 1

_ONE: Final = 1 << _PRECISION


class Categorical:
    """Distribution of a symbol 0..K-1, in proportion to weights that come now or with the coder.

    `weights`: `(K,)`, integers of at least 0 in float64 or int32, their sum above 0 and at most
    2**50 (int32: at most 2**16 each), so that sums are exact in any order. None where each symbol
    has its own row. `perfect` has one value here; it stands in calls as constriction needs it.
    """

    def __init__(self, weights: NDArray[Any] | None = None, *, perfect: Literal[False]) -> None:
        self.weights = weights


class RangeEncoder:
    """Narrows an interval symbol by symbol; its leading digits are the words."""

    def __init__(self) -> None:
        self._words: list[int] = []  # digits of the lower end that left it, carries included
        self._lower = 0
        self._range = _STATE

    def encode(
        self, symbols: NDArray[np.int32], model: Categorical, weights: NDArray[Any] | None = None
    ) -> None:
        """Append symbols, `(P,)`, values 0..K-1; `weights` `(P, K)` if the model has none.

        The matrix may have any memory layout.
        """
        lower, size = self._lower, self._range
        for left, right in _intervals(model.weights if weights is None else weights, symbols):
            step = size >> _PRECISION
            lower += step * left
            size = step * (right - left)
            if lower > _STATE:
                _carry(self._words)
                lower &= _STATE
            if size <= _WORD:
                self._words.append(lower >> _WORD_BITS)
                lower = (lower & _WORD) << _WORD_BITS
                size <<= _WORD_BITS
        self._lower, self._range = lower, size

    def pos(self) -> tuple[int, tuple[int, int]]:
        """Return the number of words in front of the interval, and its `(lower, range)`."""
        return len(self._words), (self._lower, self._range)

    def get_compressed(self) -> NDArray[np.uint32]:
        """Return the whole words that decode to all symbols, whatever follows them."""
        words = self._words.copy()
        if self._range != _STATE:  # else nothing was encoded
            point = self._lower + _WORD  # rounded up to a word, when its low word is dropped
            if point > _STATE:
                _carry(words)
            words.append((point & _STATE) >> _WORD_BITS)
            if (self._lower + self._range & _STATE) >> _WORD_BITS == words[-1]:
                words.append(0)
        return np.array(words, np.uint32)


class RangeDecoder:
    """Finds, symbol by symbol, the interval that a number lies in.

    `words`: uint32, its digits; zeros are read behind their end.
    """

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._words = np.ascontiguousarray(words, np.uint32).data
        self._next = 0
        self._range = _STATE
        # Only the distance of the point from the lower end is ever needed.
        self._offset = self._read_word() << _WORD_BITS
        self._offset |= self._read_word()

    def clone(self) -> RangeDecoder:
        """Return a decoder that goes on from here by itself."""
        other = RangeDecoder.__new__(RangeDecoder)
        other.__dict__.update(self.__dict__)
        return other

    def decode(self, model: Categorical, rows: NDArray[Any] | int) -> NDArray[np.int32]:
        """Return the next symbols, int32 `(P,)`.

        `rows`: weights `(P, K)`, in any memory layout; or P, if the model has weights.
        Raises AssertionError at a point that lies in no interval, as constriction does; the
        symbols before it are then consumed.
        """
        table, scales = _sums(rows if model.weights is None else model.weights)
        n_rows, n_symbols = table.shape
        sums, last = table.reshape(-1).data, n_symbols - 1
        places: Iterable[tuple[float, int]] = zip(
            scales.tolist(), range(0, n_rows * n_symbols, n_symbols), strict=True
        )
        if model.weights is not None:
            places = [*places] * int(rows)
        symbols = []
        offset, size = self._offset, self._range
        try:
            for scale, first in places:
                step = size >> _PRECISION
                quantile = offset // step
                if quantile >= _ONE:
                    raise AssertionError(
                        "Tried to decode from compressed data that is invalid for the employed "
                        "entropy model."
                    )
                # The highest symbol that it can be: cum without its "+ s" is below the quantile.
                symbol = bisect_right(sums, int(quantile / scale) + 1, first, first + last) - first
                left = int(sums[first + symbol - 1] * scale) + symbol if symbol else 0
                if left > quantile:  # in one of a hundred tokens or so
                    symbol = _last_not_above(quantile, sums, first, scale, symbol)
                    left = int(sums[first + symbol - 1] * scale) + symbol if symbol else 0
                right = int(sums[first + symbol] * scale) + symbol + 1 if symbol < last else _ONE
                symbols.append(symbol)
                offset -= step * left
                size = step * (right - left)
                if size <= _WORD:
                    offset = offset << _WORD_BITS | self._read_word()
                    size <<= _WORD_BITS
        finally:
            self._offset, self._range = offset, size
        return np.array(symbols, np.int32)

    def _read_word(self) -> int:
        self._next += 1
        return self._words[self._next - 1] if self._next <= len(self._words) else 0


def _carry(words: list[int]) -> None:
    """Add 1 to the number whose digits these are."""
    place = len(words) - 1
    while words[place] == _WORD:
        words[place] = 0
        place -= 1
    words[place] += 1


def _sums(weights: ArrayLike | None) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return A(1..K) and scale of section 7.1 of FORMAT.md for rows `(P, K)`, or for one `(K,)`.

    The sums are `(P, K)` (P = 1 for one row), without gaps in memory, the scales float64 `(P,)`.
    cum(s) = int(A(s) * scale) + s. Two operations are rounded, the division here and that
    multiplication; each is a call of its own, so that no compiler can fuse them.
    """
    matrix: NDArray[Any] = np.ascontiguousarray(np.atleast_2d(np.asarray(weights)))
    n_symbols = matrix.shape[1]
    # numpy adds up several times as fast where it need not convert.
    dtype = (
        np.float64 if matrix.dtype.kind == "f" else np.int32 if n_symbols < 1 << 15 else np.int64
    )
    sums = np.cumsum(matrix, axis=1, dtype=dtype)
    return sums, (_ONE - n_symbols) / sums[:, -1]


def _last_not_above(quantile: int, sums: memoryview, first: int, scale: float, stop: int) -> int:
    """Return the last symbol below `stop` whose cum is at most `quantile`.

    `sums` from `first` on are A(1..K) of its row.
    """
    return bisect_right(
        range(1, stop), quantile, key=lambda symbol: int(sums[first + symbol - 1] * scale) + symbol
    )


def _intervals(weights: ArrayLike | None, symbols: NDArray[np.int32]) -> list[list[int]]:
    """Return cum(s) and cum(s + 1) of every coded symbol s."""
    sums, scales = _sums(weights)
    n_rows, n_symbols = sums.shape
    rows = np.arange(len(symbols)) if n_rows > 1 else np.zeros(len(symbols), np.int64)
    above, scales = sums[rows, symbols], scales[rows]
    below = np.where(symbols > 0, sums[rows, symbols - 1], 0)
    left = (below * scales).astype(np.int32) + symbols  # astype drops the fraction
    right = (above * scales).astype(np.int32) + symbols + 1
    right[symbols == n_symbols - 1] = _ONE
    intervals: list[list[int]] = np.stack([left, right], axis=1).tolist()
    return intervals
