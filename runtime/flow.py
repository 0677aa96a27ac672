"""Sampling the flow: seeded noise, a few steps, and the decoder, tile by tile where needed.

What is larger than a tile is sampled on overlapping tiles whose results are blended in latent space
after every step, so that seams cannot form; the memory needed is that of a few tiles and of two
latents. On a device, all of that stays there and is queued without waiting: see ``tiling.device``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm, prod

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import Buffer, Engine
from percoedge.errors import BackendError
from percoedge.runtime.tiling.device import Axis, DeviceTiling, cut_feeds
from percoedge.runtime.tiling.tiles import (
    SIDE_STEP,
    Tile,
    batch_parts,
    context_tiles,
    overlapping_tiles,
    ramp,
)

__all__ = ["decode_latent", "noise", "sample", "step_times"]

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
    tilers: Mapping[str, Engine] | None = None,
) -> Buffer:
    """From noise to latents in ``step_times``: float32 like ``start`` (n,C,H,W).

    ``tokens`` (n,h,w). ``guidance`` is fed to a guided flow graph; None means that ``engine`` runs
    the unguided one. ``condition``: what the graph takes of captions, by name. ``tilers``: engines
    of the graphs "cut" and "blend", to keep tiles on the device; else the host cuts and blends. The
    result stays on the device where the grid fits into one tile or there are tilers, and may not be
    there yet. Whether it is finite, ``decode_latent`` sees.
    """
    x: Buffer = start
    whole: dict[str, Buffer] = {"tokens": tokens, **(condition or {})}
    tiling: _Tiling | DeviceTiling | None = None
    if max(tokens.shape[1:]) > codec.flow_tile:
        if tilers is None:
            tiling = _Tiling(engine, start, whole, codec)
        else:
            cells = codec.stride // codec.latent_stride
            axes = _axis(tokens.shape[1], codec), _axis(tokens.shape[2], codec)
            engines = {"flow": engine, **tilers}
            tiling = DeviceTiling(engines, axes, whole, cells, _of_images(engine))
    for t, dt in step_times(codec, steps):
        knobs: dict[str, Buffer] = {
            "t": np.array([t], np.float32),
            "dt": np.array([dt], np.float32),
        }
        if guidance is not None:
            knobs["guidance"] = np.array([guidance], np.float32)
        if tiling is None:
            x = engine.run({"x": x, **whole, **knobs}, on_device=True)["x_next"]
        else:
            x = tiling.step(x, knobs)
    return x


def step_times(codec: CodecConstants, steps: int) -> list[tuple[float, float]]:
    """``t`` and ``dt`` of each step.

    Of a flow: time from 1 to 0 in equal Euler steps. Of a diffusion model: steps of training, from
    1 on with equal spaces between (what diffusers calls "leading" spacing with an offset of 1), and
    the angle from each to the next, at the end to step 0.
    """
    if not codec.angles:
        return [(1 - index / steps, 1 / steps) for index in range(steps)]
    space = len(codec.angles) // steps
    times = [1 + index * space for index in reversed(range(steps))]
    return [
        (time, codec.angles[time] - codec.angles[following])
        for time, following in zip(times, [*times[1:], 0], strict=True)
    ]


def _tiles_along(side: int, codec: CodecConstants) -> tuple[int, list[int]]:
    """Side and first tokens of the overlapping tiles along one side of a grid."""
    step = lcm(SIDE_STEP, codec.flow_multiple)
    return overlapping_tiles(side, codec.flow_tile, codec.flow_overlap, step)


def _axis(side: int, codec: CodecConstants) -> Axis:
    """Tiles along one side of a grid of tokens, in latent cells."""
    cells = codec.stride // codec.latent_stride
    tile, starts = _tiles_along(side, codec)
    shares = _shares(starts, tile, side * cells, cells, codec.flow_overlap)
    return Axis(side * cells, tile * cells, {start * cells: v for start, v in shares.items()})


def _of_images(engine: Engine) -> frozenset[str]:
    """Inputs of the flow that belong to an image, besides tokens."""
    of_images = {spec.name for spec in engine.inputs if spec.shape[:1] == ("n",)}
    return frozenset(of_images - {"tokens", "x"})


@dataclass(frozen=True)
class _TileGroup:
    """Tiles that go through the flow together: where each lies in the latent, with which weights.

    ``feeds``: what does not change from step to step, for all of these tiles. Weights fall off
    towards edges; those of all tiles add up to 1 in every cell.
    """

    places: list[tuple[slice, slice]]
    weights: list[FloatArray]
    feeds: dict[str, Buffer]


class _Tiling:
    """Pictures cut into overlapping tiles, of which the flow takes as many at once as its engine.

    Where that states no limit, ``codec.flow_batch`` of each picture. ``whole``: tokens (n,h,w), and
    what else belongs to the pictures, such as captions. Arrays are kept from step to step: memory
    that is fresh costs more time than the blending.
    """

    def __init__(
        self, engine: Engine, start: FloatArray, whole: Mapping[str, Buffer], codec: CodecConstants
    ) -> None:
        self._engine = engine
        self._groups = _tile_groups(engine, whole, codec)
        first = self._groups[0]
        sides = [axis.stop - axis.start for axis in first.places[0]]
        self._tiles = np.empty((len(first.places) * len(start), start.shape[1], *sides), np.float32)
        self._blended = [np.empty_like(start), np.empty_like(start)]

    def step(self, latents: Buffer, knobs: Mapping[str, Buffer]) -> FloatArray:
        """One step on every tile, blended; the result holds until the step after the next."""
        x = np.asarray(latents)
        count = len(x)
        blended = self._blended[0]
        self._blended.reverse()
        blended.fill(0)
        for group in self._groups:
            tiles = self._tiles[: len(group.places) * count]
            np.concatenate([x[(..., *place)] for place in group.places], out=tiles)
            ends = np.asarray(self._engine.run({"x": tiles, **group.feeds, **knobs})["x_next"])
            for i, (place, weights) in enumerate(zip(group.places, group.weights, strict=True)):
                tile = tiles[i * count : (i + 1) * count]  # the flow is done with it
                np.multiply(ends[i * count : (i + 1) * count], weights, out=tile)
                blended[(..., *place)] += tile
        return blended


def _tile_groups(
    engine: Engine, whole: Mapping[str, Buffer], codec: CodecConstants
) -> list[_TileGroup]:
    tokens = np.asarray(whole["tokens"])
    cells, overlap = codec.stride // codec.latent_stride, codec.flow_overlap
    sides = tokens.shape[1:]
    (rows, tops), (columns, lefts) = (_tiles_along(side, codec) for side in sides)
    tiles = [Tile(top, top + rows, left, left + columns) for top in tops for left in lefts]
    height, width = (side * cells for side in sides)
    vertical = _shares(tops, rows, height, cells, overlap)
    horizontal = _shares(lefts, columns, width, cells, overlap)
    weights = [vertical[tile.top][:, None] * horizontal[tile.left] for tile in tiles]
    most = codec.flow_batch
    if engine.max_batch is not None:
        most = max(1, engine.max_batch // len(tokens))
    groups = []
    for first in range(0, len(tiles), most):
        together = tiles[first : first + most]
        feeds = dict(whole)
        if len(together) > 1:
            for name in _of_images(engine) & whole.keys():
                feeds[name] = np.concatenate([np.asarray(whole[name])] * len(together))
        feeds["tokens"] = np.concatenate([tokens[(..., *tile.slices)] for tile in together])
        places = [tile.scaled(cells) for tile in together]
        groups.append(_TileGroup(places, weights[first : first + most], feeds))
    return groups


def _shares(
    starts: Sequence[int], side: int, length: int, cells: int, overlap: int
) -> dict[int, FloatArray]:
    """The ramp of each tile in a row of ``length`` latent cells, by its start; they add up to 1."""
    ramps = {start: ramp(side * cells, start * cells, length, overlap * cells) for start in starts}
    total: FloatArray = np.zeros(length, np.float32)
    for start, values in ramps.items():
        total[start * cells : (start + side) * cells] += values
    return {
        start: values / total[start * cells : (start + side) * cells]
        for start, values in ramps.items()
    }


def decode_latent(
    engine: Engine, latent: Buffer, codec: CodecConstants, cut: Engine | None = None
) -> NDArray[np.uint8]:
    """Latent float32 (n,C,H,W) -> pixels uint8 (n,s*h,s*w,3), in tiles with enough context.

    Bundles without latents have their tokens int32 (n,h,w) decoded instead. ``cut``: the engine of
    that graph, for latents on the device. Raises BackendError when the latents hold NaN or
    infinity, or the graph gives a blank picture whatever it is given.
    """
    waits = engine.max_batch is not None  # a device: the decoder is queued before latents are seen
    if not waits:
        _require_finite(latent)
    elif not isinstance(latent, np.ndarray):
        latent.begin_fetch()
    pixels = _decode(engine, latent, codec, cut)
    if waits:
        _require_finite(latent)
    blank = _blank_values(pixels)
    if (blank >= 0).any():
        # A picture may be black or white throughout, and then that of the opposite latent is not.
        # Numbers overflow with either sign, and NaN ends as the same byte in either.
        most = 1 if codec.latent_channels else codec.codebook_size - 1
        opposite = _blank_values(_decode(engine, most - np.asarray(latent), codec, None))
        stuck = blank[(blank >= 0) & (blank == opposite)]
        if len(stuck):
            raise BackendError(
                f"expected pictures from the decoder graph, got {stuck[0]} in every pixel, for the "
                "opposite input too: its numbers overflow on this backend; decode with the "
                "backend 'onnxruntime-cpu', or export the bundle with norms in float32"
            )
    return pixels


def _require_finite(latent: Buffer) -> None:
    """One look at the end of the flow: what is not finite stays so."""
    if not np.isfinite(np.asarray(latent)).all():
        raise BackendError(
            "expected finite latents from the flow graph, got NaN or infinity: its numbers "
            "overflow on this backend; decode with the backend 'onnxruntime-cpu', or export the "
            "bundle with norms and softmax in float32"
        )


def _blank_values(pixels: NDArray[np.uint8]) -> NDArray[np.int_]:
    """0 or 255 (n,) for pictures of a batch that hold nothing else, -1 for the others."""
    values = []
    for picture in pixels:
        first = int(picture.flat[0])
        parts = (picture[::16, ::16], picture)  # a few pixels tell most pictures
        blank = first in (0, 255) and all((part == first).all() for part in parts)
        values.append(first if blank else -1)
    return np.array(values)


def _decode(
    engine: Engine, latent: Buffer, codec: CodecConstants, cut: Engine | None
) -> NDArray[np.uint8]:
    cells = codec.stride // codec.latent_stride if codec.latent_channels else 1
    batch, name = latent.shape[0], engine.inputs[0].name
    height, width = (side // cells for side in latent.shape[-2:])
    pairs = context_tiles(height, width, codec.decoder_tile, codec.decoder_margin, engine.max_batch)
    if len(pairs) == 1:
        return np.asarray(engine.run({name: latent})["image"])
    pixels = np.empty((batch, height * codec.stride, width * codec.stride, 3), np.uint8)
    parts = [slice(number, number + 1) for number in range(len(pairs))]
    if engine.max_batch is not None:  # a device takes several, of one shape
        area = batch * prod(pairs[0][0].shape) * codec.stride**2
        parts = batch_parts(len(pairs), area, engine.max_batch // batch)
    runs: deque[tuple[list[tuple[Tile, Tile]], Buffer]] = deque()
    for part in parts:
        tiles = [_scaled(outer, cells) for outer, _ in pairs[part]]
        feed: Buffer
        if cut is None:
            source = np.asarray(latent)
            feed = np.concatenate([source[(..., *tile.slices)] for tile in tiles])
        else:
            feeds = cut_feeds(tiles, batch, (height * cells, width * cells))
            feed = cut.run({"x": latent, **feeds}, on_device=True)["tiles"]
        on_device = engine.max_batch is not None
        image = engine.run({name: feed}, on_device=on_device)["image"]
        if not isinstance(image, np.ndarray):
            image.begin_fetch()  # before the next run is queued
        runs.append((pairs[part], image))
        if len(runs) > on_device:  # it works on one while the host takes another
            _place(pixels, *runs.popleft(), codec.stride)
    for run in runs:
        _place(pixels, *run, codec.stride)
    return pixels


def _scaled(tile: Tile, factor: int) -> Tile:
    """The same in a grid that is finer."""
    rows, columns = tile.scaled(factor)
    return Tile(rows.start, rows.stop, columns.start, columns.stop)


def _place(
    pixels: NDArray[np.uint8], pairs: Sequence[tuple[Tile, Tile]], image: Buffer, stride: int
) -> None:
    """Put the inner parts of decoded tiles (t*n,...), tile by tile, into pixels (n,H,W,3)."""
    decoded = np.asarray(image).reshape(len(pairs), len(pixels), *image.shape[1:])
    for (outer, inner), tile in zip(pairs, decoded, strict=True):
        top, left = (inner.top - outer.top) * stride, (inner.left - outer.left) * stride
        rows, columns = (side * stride for side in inner.shape)
        pixels[(slice(None), *inner.scaled(stride))] = tile[
            :, top : top + rows, left : left + columns
        ]
