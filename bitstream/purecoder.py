"""The range coder of FORMAT.md, section 7, in numpy and Python integers.

For machines without constriction: the part of `constriction.stream` that rangecoder.py uses, under
the same names, with the same words, symbols and errors, bit for bit. numpy adds the weights of all
rows of a call up, block by block of symbols; one Python loop goes over the coded symbols, and sees
the weights of one block for each. Arguments are trusted: rangecoder.py checks them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple

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
    2**53 (int32: at most 2**16 each), so that sums are exact in any order. None where each symbol
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
        table = _table(model.weights if weights is None else weights)
        for left, right in _intervals(table, symbols):
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
        table = _table(rows if model.weights is None else model.weights)
        n_rows, n_symbols = table.weights.shape
        n_borders, block_size = table.borders.shape[1], table.block_size
        n_blocks = -(-n_symbols // block_size)
        sums, borders, weights = (part.reshape(-1).data for part in table[:3])
        places: Iterable[tuple[float, int, int]] = zip(
            table.scales.tolist(),
            range(0, n_rows * n_borders, n_borders),
            range(0, n_rows * n_symbols, n_symbols),
            strict=True,
        )
        if model.weights is not None:
            places = [*places] * int(rows)
        symbols = []
        offset, size = self._offset, self._range
        try:
            for scale, first, start in places:
                step = size >> _PRECISION
                quantile = offset // step
                if quantile >= _ONE:
                    raise AssertionError(
                        "Tried to decode from compressed data that is invalid for the employed "
                        "entropy model."
                    )
                block = bisect_right(borders, quantile, first + 1, first + n_blocks) - 1
                below, symbol = sums[block], (block - first) * block_size
                stop = symbol + block_size if symbol + block_size < n_symbols else n_symbols - 1
                enough = int((quantile - stop) / scale) - 1  # less is below the quantile for sure
                for weight in weights[start + symbol : start + stop].tolist():
                    above = below + weight
                    if above >= enough:
                        right = int(above * scale) + symbol + 1
                        if right > quantile:
                            break
                    below = above
                    symbol += 1
                else:  # only the last symbol is left, whose interval ends where all do
                    right = _ONE
                symbols.append(symbol)
                left = int(below * scale) + symbol
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


class _Table(NamedTuple):
    """The numbers of section 7.1 of FORMAT.md for P rows (1 if shared) of K symbols, in blocks.

    `sums` int64 or float64 `(P, B)`: A of the first symbol of each block; `borders` int32 `(P, B)`:
    its cum; `weights` `(P, K)`, without gaps in memory; `scales` float64 `(P,)`. B counts whole
    blocks and what is behind them, be it nothing.
    """

    sums: NDArray[Any]
    borders: NDArray[np.int32]
    weights: NDArray[Any]
    scales: NDArray[np.float64]
    block_size: int


def _table(weights: ArrayLike | None) -> _Table:
    """Add up weights of rows `(P, K)`, or of one `(K,)`.

    Two operations are rounded, the division here and the multiplication in `_cumulative`; each is
    a call of its own, so that no compiler can fuse them.
    """
    matrix: NDArray[Any] = np.ascontiguousarray(np.atleast_2d(np.asarray(weights)))
    n_rows, n_symbols = matrix.shape
    # About half the root: larger blocks are more work for Python, smaller ones for numpy.
    block_size = 1 << max(0, n_symbols.bit_length() // 2 - 1)
    n_blocks = n_symbols // block_size
    n_whole = n_blocks * block_size
    wide = np.int64 if matrix.dtype.kind == "i" else np.float64
    sums = np.zeros((n_rows, n_blocks + 1), wide)
    # einsum adds up short rows several times as fast as sum
    in_blocks = matrix[:, :n_whole].reshape(n_rows, n_blocks, block_size)
    np.cumsum(np.einsum("pbk->pb", in_blocks), axis=1, dtype=wide, out=sums[:, 1:])
    scales = (_ONE - n_symbols) / (sums[:, -1] + matrix[:, n_whole:].sum(axis=1))
    starts = np.arange(0, n_symbols + 1, block_size, dtype=np.int32)
    return _Table(sums, _cumulative(sums, scales[:, None], starts), matrix, scales, block_size)


def _cumulative(
    sums: NDArray[Any], scales: NDArray[np.float64], symbols: NDArray[Any]
) -> NDArray[np.int32]:
    """Return cum(s) of symbols s < K, int32, from their A(s), in any shapes that broadcast."""
    cumulative: NDArray[np.int32] = (sums * scales).astype(np.int32)  # which drops the fraction
    cumulative += symbols
    return cumulative


def _intervals(table: _Table, symbols: NDArray[np.int32]) -> list[list[int]]:
    """Return cum(s) and cum(s + 1) of every coded symbol s."""
    n_rows, n_symbols = table.weights.shape
    rows = np.arange(len(symbols)) if n_rows > 1 else np.zeros(len(symbols), np.int64)
    blocks = symbols // table.block_size
    members = (blocks * table.block_size)[:, None] + np.arange(table.block_size)
    of_members = table.weights[rows[:, None], np.minimum(members, n_symbols - 1)]
    below = np.where(members < symbols[:, None], of_members, 0).sum(axis=1)
    sums, scales = table.sums[rows, blocks] + below, table.scales[rows]
    left = _cumulative(sums, scales, symbols)
    right = _cumulative(sums + table.weights[rows, symbols], scales, symbols + 1)
    right[symbols == n_symbols - 1] = _ONE
    intervals: list[list[int]] = np.stack([left, right], axis=1).tolist()
    return intervals
