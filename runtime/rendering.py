"""From tokens to images: noise, flow and decoder, over the parts of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import Stream
from percoedge.engines.contract import Buffer
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.flow import decode_latent, noise, sample
from percoedge.runtime.settings import Settings

__all__ = ["BATCH_PIXELS", "batch_parts", "render"]

BATCH_PIXELS = 1024 * 1024
"""Pixels of a batch that go through a graph together, one image at least.

Four images of 512x512 fill a GPU; a CPU is no faster with more than one of them, only with many
small ones. Beyond this, a larger batch takes longer and no more memory but for its results.
"""


def batch_parts(count: int, pixels: int) -> list[slice]:
    """Slices of ``count`` images of so many pixels that go through a graph together."""
    together = max(1, BATCH_PIXELS // pixels)
    return [slice(first, first + together) for first in range(0, count, together)]


def render(
    engines: EngineSet,
    streams: Sequence[Stream],
    tokens: NDArray[np.int32],
    settings: Settings,
    parts: Sequence[slice],
    conditions: Sequence[Mapping[str, Buffer]],
) -> list[Image.Image]:
    """Tokens (n,h,w) -> images of streams that agree in size and settings.

    ``parts``: slices of the batch that go through a graph together. ``conditions``: what captions
    become, for each of them.
    """
    constants = engines.bundle.codec
    steps = settings.steps_for(streams[0])
    guidance = settings.guidance_for(streams[0])
    cells = constants.stride // constants.latent_stride
    height, width = (side * cells for side in tokens.shape[1:])
    latents: list[Buffer] = []
    kind = "flow" if guidance is None else "flow_guided"
    with engines.use(kind) as engine:
        for part, condition in zip(parts, conditions, strict=True):
            with engines.timed("noise"):
                seeds = [settings.seed_for(stream) for stream in streams[part]]
                start = np.stack(
                    [noise(seed, constants.latent_channels, height, width) for seed in seeds]
                )
            with engines.timed("flow"):
                latents.append(
                    sample(engine, tokens[part], start, steps, guidance, constants, condition)
                )
    images: list[Image.Image] = []
    with engines.use("decoder") as engine:
        for part, latent in zip(parts, latents, strict=True):
            with engines.timed("decoder"):
                pixels = decode_latent(engine, latent, constants)
            with engines.timed("image"):
                images += [
                    Image.fromarray(picture[: stream.header.height, : stream.header.width])
                    for picture, stream in zip(pixels, streams[part], strict=True)
                ]
    return images
