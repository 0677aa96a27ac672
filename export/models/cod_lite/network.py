"""CoD-Lite as its checkpoints hold it: names and shapes of all tensors, and what is not folded.

What the decode graph computes of the denoiser's tensors, in another form, is in ``folding``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.export.models.cod_lite.config import PATCH, Config
from percoedge.export.models.cod_lite.layers import (
    Attention,
    EvenHalving,
    Halving,
    Norm,
    Residual,
    activate,
)

_TIME_CHANNELS = 256
_NOISE_CHANNELS = 128
DCT_SIDE = 8
"""Frequencies each way of the table that tells the pixels of a patch apart."""


class Encoder(nn.Module):
    """Image (n,3,16h,16w) in [0,1] -> features (n,c,16h/stride,16w/stride)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        first = config.encoder_width
        last = 4 * first
        self.conv_in = EvenHalving(3, first)
        widths = (first, first, first, 2 * first, 2 * first)
        for level in range(4):
            before, after = widths[level : level + 2]
            halved = config.stride >= 4 << level
            stage = [Residual(before, after), Residual(after, after)]
            self.add_module(
                f"down_block_{level}", nn.Sequential(*stage, *([Halving(after)] * halved))
            )
        self.down_block_4 = nn.Sequential(
            Residual(last // 2, last), Attention(last), Residual(last, last), Attention(last)
        )
        self.mid_block = nn.Sequential(Residual(last, last), Attention(last), Residual(last, last))
        self.norm_out = Norm(last)
        self.conv_out = nn.Conv2d(last, config.code_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Features, of which the nearest codebook vectors are taken."""
        x: Tensor = self.conv_in(image)
        for level in range(5):
            x = self.get_submodule(f"down_block_{level}")(x)
        x = activate(self.norm_out, self.mid_block(x))
        features: Tensor = self.conv_out(x)
        return features


class TokenDecoder(nn.Module):
    """Codebook vectors (n,c,16h/stride,16w/stride) -> condition (n,width,h,w)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.conv_in = nn.Conv2d(config.code_channels, width, 3, padding=1)
        self.block = nn.Sequential(
            *(Attention(width) if index % 2 else Residual(width, width) for index in range(5))
        )
        self.norm_out = Norm(width)
        self.conv_out: nn.Module = nn.Conv2d(width, width, 3, padding=1)
        if config.stride == 8:
            self.conv_out = EvenHalving(width, width)
        if config.stride == 4:
            self.conv_out = nn.Sequential(
                EvenHalving(width, width), Residual(width, width), EvenHalving(width, width)
            )
        if config.stride == 32:
            self.ada = nn.Module()
            self.ada.block = Residual(width, width)

    def forward(self, codes: Tensor) -> Tensor:
        """The condition of the denoiser."""
        x: Tensor = self.block(self.conv_in(codes))
        x = self.conv_out(activate(self.norm_out, x))
        if hasattr(self, "ada"):
            x = self.ada.block(F.interpolate(x, scale_factor=2, mode="nearest"))
        return x


class Tokens(nn.Module):
    """Encoder, codebook and token decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.bottleneck = nn.Module()
        self.bottleneck.embedding = nn.Embedding(config.codebook_size, config.code_channels)
        self.decoder = TokenDecoder(config)


class Network(nn.Module):
    """A whole codec in the names of its checkpoint. The denoiser's parts only hold weights."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, pixel_width = config.width, config.pixel_width
        self.y_embedder = Tokens(config)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(
            nn.Linear(_TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.y_embedder_x = nn.Conv2d(width, pixel_width * PATCH**2, 1)
        self.x_embedder = nn.Module()
        self.x_embedder.embedder = nn.Sequential(
            nn.Linear(3 + pixel_width + DCT_SIDE**2, pixel_width)
        )
        self.s_embedder = nn.Module()
        self.s_embedder.proj1 = nn.Conv2d(3, _NOISE_CHANNELS, PATCH, stride=PATCH, bias=False)
        self.s_embedder.proj2 = nn.Conv2d(_NOISE_CHANNELS + width, width, 1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.blocks))
        self.dec_net = nn.Module()
        self.dec_net.cond_embed = nn.Linear(width, PATCH**2 * pixel_width)
        self.dec_net.input_proj = nn.Linear(pixel_width, pixel_width)
        self.dec_net.res_blocks = nn.ModuleList(
            _PixelBlock(pixel_width) for _ in range(config.pixel_blocks)
        )
        self.final_layer = nn.Module()
        self.final_layer.norm = nn.Module()
        self.final_layer.norm.register_parameter("weight", nn.Parameter(torch.ones(pixel_width)))
        self.final_layer.linear = nn.Linear(pixel_width, 3)


class _Block(nn.Module):
    """Weights of a block on the grid of patches."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv3 = nn.Conv2d(width, width, 1)
        self.ca = nn.Sequential(nn.Identity(), nn.Conv2d(width, width, 1))
        self.conv4 = nn.Conv2d(width, 4 * width, 1)
        self.conv5 = nn.Conv2d(4 * width, width, 1)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))


class _PixelBlock(nn.Module):
    """Weights of a residual block on pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
