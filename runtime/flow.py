"""Sampling the flow: seeded noise, a few Euler steps, and the decoder, tile by tile where needed.

What is larger than a tile is sampled on overlapping tiles whose results are blended in latent space
after every step, so that seams cannot form; the memory needed is that of one tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.contract import Buffer, Engine
from percoedge.engines.manifest import CodecConstants
from percoedge.errors import BackendError
from percoedge.runtime.tiles import Tile, context_tiles, overlapping_tiles, ramp

__all__ = ["decode_latent", "noise", "sample"]

FloatArray = NDArray[np.float32]


def noise(seed: int, channels: int, height: int, width: int) -> FloatArray:
    """Standard normal float32 (channels,height,width) from numpy's counter-based Philox."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return generator.standard_normal((channels, height, width), np.float32)


def sample(
    engine: Engine,
    tokens: NDArray[np.int32],
    start: FloatArray,
    steps: int,
    guidance: float | None,
    codec: CodecConstants,
    condition: Mapping[str, Buffer] | None = None,
) -> Buffer:
    """Integrate from t = 1 to 0 in equal Euler steps: latent float32 like ``start`` (n,C,H,W).

    ``tokens`` (n,h,w). ``guidance`` is fed to a guided flow graph; None means that ``engine`` runs
    the unguided one. ``condition``: what the graph takes of captions, by name. The result stays on
    the device where the grid fits into one tile. Raises BackendError when the result holds NaN or
    infinity.
    """
    x: Buffer = start
    dt = np.array([1 / steps], np.float32)
    for index in range(steps):
        t = np.array([1 - index / steps], np.float32)
        knobs: dict[str, Buffer] = {"t": t, "dt": dt, **(condition or {})}
        if guidance is not None:
            knobs["guidance"] = np.array([guidance], np.float32)
        if max(tokens.shape[1:]) <= codec.flow_tile:
            feeds: dict[str, Buffer] = {"x": x, "tokens": tokens, **knobs}
            x = engine.run(feeds, on_device=True)["x_next"]
        else:
            x = _tiled_step(engine, tokens, np.asarray(x), knobs, codec)
    # One look at the end: what is not finite stays so. A latent is a third of its image in bytes,
    # and waiting for it here keeps the times of flow and decoder apart.
    if not np.isfinite(np.asarray(x)).all():
        raise BackendError(
            "expected finite latents from the flow graph, got NaN or infinity: its numbers "
            "overflow on this backend; decode with the backend 'onnxruntime-cpu', or export the "
            "bundle with norms and softmax in float32"
        )
    return x


def _tiled_step(
    engine: Engine,
    tokens: NDArray[np.int32],
    x: FloatArray,
    knobs: Mapping[str, Buffer],
    codec: CodecConstants,
) -> FloatArray:
    """One Euler step on overlapping tiles, blended with weights that fall off towards edges.

    Tiles go through the graph ``codec.flow_batch`` at a time, those of a batch of pictures too.
    """
    cells = codec.stride // codec.latent_stride
    height, width = tokens.shape[1:]
    overlap = codec.flow_overlap
    rows, tops = overlapping_tiles(height, codec.flow_tile, overlap)
    columns, lefts = overlapping_tiles(width, codec.flow_tile, overlap)
    vertical = {t: ramp(rows * cells, t * cells, height * cells, overlap * cells) for t in tops}
    horizontal = {
        left: ramp(columns * cells, left * cells, width * cells, overlap * cells) for left in lefts
    }
    total = np.zeros_like(x)
    weight = np.zeros(x.shape[2:], np.float32)
    corners = list(itertools.product(tops, lefts))
    for first in range(0, len(corners), codec.flow_batch):
        together = corners[first : first + codec.flow_batch]
        tiles = [Tile(top, top + rows, left, left + columns) for top, left in together]
        feeds: dict[str, Buffer] = {
            "x": np.concatenate([x[(..., *tile.scaled(cells))] for tile in tiles]),
            "tokens": np.concatenate([tokens[(..., *tile.slices)] for tile in tiles]),
            **_for_each_tile(engine, knobs, len(tiles)),
        }
        steps = np.split(np.asarray(engine.run(feeds)["x_next"]), len(tiles))
        for tile, step in zip(tiles, steps, strict=True):
            place = (..., *tile.scaled(cells))
            share = np.outer(vertical[tile.top], horizontal[tile.left])
            total[place] += step * share
            weight[place] += share
    return total / weight


def _for_each_tile(engine: Engine, knobs: Mapping[str, Buffer], count: int) -> dict[str, Buffer]:
    """Knobs with what belongs to pictures, as captions do, repeated for their tiles."""
    of_pictures = {spec.name for spec in engine.inputs if spec.shape[:1] == ("n",)}
    return {
        name: np.concatenate([np.asarray(knob)] * count) if name in of_pictures else knob
        for name, knob in knobs.items()
    }


def decode_latent(engine: Engine, latent: Buffer, codec: CodecConstants) -> NDArray[np.uint8]:
    """Latent float32 (n,C,H,W) -> pixels uint8 (n,8H,8W,3), in tiles with enough context.

    Raises BackendError when the graph gives a blank picture whatever it is given.
    """
    pixels = _decode(engine, latent, codec)
    blank = _blank_values(pixels)
    if (blank >= 0).any():
        # A picture may be black or white throughout, and then that of the opposite latent is not.
        # Numbers overflow with either sign, and NaN ends as the same byte in either.
        opposite = _blank_values(_decode(engine, 1 - np.asarray(latent), codec))
        stuck = blank[(blank >= 0) & (blank == opposite)]
        if len(stuck):
            raise BackendError(
                f"expected pictures from the decoder graph, got {stuck[0]} in every pixel, for the "
                "opposite latent too: its numbers overflow on this backend; decode with the "
                "backend 'onnxruntime-cpu', or export the bundle with norms in float32"
            )
    return pixels


def _blank_values(pixels: NDArray[np.uint8]) -> NDArray[np.int_]:
    """0 or 255 (n,) for pictures of a batch that hold nothing else, -1 for the others."""
    values = []
    for picture in pixels:
        first = int(picture.flat[0])
        parts = (picture[::16, ::16], picture)  # a few pixels tell most pictures
        blank = first in (0, 255) and all((part == first).all() for part in parts)
        values.append(first if blank else -1)
    return np.array(values)


def _decode(engine: Engine, latent: Buffer, codec: CodecConstants) -> NDArray[np.uint8]:
    cells = codec.stride // codec.latent_stride
    batch = latent.shape[0]
    height, width = (side // cells for side in latent.shape[2:])
    pairs = context_tiles(height, width, codec.decoder_tile, codec.decoder_margin)
    if len(pairs) == 1:
        return np.asarray(engine.run({"x": latent})["image"])
    whole = np.asarray(latent)
    pixels = np.empty((batch, height * codec.stride, width * codec.stride, 3), np.uint8)
    for outer, inner in pairs:
        rows, columns = outer.scaled(cells)
        tile = np.ascontiguousarray(whole[:, :, rows, columns])
        image = np.asarray(engine.run({"x": tile})["image"])
        top = (inner.top - outer.top) * codec.stride
        left = (inner.left - outer.left) * codec.stride
        rows, columns = inner.scaled(codec.stride)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        pixels[:, rows, columns] = image[:, top : top + size[0], left : left + size[1]]
    return pixels
