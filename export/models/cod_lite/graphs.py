"""The two graphs of a CoD-Lite bundle: image -> tokens and tokens -> image.

Both take pictures of any number of tokens: where the network wants whole patches of 16x16 pixels,
the last rows and columns are repeated inside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.export.models.cod_lite.config import PATCH, Config
from percoedge.export.models.cod_lite.folding import Denoiser, folded
from percoedge.export.models.cod_lite.layers import repeat_last
from percoedge.export.models.cod_lite.network import Encoder, Network, TokenDecoder


class Codec(nn.Module):
    """What is left of a network: ``encoder``, ``codebook`` (K,c), ``tokens``, ``denoiser``."""

    codebook: Tensor

    def __init__(
        self, config: Config, encoder: Encoder, codebook: Tensor, tokens: TokenDecoder,
        denoiser: Denoiser,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.encoder, self.tokens, self.denoiser = encoder, tokens, denoiser
        self.register_buffer("codebook", codebook)

    @classmethod
    def of(cls, network: Network, config: Config) -> Codec:
        """Fold a network; its encoder and token decoder are taken over, not copied."""
        parts = network.y_embedder
        codebook = parts.bottleneck.embedding.weight.detach()
        codec = cls(config, parts.encoder, codebook, parts.decoder, folded(network))
        return codec.requires_grad_(False).eval()


class EncoderGraph(nn.Module):
    """image uint8 (n,s*h,s*w,3), s being the stride -> tokens int32 (n,h,w)."""

    def __init__(self, codec: Codec, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.dtype = codec.encoder, dtype
        self.stride = codec.config.stride
        codebook = codec.codebook.float()
        self.register_buffer("codebook", codebook)
        # |y - e|^2 is smallest where y.e - |e|^2 / 2 is largest
        self.register_buffer("offset", codebook.double().square().sum(1).float() / -2)

    def forward(self, image: Tensor) -> Tensor:
        """Index of the nearest codebook vector in every cell; distances in float32."""
        height, width = (side // self.stride for side in image.shape[1:3])
        pixels = image.to(self.dtype).permute(0, 3, 1, 2) / 255
        pixels = _whole(pixels, self.stride, self.stride)
        y = self.encoder(pixels).float().permute(0, 2, 3, 1)
        tokens = F.linear(y, self.codebook, self.offset).argmax(-1)
        if self.stride < PATCH:
            tokens = tokens[:, :height, :width]
        return tokens.to(torch.int32)


class DecoderGraph(nn.Module):
    """tokens int32 (n,h,w) -> image uint8 (n,s*h,s*w,3), s being the stride."""

    def __init__(self, codec: Codec, dtype: torch.dtype) -> None:
        super().__init__()
        self.tokens, self.denoiser = codec.tokens, codec.denoiser
        self.stride = codec.config.stride
        self.register_buffer("codebook", codec.codebook.to(dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """The image, rounded as the published code does."""
        height, width = tokens.shape[1:]
        whole = _whole(tokens[:, None], 1, self.stride)[:, 0]
        codes = F.embedding(whole, self.codebook).permute(0, 3, 1, 2)
        image = self.denoiser(self.tokens(codes)).float()
        # floor(x + 0.5), as the published code rounds
        pixels = ((image + 1) * 127.5 + 0.5).floor().clamp(0, 255).to(torch.uint8)
        if self.stride < PATCH:
            pixels = pixels[:, : self.stride * height, : self.stride * width]
        return pixels


def _whole(x: Tensor, cells: int, stride: int) -> Tensor:
    """(n,c,h,w) -> whole patches by repeating the last row and column; ``cells``: per token."""
    if stride >= PATCH:
        return x
    unit = PATCH // stride * cells
    return repeat_last(repeat_last(x, 2, unit), 3, unit)
