"""The range coder of FORMAT.md, section 7, in numpy and Python integers.

For machines without constriction: the part of `constriction.stream` that rangecoder.py uses, under
the same names, with the same words, symbols and errors, bit for bit. What is done per symbol of
the alphabet is done by numpy for many rows at once; one Python loop goes over the coded symbols.
Arguments are trusted: rangecoder.py checks them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Categorical", "RangeDecoder", "RangeEncoder"]

_PRECISION: Final = 24
_WORD_BITS: Final = 32
_WORD: Final = (1 << _WORD_BITS) - 1
_STATE_BITS: Final = 64
_STATE: Final = (1 << _STATE_BITS) - 1

_BLOCK_CELLS = 1 << 15  # of a matrix, converted at a time: they fit a small second-level cache


class Categorical:
    """Distribution of a symbol 0..K-1, in proportion to weights that come now or with the coder.

    `weights`: float64 `(K,)`, finite, at least 0, their sum above 0; None where each symbol has
    its own row. `perfect` has one value here; it stands in calls as constriction needs it.
    """

    def __init__(
        self, weights: NDArray[np.float64] | None = None, *, perfect: Literal[False]
    ) -> None:
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
        """Append symbols, `(P,)`, values 0..K-1; `weights` float64 `(P, K)` if the model has none.

        The matrix may have any memory layout.
        """
        rows = _rows(model, len(symbols) if weights is None else weights)
        lower, size = self._lower, self._range
        for symbol, (cumulative, start, _) in zip(symbols.tolist(), rows, strict=True):
            left = cumulative[start + symbol]
            step = size >> _PRECISION
            lower += step * left
            size = step * (cumulative[start + symbol + 1] - left)
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

        `rows`: weights, float64 `(P, K)`, in any memory layout; or P, if the model has weights.
        Raises AssertionError at a point that lies in no interval, as constriction does; the
        symbols before it are then consumed.
        """
        symbols = []
        offset, size = self._offset, self._range
        try:
            for cumulative, start, stop in _rows(model, rows):
                step = size >> _PRECISION
                quantile = offset // step
                if quantile >> _PRECISION:
                    raise AssertionError(
                        "Tried to decode from compressed data that is invalid for the employed "
                        "entropy model."
                    )
                index = bisect_right(cumulative, quantile, start + 1, stop) - 1
                symbols.append(index - start)
                left = cumulative[index]
                offset -= step * left
                size = step * (cumulative[index + 1] - left)
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


def _rows(model: Categorical, rows: NDArray[Any] | int) -> Iterator[tuple[memoryview, int, int]]:
    """Yield `(table, start, stop)` per coded symbol: table[start + s] is cum(s), s = 0..K.

    `stop` is start + K.
    """
    if model.weights is not None:
        weights = model.weights
        table = _cumulative(weights.reshape(1, -1)).data
        for _ in range(int(rows)):
            yield table, 0, weights.size
        return
    matrix = np.asarray(rows)
    count, n_symbols = matrix.shape
    n_rows = max(1, _BLOCK_CELLS // n_symbols)
    for first in range(0, count, n_rows):
        table = _cumulative(matrix[first : first + n_rows]).data
        for start in range(0, len(table), n_symbols + 1):
            yield table, start, start + n_symbols


def _cumulative(weights: NDArray[Any]) -> NDArray[np.int32]:
    """Return the cum(0..K) of section 7.1 of FORMAT.md, row after row, int32 `(P * (K + 1),)`.

    Two operations are rounded, the division and the multiplication; each is a call of its own, so
    that no compiler can fuse them. The sums run from left to right, as constriction's do.
    """
    count, n_symbols = weights.shape
    one = 1 << _PRECISION
    sums = np.cumsum(weights, axis=1, dtype=np.float64)
    scale = (one - n_symbols) / sums[:, -1:]
    table = np.zeros((count, n_symbols + 1), np.int32)
    inner = table[:, 1:-1]  # s = 1..K-1
    np.multiply(sums[:, :-1], scale, out=inner, casting="unsafe")  # truncates
    inner += np.arange(1, n_symbols, dtype=np.int32)
    table[:, -1] = one
    return table.reshape(-1)
