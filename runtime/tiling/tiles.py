"""Cutting grids into tiles, side by side or overlapping, and batches into parts.

All sizes are in cells of some grid; nothing here knows what they hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.contract import Buffer

__all__ = [
    "BATCH_PIXELS",
    "SIDE_STEP",
    "Tile",
    "batch_parts",
    "context_tiles",
    "grid_of",
    "grid_tiles",
    "overlapping_tiles",
    "ramp",
    "slice_of",
]

BATCH_PIXELS = 1024 * 1024
"""Pixels that go through a graph together where its engine sets no limit, one image at least.

That is a CPU: it is no faster with more, only with many small images. Where an engine states its
largest batch, that of a device, it is 16 times as many.
"""

SIDE_STEP = 4
"""Cells of which sides of tiles are multiples, so that whatever runs them meets few shapes."""

_DEVICE = 16


@dataclass(frozen=True)
class Tile:
    """A rectangle of a grid: rows top..bottom and columns left..right, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in cells."""
        return self.bottom - self.top, self.right - self.left

    def scaled(self, factor: int) -> tuple[slice, slice]:
        """Row and column slices in a grid that is ``factor`` times finer."""
        return (
            slice(self.top * factor, self.bottom * factor),
            slice(self.left * factor, self.right * factor),
        )

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices in this grid."""
        return self.scaled(1)


def batch_parts(count: int, pixels: int, max_batch: int | None = None) -> list[slice]:
    """Slices of ``count`` images of so many pixels that go through a graph together.

    ``max_batch``: the engine's.
    """
    if max_batch is None:
        together = max(1, BATCH_PIXELS // pixels)
    else:
        together = max(1, min(max_batch, _DEVICE * BATCH_PIXELS // pixels))
    return [slice(first, first + together) for first in range(0, count, together)]


def slice_of(buffer: Buffer, part: slice) -> Buffer:
    """That part of a buffer's first axis; a buffer as a whole stays where it is."""
    whole = part.start == 0 and part.stop >= buffer.shape[0]
    return buffer if whole else np.asarray(buffer)[part]


def grid_of(height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of the cells that cover an area, ``stride`` a side."""
    return -(-height // stride), -(-width // stride)


def grid_tiles(height: int, width: int, side: int) -> list[Tile]:
    """Tiles of at most ``side`` x ``side`` side by side in raster order; the last are smaller."""
    return [
        Tile(top, min(top + side, height), left, min(left + side, width))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def context_tiles(
    height: int, width: int, side: int, margin: int | None, max_batch: int | None = None
) -> list[tuple[Tile, Tile]]:
    """Pairs (outer, inner): inner tiles side by side, outer ones with ``margin`` or more around.

    Outer tiles lie in the grid and are all of one shape, of at most ``side`` and two margins: they
    go through a graph together, or one after another in the same memory. One pair of the whole
    where ``margin`` is None: what is not to be cut. ``max_batch``: the engine's; one that states
    it, that of a device, makes ready for each shape, so that sides are multiples of `SIDE_STEP`.
    """
    if margin is None:
        side, margin = max(height, width), 0
    step = 1 if max_batch is None else SIDE_STEP
    rows, columns = (_context_spans(length, side, margin, step) for length in (height, width))
    return [
        (Tile(*outer_rows, *outer_columns), Tile(*inner_rows, *inner_columns))
        for outer_rows, inner_rows in rows
        for outer_columns, inner_columns in columns
    ]


def _context_spans(
    length: int, side: int, margin: int, step: int
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where outer and inner tiles begin and end along an axis; inner ones meet amid the overlap."""
    outer, starts = overlapping_tiles(length, side + 2 * margin, 2 * margin, step)
    meetings = [(before + outer + after) // 2 for before, after in pairwise(starts)]
    inner = pairwise([0, *meetings, length])
    return [((start, start + outer), span) for start, span in zip(starts, inner, strict=True)]


def overlapping_tiles(
    length: int, most: int, overlap: int, step: int = SIDE_STEP
) -> tuple[int, list[int]]:
    """Side and first cells of equal tiles that cover ``length`` and share ``overlap`` or more.

    They are the fewest of at most ``most`` cells, and no larger than so many need, up to a multiple
    of ``step``.
    """
    if length <= most:
        return length, [0]
    count = -(-(length - overlap) // (most - overlap))
    needed = -(-(length + (count - 1) * overlap) // count)
    side = min(most, -(-needed // step) * step)
    return side, [index * (length - side) // (count - 1) for index in range(count)]


def ramp(size: int, start: int, length: int, overlap: int) -> NDArray[np.float32]:
    """Blending weights (size,) of a tile: rising and falling linearly over ``overlap`` cells.

    Edges on the border of the grid of ``length`` cells do not fall off. All are above 0; where two
    tiles share exactly ``overlap`` cells they add up to 1, else divide by their sum.
    """
    overlap = max(overlap, 1)
    position = np.arange(size, dtype=np.float32) + 0.5
    rising = position / overlap if start > 0 else np.ones(size, np.float32)
    falling = (size - position) / overlap if start + size < length else np.ones(size, np.float32)
    result: NDArray[np.float32] = np.minimum(np.minimum(rising, falling), 1).astype(np.float32)
    return result
