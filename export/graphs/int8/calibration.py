"""How large activations get, measured while a family makes up pictures of its own.

Tokens are drawn from its entropy model, so that no photo is needed and a bundle stays a function
of its weights. Beside them come flat pictures of saturated colours, which are rare among those.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from percoedge.bitstream.schedules import passes
from percoedge.export.config import Config
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.sampling import sample

Channels = NDArray[np.float32]
Extremes = list[tuple[Channels, ...]]
"""Low and high in, low and high out, (pictures,channels) each, for every run."""

_PICTURES = 4
_FLAT_TOKENS = 8  # a side
_SAMPLINGS = ((1, 1.0), (2, 1.0), (4, 1.0))  # steps and guidance
_GUIDED_SAMPLING = (4, 2.0)


@dataclass(frozen=True)
class LayerRange:
    """What goes into a layer and comes out, from low to high per channel: float32 (channels,).

    0 is within. A range ends halfway between the extremes of the average picture and those of all
    made-up pictures: what is beyond is rare, and a byte's steps are smaller for the rest. All of a
    flat picture is within, or its colour would be another.
    """

    low_in: Channels
    high_in: Channels
    low_out: Channels
    high_out: Channels


@torch.no_grad()
def layer_ranges(family: Family, config: Config, seed: int = 0) -> Mapping[str, LayerRange]:
    """Ranges of the linear and convolutional layers of a family's float graphs, by name in it.

    ``family``: in FP32, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = _tokens(family, config, generator)
    made_up = _extremes(family, config, tokens, generator)
    flat = _extremes(family, config, _flat_tokens(family, config), generator)
    return {name: range_of(made_up[name], flat[name]) for name in made_up}


def _extremes(
    family: Family, config: Config, tokens: Tensor, generator: torch.Generator
) -> Mapping[str, Extremes]:
    """What `watched` notes while pictures of tokens (n,h,w) are decoded, and encoded again."""
    with watched(family) as seen:
        for latent in _latents(family, config, tokens, generator):
            pictures = family.vae.decode(latent).clamp(-1.0, 1.0)
            family.hyper(family.vae.encode(pictures))
    return {name: extremes for name, extremes in seen.items() if extremes}


@contextmanager
def watched(module: nn.Module) -> Iterator[Mapping[str, Extremes]]:
    """Note smallest and largest of what goes into layers and comes out, while the ``with`` lasts.

    By name of the linear or convolutional layer; empty for those that did not run.
    """
    seen: dict[str, Extremes] = {}
    hooks = [
        layer.register_forward_hook(partial(_observe, seen.setdefault(name, [])))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _observe(seen: Extremes, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Note smallest and largest, in and out, of each picture and channel: (n,channels) each."""
    axis = 1 if isinstance(module, nn.Conv2d) else -1
    extremes: list[Channels] = []
    for x in (inputs[0], output):
        values = x.movedim(axis, 1).flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        extremes += [values.amin(2).clamp(max=0).numpy(), values.amax(2).clamp(min=0).numpy()]
    seen.append(tuple(extremes))


def range_of(made_up: Extremes, flat: Extremes) -> LayerRange:
    """Ends of a layer's range; entries may be of one picture or for all."""
    columns = [np.concatenate(column) for column in zip(*made_up, strict=True)]
    widest = [np.concatenate(column) for column in zip(*flat, strict=True)]
    lows = [
        np.minimum((low.mean(axis=0) + low.min(axis=0)) / 2, all_flat.min(axis=0))
        for low, all_flat in zip(columns[::2], widest[::2], strict=True)
    ]
    highs = [
        np.maximum((high.mean(axis=0) + high.max(axis=0)) / 2, all_flat.max(axis=0))
        for high, all_flat in zip(columns[1::2], widest[1::2], strict=True)
    ]
    return LayerRange(lows[0], highs[0], lows[1], highs[1])


def _latents(
    family: Family, config: Config, tokens: Tensor, generator: torch.Generator
) -> Iterator[Tensor]:
    """Latents of pictures of tokens (n,h,w), for each way to sample them."""
    codec = config.codec
    z = family.quantizer.embed(tokens)
    nothing = family.quantizer.embed(torch.full_like(tokens, codec.codebook_size))
    height, width = (codec.stride // codec.latent_stride * side for side in tokens.shape[1:])
    noise = torch.randn((len(tokens), codec.latent_channels, height, width), generator=generator)
    samplings = (*_SAMPLINGS, _GUIDED_SAMPLING) if config.flow.guided else _SAMPLINGS
    for steps, guidance in samplings:

        def velocity(x: Tensor, z: Tensor, t: Tensor, guidance: float = guidance) -> Tensor:
            with_tokens: Tensor = family.flow(x, z, t)
            if guidance == 1:
                return with_tokens
            without: Tensor = family.flow(x, nothing, t)
            return without + guidance * (with_tokens - without)

        yield sample(velocity, noise, z, steps)


def _tokens(family: Family, config: Config, generator: torch.Generator) -> Tensor:
    """Draw grids of the flow's largest size from the entropy model, pass by pass."""
    codec = config.codec
    side = codec.flow_tile
    tokens = torch.full((_PICTURES, side, side), codec.codebook_size)
    for cells in passes(codec.schedule, side, side):
        positions = torch.from_numpy(cells).long()
        chances = family.mim(tokens).flatten(1, 2)[:, positions].float().softmax(-1)
        drawn = torch.multinomial(chances.flatten(0, 1), 1, generator=generator)
        tokens.flatten(1)[:, positions] = drawn.view(_PICTURES, -1)
    return tokens


def _flat_tokens(family: Family, config: Config) -> Tensor:
    """Tokens (8,h,w) of flat pictures: the corners of the colour cube, black and white included."""
    side = _FLAT_TOKENS * config.codec.stride
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3)))
    pictures = corners[:, :, None, None].expand(-1, -1, side, side)
    return family.tokens(family.vae.encode(pictures))
