"""Layers of CoD-Lite's encoder and token decoder, named as the published weights name them.

Everything works on (n,c,h,w). Norms and softmax are in float32, whatever the layers compute in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 32
"""Cells a side of a window of attention."""

_EPSILON = 1e-6


class Norm(nn.GroupNorm):
    """GroupNorm of 32 groups in float32; the result has the type of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=_EPSILON)

    def single(self, x: Tensor) -> Tensor:
        """The result in float32."""
        return torch.group_norm(
            x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps
        )

    def forward(self, x: Tensor) -> Tensor:
        """The result in the type of ``x``."""
        return self.single(x).to(x.dtype)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = Norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = Norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of what comes in and what the convolutions make of it."""
        y = self.conv1(activate(self.norm1, x))
        y = self.conv2(activate(self.norm2, y))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + y


class Halving(nn.Module):
    """Half the size: a 3x3 convolution of stride 2 with zeros to the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(n,c,2h,2w) -> (n,c,h,w)."""
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class EvenHalving(nn.Conv2d):
    """A 3x3 convolution of stride 2 with a zero all around, for even sizes.

    No window reaches the zeros to the right and below: without them sizes are plain halves, which
    spares the exporter a tower of roundings.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(n,c,2h,2w) -> (n,d,h,w)."""
        return super().forward(F.pad(x, (1, 0, 1, 0)))


class Attention(nn.Module):
    """Single-head attention within windows of 32x32 cells, anchored at the upper left.

    A map of more than one window is filled up to whole ones with copies of the last row and column
    of queries, keys and values, which count. In a smaller map there is no attention to copies.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of what comes in and what attention makes of it."""
        height, width = x.shape[2:]
        y = self.norm(x).permute(0, 2, 3, 1)
        y = F.linear(y, *self._projections())
        y = repeat_last(repeat_last(y, 1, WINDOW), 2, WINDOW)
        y = y.unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW)).transpose(2, 3).flatten(3, 4)
        q, k, v = y.chunk(3, dim=-1)  # (n,down,across,cells,c)
        chances = (q @ k.transpose(-1, -2)).float() + _mask(height, width, x.device)
        y = chances.softmax(-1).to(x.dtype) @ v
        y = y.unflatten(3, (WINDOW, WINDOW)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        y = y[:, :height, :width]
        change = F.linear(y, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return x + change.permute(0, 3, 1, 2)

    def _projections(self) -> tuple[Tensor, Tensor]:
        """Weight (3c,c) and bias (3c,) of queries, which are scaled here, keys and values."""
        scale = self.q.weight.shape[0] ** -0.5
        weights = (self.q.weight * scale, self.k.weight, self.v.weight)
        biases = (self.q.bias * scale, self.k.bias, self.v.bias)
        return torch.cat(weights)[:, :, 0, 0], torch.cat(biases)


def activate(norm: Norm, x: Tensor) -> Tensor:
    """silu(norm(x)), in the type of ``x``."""
    return F.silu(norm.single(x)).to(x.dtype)


def repeat_last(x: Tensor, axis: int, unit: int) -> Tensor:
    """Copies of the last entry at the end of an axis, up to a multiple of ``unit``."""
    size = x.shape[axis]
    places = torch.arange((size + unit - 1) // unit * unit, device=x.device)
    return x.index_select(axis, places.clamp(max=size - 1))


def _mask(height: int, width: int, device: torch.device) -> Tensor:
    """What is added to scores, float32 (down,across,1,cells): -inf for the copies in a lone window.

    In tensors, for an exported graph meets every size.
    """
    inside = []
    for size in (height, width):
        places = torch.arange((size + WINDOW - 1) // WINDOW * WINDOW, device=device)
        inside.append((places < size).unflatten(0, (-1, WINDOW)))
    rows, columns = inside
    keep = rows[:, None, :, None] & columns[None, :, None, :]  # (down,across,32,32)
    several = (torch.arange(keep.shape[0] * keep.shape[1], device=device) > 0)[-1]
    return torch.where(keep | several, 0.0, -torch.inf).flatten(2, 3).unsqueeze(2)
