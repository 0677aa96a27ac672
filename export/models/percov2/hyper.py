"""Hyper-encoder of PerCo (SD), ELIC-style, and vector quantisation by cosine.

latent (B,16,H/8,W/8) -> features (B,M,h,w) -> unit codes (B,D,h,w) -> tokens (B,h,w) -> z_l.
Structure and sizes: PerCo (SD), arXiv 2409.20255; attention block of ELIC, arXiv 2203.10886.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.export.config import HyperConfig
from percoedge.export.models.elic import bottleneck, hyper_stages


class Bottleneck(nn.Module):
    """x + 1x1(relu(3x3(relu(1x1(x))))) at half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = bottleneck(width)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the convolutions add to it, of the same shape."""
        y: Tensor = self.body(x)
        return x + y


class AttentionBlock(nn.Module):
    """Gated residual: x + trunk(x) * sigmoid(mask(x)); purely convolutional."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(Bottleneck(width) for _ in range(3)))
        self.mask = nn.Sequential(
            *(Bottleneck(width) for _ in range(3)), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the gate lets through, of the same shape."""
        y: Tensor = self.trunk(x) * torch.sigmoid(self.mask(x))
        return x + y


class HyperEncoder(nn.Module):
    """Three stages D1..D3: the last ``downsamplings`` have stride 2 (5x5), the others are 1x1."""

    def __init__(self, config: HyperConfig, latent_channels: int) -> None:
        super().__init__()
        self.body = hyper_stages(
            *(latent_channels, config.width, config.features, config.downsamplings),
            *(Bottleneck, AttentionBlock),
        )

    def forward(self, latent: Tensor) -> Tensor:
        """Features of latents, before they are quantized."""
        features: Tensor = self.body(latent)
        return features


class VectorQuantizer(nn.Module):
    """Nearest unit code by cosine, trained with straight-through gradients and a moving average.

    ``project_in`` M -> D and ``spread`` (normalisation), codebook (K,D) of unit rows,
    ``project_out`` D -> condition channels. There is no commitment loss, as in PerCo (SD).
    Index K stands for "no token": its z_l is zero (masked, or dropped for guidance).
    """

    codebook: Tensor
    usage: Tensor

    def __init__(
        self, features: int, code_dim: int, size: int, channels: int, decay: float = 0.99
    ) -> None:
        super().__init__()
        self.size, self.decay = size, decay
        self.project_in = nn.Conv2d(features, code_dim, 1, bias=False)
        # spreads the codes over the sphere; without it they huddle and few tokens are ever used
        self.spread = nn.BatchNorm2d(code_dim, affine=False)
        self.project_out = nn.Linear(code_dim, channels)
        self.register_buffer("codebook", F.normalize(torch.randn(size, code_dim), dim=1))
        self.register_buffer("usage", torch.zeros(size))

    def codes(self, features: Tensor) -> Tensor:
        """Unit vectors (B,h,w,D) in float32, whatever the precision outside."""
        with torch.autocast(features.device.type, enabled=False):
            projected = self.spread(F.conv2d(features.float(), self.project_in.weight.float()))
            return F.normalize(projected.permute(0, 2, 3, 1), dim=-1)

    def cosines(self, codes: Tensor) -> Tensor:
        """Codes (...,D) with the whole codebook: (...,K), in float32."""
        with torch.autocast(codes.device.type, enabled=False):
            return codes @ self.codebook.t()

    def nearest(self, codes: Tensor) -> Tensor:
        """Tokens int64 (B,h,w): index of the largest cosine."""
        return self.cosines(codes).argmax(dim=-1)

    def table(self) -> Tensor:
        """z_l of every token and of "no token": (K+1, channels)."""
        rows: Tensor = self.project_out(self.codebook)
        return torch.cat([rows, torch.zeros_like(rows[:1])])

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B,h,w), K allowed -> z_l (B,channels,h,w)."""
        return self.table()[tokens.long()].permute(0, 3, 1, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """z_l (B,channels,h,w) with gradients, and tokens (B,h,w)."""
        return self.quantize(self.codes(features))

    def quantize(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The same from codes (B,h,w,D)."""
        tokens = self.nearest(codes)
        chosen = self.codebook[tokens]
        if self.training:
            self._update(codes.detach().flatten(0, 2), tokens.flatten())
        straight = codes + (chosen - codes).detach()
        z: Tensor = self.project_out(straight)
        return z.permute(0, 3, 1, 2), tokens

    @torch.no_grad()
    def _update(self, codes: Tensor, tokens: Tensor) -> None:
        """Move used codes towards their vectors; give dead ones a vector of the batch."""
        counts = torch.bincount(tokens, minlength=self.size).float()
        sums = torch.zeros_like(self.codebook).index_add_(0, tokens, codes)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        rate = ((1 - self.decay) * counts / self.usage.clamp_min(1e-3)).clamp(max=1)[:, None]
        target = F.normalize(sums, dim=1)
        drawn = torch.lerp(self.codebook, target, rate)
        moved = torch.where(counts[:, None] > 0, drawn, self.codebook)
        dead = (self.usage < 0.1 * self.usage.mean()).nonzero().flatten()
        if len(dead):
            picks = torch.randint(len(codes), (len(dead),), device=codes.device)
            moved[dead] = codes[picks]
            self.usage[dead] = self.usage.mean()
        self.codebook.copy_(F.normalize(moved, dim=1))
