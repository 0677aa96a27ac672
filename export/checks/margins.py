"""How far the encoder and the decoder look, and whether a configuration's margins cover it.

A tile that has a margin of context around it gives what the whole image would, but only if no
convolution reaches beyond. The reach is measured, not derived from layers, so that it holds for any
module: NaN in one token spreads to all that depends on it, through zero weights and ReLUs too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from percoedge.errors import BundleError
from percoedge.export.config import Config
from percoedge.export.models.exportable import in_precision
from percoedge.export.models.percov2.family import Family

FARTHEST = 64
"""Tokens; what depends on more than that is called unbounded."""


def reach_of(
    function: Callable[[Tensor], Tensor], channels: int, size: int, expected: int = 0
) -> int | None:
    """Tokens, along rows and columns, over which an output depends on an input.

    ``function``: float32 (1,channels,h*size,w*size) -> (1,c,h*n,w*n) for a grid of h x w tokens.
    ``expected``: what is tried first. None where an output depends on inputs ``FARTHEST`` tokens
    away.
    """
    farthest = 0
    for axis in (2, 3):
        count = min(expected + 1, FARTHEST)
        while (reach := _reach_along(function, channels, size, axis, count)) == count:
            if count == FARTHEST:
                return None
            count = min(2 * count, FARTHEST)
        farthest = max(farthest, reach)
    return farthest


def _reach_along(
    function: Callable[[Tensor], Tensor], channels: int, size: int, axis: int, count: int
) -> int:
    """The reach in a strip of 2 * count + 1 tokens along an axis."""
    shape = [1, channels, size, size]
    shape[axis] *= 2 * count + 1
    strip = torch.zeros(shape)
    strip.narrow(axis, count * size, size).fill_(torch.nan)
    # oneDNN may choose Winograd's convolution, whose transforms spread NaN over their tiles
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        output = function(strip).isnan().movedim(axis, 0).flatten(1).any(dim=1)
    reached = output.reshape(2 * count + 1, -1).any(dim=1).nonzero().flatten()
    return int((reached - count).abs().max())


def check_margins(family: Family, config: Config) -> dict[str, str]:
    """Refuse margins that are smaller than the reach of the encoder or the decoder.

    ``family`` on the CPU. Returns notes for a bundle's provenance, by name of the margin: of graphs
    that look at the whole image, whatever its size (normalised groups and attention over all cells,
    as in the full-size autoencoder), no margin covers the reach, and tiles are an approximation.
    The flow looks at the whole of its tile by design and overlaps are blended: nothing to check.
    Raises BundleError.
    """
    codec = config.codec
    cells = codec.stride // codec.latent_stride
    graphs: dict[str, tuple[Callable[[Tensor], Tensor], int, int, int | None]] = {
        "encoder": (
            lambda image: family.hyper(family.vae.encode(image)),
            *(3, codec.stride, codec.encoder_margin),
        ),
        "decoder": (family.vae.decode, codec.latent_channels, cells, codec.decoder_margin),
    }
    notes = {}
    with in_precision(family, ("vae", "hyper"), torch.float32):
        for kind, (function, channels, size, margin) in graphs.items():
            if margin is None:  # it is given whole images only
                continue
            reach = reach_of(function, channels, size, margin)
            if reach is None:
                notes[f"{kind}_margin"] = (
                    f"an approximation: the {kind} looks at the whole image, and tiles of a larger "
                    f"one at {margin} tokens around them"
                )
            elif margin < reach:
                raise BundleError(
                    f"expected {kind}_margin of at least {reach} tokens, which is how far the "
                    f"{kind}'s convolutions reach, got {margin}; set codec.{kind}_margin = {reach} "
                    "in the configuration"
                )
    return notes
