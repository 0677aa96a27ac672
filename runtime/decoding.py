"""From streams to images: container, tokens, then noise, flow and decoder for a batch of them.

Every stage goes through the whole batch before the next one begins, so that engines that are freed
after each stage are loaded once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import Stream, unpack
from percoedge.bitstream.schedules import pass_count
from percoedge.bundles import EARLIER_BUNDLES
from percoedge.engines.contract import Buffer, Engine
from percoedge.engines.tiling import TILING
from percoedge.errors import BundleMismatchError, StreamError, naming
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.entropy import DecodedTokens, entropy_codec
from percoedge.runtime.flow import decode_latent, noise, sample
from percoedge.runtime.settings import Settings, schedule_of
from percoedge.runtime.tiling.tiles import batch_parts, context_tiles, grid_of, slice_of

__all__ = [
    "Batch",
    "Noise",
    "batch_slices",
    "batches",
    "check_pixels",
    "open_stream",
    "read_progressive",
    "read_tokens",
    "render",
]


@dataclass(frozen=True)
class Batch:
    """Streams that agree in size, schedule, passes sent and settings.

    ``places``: the index of each among all streams, none for one that is alone. ``cut``: whether
    bytes may be missing at their ends; then there is one stream. ``passes``: how many to decode,
    None for all.
    """

    streams: list[Stream]
    places: list[int]
    settings: Settings
    cut: bool = False
    passes: int | None = None

    @property
    def schedule(self) -> str:
        """Name of the schedule of their tokens."""
        return schedule_of(self.streams[0].header, self.settings.bundle)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of their tokens."""
        header = self.streams[0].header
        return grid_of(header.height, header.width, self.settings.bundle.codec.stride)

    @property
    def flow_grid(self) -> tuple[int, int]:
        """Rows and columns of what the flow takes: the grid, filled up."""
        multiple = self.settings.bundle.codec.flow_multiple
        rows, columns = (-(-side // multiple) * multiple for side in self.grid)
        return rows, columns

    @property
    def pixels(self) -> int:
        """Pixels of the tokens of each."""
        rows, columns = self.grid
        return rows * columns * self.settings.bundle.codec.stride**2

    @property
    def names(self) -> list[str]:
        """What errors call them: "" for one that is alone."""
        return [f"stream {place}" for place in self.places] or [""]

    @property
    def captions(self) -> list[str]:
        """Their captions."""
        return [stream.header.caption for stream in self.streams]

    def parts(self, *engines: Engine | None) -> list[slice]:
        """Slices of them that go through engines together; None is no engine."""
        limits = [e.max_batch for e in engines if e is not None and e.max_batch is not None]
        return batch_parts(len(self.streams), self.pixels, min(limits, default=None))


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise StreamError for a stream whose image has more than ``max_pixels``."""
    if width * height > max_pixels:
        raise StreamError(
            f"expected an image of at most {max_pixels} pixels, got {width}x{height}; allow more "
            "with max_pixels (--max-pixels) if you trust the file"
        )


def open_stream(
    data: bytes, settings: Settings, *, bare: bool, cut: bool, max_pixels: int
) -> Stream:
    """Take a stream apart and check that this bundle decodes it.

    Raises StreamError for one that breaks the format, is larger than ``max_pixels`` or has more
    passes than its schedule, and BundleMismatchError for one of another bundle.
    """
    stream = unpack(data, bare=bare, cut=cut)
    bundle, header = settings.bundle, stream.header
    if stream.fingerprint is not None and stream.fingerprint != bundle.fingerprint:
        found = stream.fingerprint.hex()
        remedy = "decode it with the bundle that made it (--bundle)"
        if found in EARLIER_BUNDLES:
            name, release = EARLIER_BUNDLES[found]
            found = f"the {name} of percoedge {release} ({found})"
            remedy = f"pip install percoedge=={release} reads it, or its {name} given as --bundle"
        raise BundleMismatchError(
            f"expected a stream of bundle {bundle.name!r} ({bundle.fingerprint.hex()}), got one of "
            f"{found}; {remedy}"
        )
    check_pixels(header.width, header.height, max_pixels)
    schedule = schedule_of(header, bundle)
    if (header.passes_sent or 1) > pass_count(schedule):
        raise StreamError(
            f"expected at most {pass_count(schedule)} passes of schedule {schedule!r}, got "
            f"{header.passes_sent}; the stream is damaged"
        )
    return stream


def batches(streams: Sequence[Stream], settings: Settings) -> list[Batch]:
    """Whole streams in batches of those that agree."""
    groups: dict[object, list[int]] = {}
    for index, stream in enumerate(streams):
        header = stream.header
        size = (header.width, header.height)
        key = (size, header.schedule, header.passes_sent, header.steps, header.guidance)
        groups.setdefault(key, []).append(index)
    return [
        Batch([streams[index] for index in places], places, settings) for places in groups.values()
    ]


def batch_slices(batch: Batch, most: int) -> list[Batch]:
    """The batch in batches of at most so many streams."""
    firsts = range(0, len(batch.streams), most)
    return [
        replace(batch, streams=batch.streams[i : i + most], places=batch.places[i : i + most])
        for i in firsts
    ]


class Noise:
    """What the flow of each image of a batch starts from, made when it is asked for."""

    def __init__(self, batch: Batch) -> None:
        constants = batch.settings.bundle.codec
        cells = constants.stride // constants.latent_stride if constants.latent_channels else 1
        height, width = (side * cells for side in batch.flow_grid)
        self._shape = (constants.latent_channels, height, width)
        self._seeds = [batch.settings.seed_for(stream) for stream in batch.streams]
        self._begun: list[Future[NDArray[np.float32]]] = []

    def begin(self, count: int) -> None:
        """Make that of the first images in a thread: the host has time while a device works."""
        if self._shape[0]:  # else there is no flow
            thread = ThreadPoolExecutor(1)
            self._begun = [thread.submit(noise, seed, *self._shape) for seed in self._seeds[:count]]
            thread.shutdown(wait=False)

    def of(self, part: slice) -> NDArray[np.float32]:
        """That of some of the images: float32 (n,C,H,W)."""
        begun = [future.result() for future in self._begun[part]]
        return np.stack(begun + [noise(s, *self._shape) for s in self._seeds[part][len(begun) :]])


def read_tokens(engines: EngineSet, batch: Batch, start: Noise | None = None) -> NDArray[np.int32]:
    """Tokens int32 (n,h,w), sampled where they are not in the stream. Raises StreamError.

    ``start``: noise to begin with meanwhile, where tokens are read with a device.
    """
    grid, schedule = batch.grid, batch.schedule
    passes_sent, cut = batch.streams[0].header.passes_sent, _cut(batch)
    with entropy_codec(engines, schedule) as coder, engines.clock.timed("entropy decoding"):
        if start is not None and coder.engine is not None and coder.engine.max_batch is not None:
            start.begin(coder.engine.max_batch)
        if passes_sent is None and cut is False and batch.passes is None:
            data = [stream.tokens for stream in batch.streams]
            parts = batch.parts(coder.engine)
            names = batch.names
            return np.concatenate(
                [coder.decode(data[part], grid, schedule, names[part]) for part in parts]
            )
        grids = []
        for name, stream in zip(batch.names, batch.streams, strict=True):
            with naming(name, StreamError):
                tokens = coder.decode_partial(
                    stream.tokens,
                    grid,
                    schedule,
                    passes_sent=passes_sent,
                    passes=batch.passes,
                    cut=cut,
                    seed=batch.settings.seed_for(stream),
                )
            grids.append(tokens)
        return np.stack(grids)


def read_progressive(engines: EngineSet, batch: Batch) -> Iterator[DecodedTokens]:
    """The grid (h,w) of one stream after each of its passes. Raises StreamError."""
    (stream,), schedule = batch.streams, batch.schedule
    with entropy_codec(engines, schedule) as coder:
        yield from coder.decode_progressive(
            stream.tokens,
            batch.grid,
            schedule,
            passes_sent=stream.header.passes_sent,
            cut=_cut(batch),
            seed=batch.settings.seed_for(stream),
        )


def _cut(batch: Batch) -> bool | None:
    """Whether tokens are missing at the end: as the checksum says, None where there is none."""
    if not batch.cut:
        return False
    checksum_ok = batch.streams[0].checksum_ok
    return None if checksum_ok is None else not checksum_ok


def render(
    engines: EngineSet,
    batch: Batch,
    tokens: NDArray[np.int32],
    condition: Mapping[str, Buffer],
    start: Noise | None = None,
) -> list[Image.Image]:
    """Tokens int32 (n,h,w) -> the images of a batch.

    ``condition``: what its captions become. ``start``: noise that may have been begun. Raises
    EngineError.
    """
    constants, clock = engines.bundle.codec, engines.clock
    grid = batch.flow_grid
    missing = [whole - side for whole, side in zip(grid, tokens.shape[1:], strict=True)]
    tokens = np.pad(tokens, [(0, 0), (0, missing[0]), (0, missing[1])], mode="edge")
    latents: list[Buffer] = [tokens]
    if constants.latent_channels:
        latents = _latents(engines, batch, tokens, condition, start or Noise(batch))
    images: list[Image.Image] = []
    header = batch.streams[0].header
    tiled = len(context_tiles(*grid, constants.decoder_tile, constants.decoder_margin)) > 1
    with (
        engines.use("decoder") as engine,
        engines.tilers("cut", on_device=tiled and _on_device(engine, latents[0])) as tilers,
    ):
        for latent in latents:
            for part in batch_parts(latent.shape[0], batch.pixels, engine.max_batch):
                piece = slice_of(latent, part)
                engines.require_memory("decoder", piece.shape[0] * batch.pixels)
                with clock.timed("decoder"):
                    cut = tilers["cut"] if tilers and _on_device(engine, piece) else None
                    pixels = decode_latent(engine, piece, constants, cut)
                with clock.timed("image"):
                    images += [Image.fromarray(p[: header.height, : header.width]) for p in pixels]
    return images


def _latents(
    engines: EngineSet,
    batch: Batch,
    tokens: NDArray[np.int32],
    condition: Mapping[str, Buffer],
    start: Noise,
) -> list[Buffer]:
    """Latents float32 (n,C,H,W) of a batch, from the flow: one buffer for each part of it."""
    constants, settings = engines.bundle.codec, batch.settings
    steps = settings.steps_for(batch.streams[0])
    guidance = settings.guidance_for(batch.streams[0])
    latents: list[Buffer] = []
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(engines.use("flow" if guidance is None else "flow_guided"))
        tiled = engine.max_batch is not None and max(batch.flow_grid) > constants.flow_tile
        tilers = stack.enter_context(engines.tilers(*TILING, on_device=tiled))
        for part in batch.parts(engine, *(tilers or {}).values()):
            with engines.clock.timed("noise"):
                x = start.of(part)
            with engines.clock.timed("flow"):
                texts = {name: slice_of(buffer, part) for name, buffer in condition.items()}
                latents.append(
                    sample(engine, tokens[part], x, steps, guidance, constants, texts, tilers)
                )
    return latents


def _on_device(engine: Engine, buffer: Buffer) -> bool:
    """Whether an engine of a device is fed from there."""
    return engine.max_batch is not None and not isinstance(buffer, np.ndarray)
