"""What hyper-encoders of PerCo (SD)'s kind share, by ELIC (arXiv 2203.10886): no normalisation."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["bottleneck", "hyper_stages"]

Make = Callable[[int], nn.Module]


def bottleneck(width: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions at half the width, ReLU between them: (n,width,h,w) stays."""
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(width, half, 1),
        nn.ReLU(),
        nn.Conv2d(half, half, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(half, width, 1),
    )


def hyper_stages(
    channels: int, width: int, features: int, halvings: int, residual: Make, gate: Make
) -> nn.Sequential:
    """Latents (n,channels,h,w) -> (n,features,h/2^halvings,w/2^halvings), arXiv 2409.20255.

    Three stages of a convolution and three blocks that ``residual`` makes of a width; the last
    ``halvings`` are strided (5x5), the others 1x1. ``gate`` makes the two blocks of attention.
    """

    def stage(index: int, inputs: int) -> list[nn.Module]:
        strided = index >= 3 - halvings
        first = nn.Conv2d(inputs, width, *((5, 2, 2) if strided else (1,)))
        return [first, *(residual(width) for _ in range(3))]

    return nn.Sequential(
        *stage(0, channels),
        *stage(1, width),
        gate(width),
        *stage(2, width),
        nn.Conv2d(width, features, 1),
        gate(features),
    )
