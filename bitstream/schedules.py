"""Mask schedules: which cell of a token grid is coded in which pass, in integers only.

The tables are part of the stream format (FORMAT.md, section 6): encoder and decoder compute them
on their own and must agree on every cell of every grid, so nothing here uses floating point.
This module knows neither tokens nor models; a grid is just a height and a width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from percoedge.errors import UsageError

__all__ = ["MAX_GRID_SIDE", "SCHEDULES", "pass_count", "pass_table", "passes"]

SCHEDULES: Final[tuple[str, ...]] = (
    "uniform",
    "checkerboard",
    "quincunx",
    "qlds-4",
    "qlds-8",
    "qlds-12",
    "var",
)
"""Names in the order of their id in the stream."""

MAX_GRID_SIDE: Final = 4096
"""Largest side of a grid, in cells; the split products below stay far under 2**64."""

# Quincunx of PQ-MIM (arXiv 2212.07372): the pass of cell (row, column) is [row % 4][column % 4].
_QUINCUNX = ((4, 2, 4, 0), (3, 4, 3, 4), (4, 1, 4, 2), (3, 4, 3, 4))

# floor(2**16 * ((i + 1) / S)**2.2): the share of the grid known after pass i (arXiv 2304.07313).
_QLDS_SHARES = {
    "qlds-4": (3104, 14263, 34802, 65536),
    "qlds-8": (675, 3104, 7574, 14263, 23303, 34802, 48853, 65536),
    "qlds-12": (
        *(276, 1272, 3104, 5845, 9550, 14263),
        *(20021, 26858, 34802, 43881, 54118, 65536),
    ),
}

# Roberts' R2 sequence in 64-bit fixed point: floor(2**64 / g) and floor(2**64 / g**2) for the
# real root g = 1.3247... of g**3 = g + 1.
_R2_COLUMN = 0xC13FA9A902A6328F
_R2_ROW = 0x91E10DA5C79E7B1C
_R2_START = 1 << 63
_R2_CHUNK = 1 << 16

# VAR's scales for grids of 16x16 and 32x32 cells (arXiv 2404.02905), last = the side they are for.
_VAR_SMALL = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
_VAR_LARGE = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)

_PASS_COUNTS = {
    "uniform": 1,
    "checkerboard": 2,
    "quincunx": 5,
    "qlds-4": 4,
    "qlds-8": 8,
    "qlds-12": 12,
    "var": 10,
}


def pass_count(name: str) -> int:
    """Return the number of passes of a schedule, empty ones included.

    `name` is one of `SCHEDULES`. Raises UsageError for any other.
    """
    if not isinstance(name, str) or name not in _PASS_COUNTS:
        raise UsageError(
            f"expected a schedule out of {', '.join(SCHEDULES)}; got {name!r}: choose one of these"
        )
    return _PASS_COUNTS[name]


def pass_table(name: str, height: int, width: int) -> NDArray[np.uint8]:
    """Return the number of the pass that codes each cell.

    Shape `(height, width)`, uint8, values below `pass_count(name)`, read-only (it is shared
    between calls). `height` and `width` are 1..`MAX_GRID_SIDE` cells. Frozen for ever: the same
    arguments give the same table in every version. Raises UsageError for an unknown name or a
    side out of range.
    """
    pass_count(name)
    for side in (height, width):
        if not 1 <= side <= MAX_GRID_SIDE:
            raise UsageError(
                f"expected grid sides of 1..{MAX_GRID_SIDE} cells; got {height}x{width}: "
                "cut the grid into tiles"
            )
    return _cached_table(name, int(height), int(width))


def passes(name: str, height: int, width: int) -> list[NDArray[np.int32]]:
    """Return the flat cell indices (`row * width + column`) of each pass in coding order.

    `pass_count(name)` arrays of int32, each ascending; every cell occurs in exactly one. On a
    small grid some are empty: the numbering of the passes never depends on the grid. Raises
    UsageError as `pass_table` does.
    """
    flat = pass_table(name, height, width).ravel()
    return [np.flatnonzero(flat == number).astype(np.int32) for number in range(pass_count(name))]


@lru_cache(maxsize=64)
def _cached_table(name: str, height: int, width: int) -> NDArray[np.uint8]:
    if name in _QLDS_SHARES:
        table = _qlds(_QLDS_SHARES[name], height, width)
    elif name == "var":
        table = _var(height, width)
    else:
        rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
        if name == "quincunx":
            table = np.array(_QUINCUNX, np.uint8)[rows % 4, columns % 4]
        elif name == "checkerboard":
            table = ((rows + columns) % 2).astype(np.uint8)
        else:
            table = np.zeros((height, width), np.uint8)
    table.flags.writeable = False
    return table


def _qlds(shares: tuple[int, ...], height: int, width: int) -> NDArray[np.uint8]:
    """Quantised low-discrepancy schedule: cells in R2 order, cut at the cumulative counts."""
    cells = height * width
    ends = [-(-cells * share >> 16) for share in shares]  # ceil(cells * share / 2**16)
    table = np.empty(cells, np.uint8)
    sizes = np.diff([0, *ends])
    table[_r2_order(height, width)] = np.repeat(np.arange(len(shares), dtype=np.uint8), sizes)
    return table.reshape(height, width)


def _r2_order(height: int, width: int) -> NDArray[np.int64]:
    """Flat cell indices in the order in which the R2 sequence first meets them."""
    cells = height * width
    seen = np.zeros(cells, np.bool_)
    order = np.empty(cells, np.int64)
    found = start = 0
    while found < cells:
        n = np.arange(start, start + _R2_CHUNK, dtype=np.uint64)
        visited = _r2_cells(n, _R2_ROW, height) * width + _r2_cells(n, _R2_COLUMN, width)
        visited = visited[~seen[visited]]
        fresh = visited[np.sort(np.unique(visited, return_index=True)[1])]
        order[found : found + len(fresh)] = fresh
        seen[fresh] = True
        found += len(fresh)
        start += _R2_CHUNK
    return order


def _r2_cells(n: NDArray[np.uint64], step: int, size: int) -> NDArray[np.int64]:
    """`((2**63 + n * step) mod 2**64) * size >> 64` in two halves, so that no product overflows."""
    u = n * np.uint64(step) + np.uint64(_R2_START)  # uint64 arithmetic wraps modulo 2**64
    half = np.uint64(32)
    low = (u & np.uint64(0xFFFFFFFF)) * np.uint64(size) >> half
    return ((u >> half) * np.uint64(size) + low >> half).astype(np.int64)


def _var(height: int, width: int) -> NDArray[np.uint8]:
    """Coarse to fine: a pass codes the cells under the centres of its scale, if still uncoded."""
    scales = _VAR_SMALL if max(height, width) <= _VAR_SMALL[-1] else _VAR_LARGE
    last = len(scales) - 1
    table = np.full((height, width), last, np.uint8)
    # Finest first, so that the coarsest scale that meets a cell is the one that stays.
    for number in range(last - 1, -1, -1):
        rows, columns = (_centres(side, scales[number], scales[-1]) for side in table.shape)
        table[np.ix_(rows, columns)] = number
    return table


def _centres(side: int, scale: int, finest: int) -> NDArray[np.int64]:
    """Indices of the cells that hold the centres of `ceil(side * scale / finest)` equal parts."""
    parts = -(-side * scale // finest)
    return (2 * np.arange(parts, dtype=np.int64) + 1) * side // (2 * parts)
