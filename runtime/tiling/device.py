"""The flow on overlapping tiles that never leave the device; see ``percoedge.engines.tiling``.

The host computes small tables of indices and weights once, and then queues graphs: tiles out of the
latents, a step of the flow on them, and back. Tiles go through in rectangles of as many as the
flow's engine takes, so that tables of rows and of columns describe each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.contract import Buffer, Engine
from percoedge.runtime.tiling.tiles import Tile

__all__ = ["Axis", "DeviceTiling", "cut_feeds"]


@dataclass(frozen=True)
class Axis:
    """One axis of a latent of ``length`` cells, cut into tiles of ``side`` cells.

    ``shares``: by first cell, how much each cell of the tile counts; they add up to 1.
    """

    length: int
    side: int
    shares: Mapping[int, NDArray[np.float32]]

    @property
    def most(self) -> int:
        """Most tiles that share a cell."""
        covered = np.zeros(self.length, int)
        for start in self.shares:
            covered[start : start + self.side] += 1
        return int(covered.max())

    def sources(
        self, first: int, last: int, width: int, cell: int, tile: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """What each cell is made of, of some of the tiles: indices and weights (length,k).

        ``first``, ``last``: which tiles, the end excluded; ``width``: k; ``cell`` and ``tile``: how
        far a step of one of them goes.
        """
        indices = np.zeros((self.length, width), np.int32)
        weights = np.zeros((self.length, width), np.float32)
        used = np.zeros(self.length, int)
        for number, start in enumerate(list(self.shares)[first:last]):
            cells = np.arange(start, start + self.side)
            indices[cells, used[cells]] = number * tile + np.arange(self.side) * cell
            weights[cells, used[cells]] = self.shares[start]
            used[cells] += 1
        return indices, weights


def cut_feeds(
    tiles: Sequence[Tile], count: int, shape: tuple[int, int]
) -> dict[str, NDArray[np.int32]]:
    """Rows and columns for the graph "cut": tiles of one size, each of ``count`` latents.

    Tiles and ``shape`` (rows and columns of the latents) are in latent cells.
    """
    height, width = shape
    rows, columns = tiles[0].shape
    tops = np.array([latent * height + tile.top for tile in tiles for latent in range(count)])
    lefts = np.array([tile.left for tile in tiles for _ in range(count)])
    return {
        "rows": ((tops[:, None] + np.arange(rows)) * width).astype(np.int32),
        "columns": (lefts[:, None] + np.arange(columns)).astype(np.int32),
    }


@dataclass(frozen=True)
class _Rectangle:
    """Tiles that go through together: what each of the three graphs is fed besides latents."""

    cut: Mapping[str, Buffer]
    flow: Mapping[str, Buffer]
    blend: Mapping[str, Buffer]


class DeviceTiling:
    """Latents (n,C,a,b) cut along two axes. ``whole``: tokens (n,h,w), and what else is n times.

    ``cells``: latent cells a token covers, per side. ``repeated``: names of what belongs to an
    image and must be there for each of its tiles.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        axes: tuple[Axis, Axis],
        whole: Mapping[str, Buffer],
        cells: int,
        repeated: frozenset[str],
    ) -> None:
        self._engines = engines
        count = whole["tokens"].shape[0]
        down, across = axes
        most = max(1, (engines["flow"].max_batch or 1) // count)
        high, wide = _rectangle(len(down.shares), len(across.shares), most)
        self._rectangles = [
            self._fed(axes, whole, cells, repeated, (top, top + high), (left, left + wide))
            for top in range(0, len(down.shares), high)
            for left in range(0, len(across.shares), wide)
        ]

    def step(self, x: Buffer, knobs: Mapping[str, Buffer]) -> Buffer:
        """Queue one step on every tile, and what blends them; the next latents."""
        blended = x
        for number, one in enumerate(self._rectangles):
            tiles = self._run("cut", {"x": x, **one.cut})["tiles"]
            tiles = self._run("flow", {"x": tiles, **one.flow, **knobs})["x_next"]
            keep = np.array([number > 0], np.float32)
            blended = self._run("blend", {"tiles": tiles, "x": blended, "keep": keep, **one.blend})[
                "x_next"
            ]
        return blended

    def _run(self, kind: str, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        return self._engines[kind].run(feeds, on_device=True)

    @staticmethod
    def _fed(
        axes: tuple[Axis, Axis],
        whole: Mapping[str, Buffer],
        cells: int,
        repeated: frozenset[str],
        rows: tuple[int, int],
        columns: tuple[int, int],
    ) -> _Rectangle:
        down, across = axes
        tokens = np.asarray(whole["tokens"])
        count, area = len(tokens), down.side * across.side
        tiles = [
            Tile(top, top + down.side, left, left + across.side)
            for top in list(down.shares)[slice(*rows)]
            for left in list(across.shares)[slice(*columns)]
        ]
        wide = len(list(across.shares)[slice(*columns)])
        # Tile by tile, and each of every image in turn.
        most = max(down.most, across.most)
        from_rows, row_weights = down.sources(*rows, most, across.side, wide * count * area)
        from_columns, column_weights = across.sources(*columns, most, 1, count * area)
        images = np.arange(count, dtype=np.int32)[:, None, None] * area
        flow = dict(whole)
        for name in repeated & whole.keys():
            flow[name] = np.concatenate([np.asarray(whole[name])] * len(tiles))
        flow["tokens"] = np.concatenate(
            [
                tokens[:, t.top // cells : t.bottom // cells, t.left // cells : t.right // cells]
                for t in tiles
            ]
        )
        return _Rectangle(
            cut=cut_feeds(tiles, count, (down.length, across.length)),
            flow=flow,
            blend={
                "rows": images + from_rows,
                "columns": from_columns,
                "row_weights": row_weights,
                "column_weights": column_weights,
            },
        )


def _rectangle(rows: int, columns: int, most: int) -> tuple[int, int]:
    """Rows and columns of rectangles of at most so many tiles that cover a grid in the fewest."""
    shapes = [(high, min(columns, most // high)) for high in range(1, min(rows, most) + 1)]
    return min(shapes, key=lambda shape: -(-rows // shape[0]) * -(-columns // shape[1]))
