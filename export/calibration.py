"""How large activations get, measured while a family makes up pictures of its own.

Tokens are drawn from its entropy model, so that no photo is needed and a bundle stays a function
of its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from percoedge.bitstream.schedules import passes
from percoedge.export.config import Config
from percoedge.export.family import Family

_PICTURES = 4
_STEPS = (1, 2, 4)


@dataclass(frozen=True)
class LayerRange:
    """Smallest and largest number that went into a layer, and that came out of it."""

    low_in: float = 0.0
    high_in: float = 0.0
    low_out: float = 0.0
    high_out: float = 0.0


@torch.no_grad()
def layer_ranges(family: Family, config: Config, seed: int = 0) -> Mapping[str, LayerRange]:
    """Ranges of the linear and convolutional layers of flow and decoder, by name in the family.

    ``family``: in FP32, on the CPU.
    """
    seen: dict[str, LayerRange] = {}
    hooks = [
        module.register_forward_hook(partial(_observe, seen, name))
        for name, module in family.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    generator = torch.Generator().manual_seed(seed)
    try:
        for latent in _latents(family, config, generator):
            family.vae.decode(latent)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _observe(
    seen: dict[str, LayerRange], name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor
) -> None:
    known = seen.get(name, LayerRange())
    seen[name] = LayerRange(
        min(known.low_in, inputs[0].min().item()),
        max(known.high_in, inputs[0].max().item()),
        min(known.low_out, output.min().item()),
        max(known.high_out, output.max().item()),
    )


def _latents(family: Family, config: Config, generator: torch.Generator) -> Iterator[Tensor]:
    """Latents of a few made-up pictures, by each number of steps, and of "no token"."""
    codec = config.codec
    tokens = _tokens(family, config, generator)
    nothing = torch.full_like(tokens[:1], codec.codebook_size)  # the other half of guidance
    cells = codec.stride // codec.latent_stride
    for grid in (tokens, nothing):
        z = family.quantizer.embed(grid)
        shape = (len(grid), codec.latent_channels, *(cells * side for side in grid.shape[1:]))
        noise = torch.randn(shape, generator=generator)
        for steps in _STEPS:
            x = noise
            for index in range(steps):
                x = x - family.flow(x, z, torch.full((len(grid),), 1 - index / steps)) / steps
            yield x


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
