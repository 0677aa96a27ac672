"""Masked image model over token grids, trained so that its forward pass can be exact integers.

A mixer: blocks of a depthwise convolution and an MLP on a residual stream, fully convolutional, so
any grid size works and no bound depends on the number of tokens. In ``exact`` mode the forward pass
*is* the integer network of ``percoedge.export.exact`` (integers carried in float32, every partial
sum below 2^24), with straight-through gradients; otherwise the same operators run in float.

Scales are powers of two: a value v is carried as the integer v * 2^exponent. Rounding is to the
nearest integer, halves to the even one, as the operators Round and QuantizeLinear of ONNX do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.export.config import MimConfig
from percoedge.export.exact.integers import (
    ACTIVATION_MAX,
    ACTIVATION_MIN,
    EXPONENTS,
    HIDDEN_MAX,
    LOGIT_EXPONENT,
    NORM_ENTRIES,
    NORM_EXPONENT,
    NORM_SHIFT,
    SQUARE_SHIFT,
    STREAM_EXPONENT,
    STREAM_MAX,
    WEIGHT_MAX,
    IntArray,
    IntegerLayer,
    IntegerMim,
    frequency_table,
)


class Integers(NamedTuple):
    """A layer in integers: y = round((x * weight + bias) / 2^shift)."""

    weight: Tensor  # within +-WEIGHT_MAX
    bias: Tensor
    shift: Tensor  # 1..24, per output channel


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def rounded(x: Tensor) -> Tensor:
    """Round with the gradient of the identity."""
    result: Tensor = _Round.apply(x)
    return result


def norm_table(width: int) -> Tensor:
    """Reciprocal RMS by index of the sum of squares, float32 (NORM_ENTRIES,), 11-bit significands.

    The product with a stream value of 11 bits is exact in float32, and FP16 holds the table.
    """
    squares = (torch.arange(NORM_ENTRIES, dtype=torch.float64) + 0.5) * 2.0**NORM_SHIFT
    rms = (squares / width).sqrt() * 2.0**SQUARE_SHIFT
    mantissa, exponent = torch.frexp((2.0**NORM_EXPONENT / rms).clamp(max=2.0**NORM_EXPONENT))
    return torch.ldexp(torch.round(mantissa * 2048) / 2048, exponent).float()


def norm_index(squares: Tensor) -> Tensor:
    """Table index (int64) of a sum of squares."""
    return torch.floor(squares * 2.0**-NORM_SHIFT).clamp(max=NORM_ENTRIES - 1).long()


class QuantLayer(nn.Module):
    """Weights of a linear (out,in) or depthwise (C,1,k,k) layer, in float and as integers.

    A layer behind a norm has the norm's gains, one per input channel, within its weights.
    """

    def __init__(self, *shape: int, std: float, behind_norm: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * std)
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        channels = shape[1] if len(shape) == 2 else shape[0]
        self.gain = nn.Parameter(torch.ones(channels)) if behind_norm else None

    def weight_with_gain(self) -> Tensor:
        """The weights that the layer computes with."""
        if self.gain is None:
            return self.weight
        return self.weight * (
            self.gain if self.weight.ndim == 2 else self.gain[:, None, None, None]
        )

    def integers(self, e_in: int, e_out: int) -> Integers:
        """Per-channel power-of-two scales: the largest that keep weights in range, shifts >= 1."""
        exact = self.weight_with_gain()
        largest = exact.detach().abs().flatten(1).amax(1).clamp_min(2.0**-12)
        exponent = torch.floor(torch.log2((WEIGHT_MAX + 0.49) / largest))
        exponent = exponent.clamp(max(0, e_out - e_in + 1), 14)
        scale = (2.0**exponent).reshape(-1, *[1] * (exact.ndim - 1))
        weight = rounded(exact * scale).clamp(-WEIGHT_MAX, WEIGHT_MAX)
        bias = rounded(self.bias * 2.0 ** (exponent + e_in))
        return Integers(weight, bias, exponent + e_in - e_out)

    def apply_to(self, x: Tensor, layer: Integers | None) -> Tensor:
        """(B,h,w,in) -> (B,h,w,out); ``layer`` None is the float layer."""
        if layer is None:
            weight, bias = self.weight_with_gain(), self.bias
        else:
            weight, bias = layer.weight, layer.bias
        if weight.ndim == 2:
            y = F.linear(x, weight, bias)
        else:
            pad = weight.shape[-1] // 2
            channels = x.permute(0, 3, 1, 2)
            y = F.conv2d(channels, weight, bias, padding=pad, groups=len(weight))
            y = y.permute(0, 2, 3, 1)
        return y if layer is None else rounded(y * 2.0**-layer.shift)


class MimBlock(nn.Module):
    """norm -> depthwise k x k -> linear -> ReLU -> linear, added to the stream."""

    def __init__(self, config: MimConfig, classic: bool) -> None:
        super().__init__()
        width, hidden, kernel = config.width, config.hidden, config.kernel
        self.mix = QuantLayer(width, 1, kernel, kernel, std=0.7 / kernel, behind_norm=not classic)
        self.up = QuantLayer(hidden, width, std=width**-0.5)
        self.down = QuantLayer(width, hidden, std=(2 * config.layers * hidden) ** -0.5)
        self.norm = nn.LayerNorm(width) if classic else None
        # exponents of the mixed and of the hidden activations; calibrated once, then kept
        self.register_buffer("exponents", torch.tensor([5, 5]))
        self.register_buffer("seen", torch.zeros(2), persistent=False)


class Mim(nn.Module):
    """tokens int (B,h,w), K = masked -> logits (B,h,w,K), natural units.

    ``exact`` switches to the integer forward pass. ``classic`` builds the float baseline that the
    exact model is compared with: LayerNorm and GELU in place of RMS norm and ReLU.
    """

    def __init__(self, config: MimConfig, codebook_size: int, classic: bool = False) -> None:
        super().__init__()
        self.config, self.mask_id, self.classic = config, codebook_size, classic
        self.exact, self.observing = False, False
        self.embedding = nn.Parameter(torch.randn(codebook_size + 1, config.width) * 0.7)
        self.blocks = nn.ModuleList(MimBlock(config, classic) for _ in range(config.layers))
        self.head = QuantLayer(
            codebook_size, config.width, std=0.5 * config.width**-0.5, behind_norm=not classic
        )
        self.head_norm = nn.LayerNorm(config.width) if classic else None
        self.register_buffer("table", norm_table(config.width), persistent=False)

    @torch.no_grad()
    def start_from(self, codebook: Tensor) -> None:
        """Draw embedding and head anew, so that tokens of similar codes (K,D) start out similar.

        Without this, most of a short training goes into finding out which tokens are alike.
        """
        size, width = codebook.shape[1], self.config.width
        for parameter, scale in ((self.embedding, 0.9), (self.head.weight, 0.5 * width**-0.5)):
            similar = codebook @ torch.randn(size, width, device=codebook.device) * scale
            parameter[: len(codebook)] = similar + 0.1 * scale * torch.randn_like(similar)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every cell for tokens (n,h,w), MASK where unknown."""
        if self.exact:
            return self.integer_logits(tokens) * (math.log(2) / 2**LOGIT_EXPONENT)
        return self.logits(self.stream(tokens))

    def stream(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Residual stream (B,h,w,C) behind the last block, in float; (B,p,C) at flat positions."""
        x = self.embedding[tokens]
        for number, block in enumerate(self.blocks):
            mixed = block.mix.apply_to(self._norm(x, block.norm), None)
            if positions is not None and number == len(self.blocks) - 1:
                x, mixed = (cells.flatten(1, 2)[:, positions] for cells in (x, mixed))
            hidden = block.up.apply_to(mixed, None)
            hidden = F.gelu(hidden) if self.classic else torch.relu(hidden)
            if self.observing:
                self._observe(block, mixed, hidden)
            x = x + block.down.apply_to(hidden, None)
        return x

    def logits(self, stream: Tensor) -> Tensor:
        """Logits (...,K) in natural units of a float stream (...,C)."""
        return self.head.apply_to(self._norm(stream, self.head_norm), None) * math.log(2)

    def integer_logits(self, tokens: Tensor) -> Tensor:
        """The exact network: integers within +-2047, in sixteenths of an octave."""
        stream = STREAM_MAX
        x = rounded(self.embedding * 2.0**STREAM_EXPONENT).clamp(-stream, stream)[tokens]
        for block in self.blocks:
            mix, up, down = self.block_integers(block)
            mixed = block.mix.apply_to(self._integer_norm(x), mix)
            mixed = mixed.clamp(ACTIVATION_MIN, ACTIVATION_MAX)
            hidden = block.up.apply_to(mixed, up).clamp(0, HIDDEN_MAX)
            x = (x + block.down.apply_to(hidden, down)).clamp(-stream, stream)
        head = self.head.integers(NORM_EXPONENT, LOGIT_EXPONENT)
        return self.head.apply_to(self._integer_norm(x), head).clamp(-stream, stream)

    def block_integers(self, block: nn.Module) -> tuple[Integers, Integers, Integers]:
        """The three layers of a block at its calibrated exponents."""
        mixed, hidden = (int(e) for e in block.exponents)
        return (
            block.mix.integers(NORM_EXPONENT, mixed),
            block.up.integers(mixed, hidden),
            block.down.integers(hidden, STREAM_EXPONENT),
        )

    def _norm(self, x: Tensor, layer: nn.Module | None) -> Tensor:
        if layer is not None:
            normalised: Tensor = layer(x)
            return normalised
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-4)

    def _integer_norm(self, x: Tensor) -> Tensor:
        shifted = rounded(x * 2.0**-SQUARE_SHIFT)
        squares = shifted.square().sum(-1, keepdim=True)
        looked_up = self.table[norm_index(squares.detach())]
        # the gradient is that of the true reciprocal root
        smooth = 2.0 ** (NORM_EXPONENT - SQUARE_SHIFT) * torch.rsqrt(
            squares / self.config.width + 2.0**-SQUARE_SHIFT
        )
        scale = smooth + (looked_up - smooth).detach()
        return rounded(x * scale).clamp(ACTIVATION_MIN, ACTIVATION_MAX)

    @torch.no_grad()
    def _observe(self, block: nn.Module, *activations: Tensor) -> None:
        for slot, activation in enumerate(activations):
            sample = activation.detach().abs().flatten()[::7][:4_000_000].float()
            block.seen[slot] = torch.maximum(block.seen[slot], torch.quantile(sample, 0.9995))

    @torch.no_grad()
    def calibrate(self, tokens: Tensor) -> None:
        """Choose the exponents of the activations from a batch (B,h,w) of masked tokens."""
        self.eval()
        self.exact, self.observing = False, True
        for part in tokens.split(16):
            self(part)
        self.observing = False
        for block in self.blocks:
            top = block.seen.new_tensor([ACTIVATION_MAX, HIDDEN_MAX])
            exponents = torch.floor(torch.log2(top / block.seen.clamp_min(1e-3)))
            block.exponents.copy_(exponents.clamp(EXPONENTS[0], EXPONENTS[-1]).long())


def integer_mim(mim: Mim) -> IntegerMim:
    """Read the integers off a trained model."""

    def array(tensor: Tensor) -> IntArray:
        result: IntArray = tensor.detach().double().round().numpy().astype(np.int64)
        return result

    def layer(integers: Integers) -> IntegerLayer:
        weight = array(integers.weight)
        weight = weight.T.copy() if weight.ndim == 2 else weight[:, 0]
        return IntegerLayer(weight, array(integers.bias), array(integers.shift))

    mim = mim.cpu()
    scaled = torch.round(mim.embedding * 2.0**STREAM_EXPONENT)
    blocks = []
    for block in mim.blocks:
        mix, up, down = (layer(integers) for integers in mim.block_integers(block))
        blocks.append((mix, up, down))
    return IntegerMim(
        embedding=array(scaled.clamp(-STREAM_MAX, STREAM_MAX)),
        blocks=tuple(blocks),
        head=layer(mim.head.integers(NORM_EXPONENT, LOGIT_EXPONENT)),
        norm_table=mim.table.numpy(),
        weight_table=frequency_table(),
    )
