"""The networks as published: tensors of their state are those of the authors, by name and shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from percoedge.export.models.elic import bottleneck, hyper_stages
from percoedge.export.models.perco_sd.config import Config


class _Residual(nn.Module):
    """x + 1x1(relu(3x3(relu(1x1(x))))) at half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = bottleneck(width)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the convolutions add to it, of the same shape."""
        y: Tensor = self.layers(x)
        return x + y


class _RectifiedResidual(nn.Module):
    """As ``_Residual``, with ReLU over the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = bottleneck(width)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, nowhere below 0."""
        return torch.relu(x + self.conv(x))


class _Gated(nn.Module):
    """x + a(x) * sigmoid(b(x)), convolutions only: the "attention" of ELIC (arXiv 2203.10886)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_a = nn.Sequential(*(_RectifiedResidual(width) for _ in range(3)))
        self.conv_b = nn.Sequential(
            *(_RectifiedResidual(width) for _ in range(3)), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the gate lets through, of the same shape."""
        y: Tensor = self.conv_a(x) * torch.sigmoid(self.conv_b(x))
        return x + y


class Quantizer(nn.Module):
    """Nearest unit vector by cosine, in float32.

    ``project_in``, codebook (1,K,D) of unit rows, ``project_out``.
    """

    def __init__(self, features: int, code_channels: int, size: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(features, code_channels)
        self.project_out = nn.Linear(code_channels, features)
        self._codebook = nn.Module()
        self._codebook.register_buffer("embed", torch.zeros(1, size, code_channels))

    def codes(self, features: Tensor) -> Tensor:
        """Features (n,c,h,w) -> unit vectors (n,h,w,D)."""
        return F.normalize(self.project_in(features.float().permute(0, 2, 3, 1)), dim=-1)

    def nearest(self, codes: Tensor) -> Tensor:
        """Unit vectors (n,h,w,D) -> tokens int64 (n,h,w); the first of equals."""
        return (codes @ self._codebook.embed[0].t()).argmax(-1)

    def table(self) -> Tensor:
        """What the decoder gets for every token: (K, features)."""
        rows: Tensor = self.project_out(self._codebook.embed[0])
        return rows


class HyperEncoder(nn.Module):
    """``backbone``: latent (n,4,h,w) -> features; strided where a token covers more cells."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        halvings = config.cells.bit_length() - 1
        self.backbone = hyper_stages(
            *(config.latent_channels, config.width, config.features, halvings),
            *(_Residual, _Gated),
        )
        self.quantizer = Quantizer(config.features, config.code_channels, config.codebook_size)


def build_unet(config: Config) -> UNet2DConditionModel:
    """Diffusers' network, whose first layer is ``conv_in_extended``, over latent and codes."""
    unet = UNet2DConditionModel.from_config(dict(config.unet))
    old = unet.conv_in
    unet.conv_in_extended = nn.Conv2d(
        old.in_channels + config.features, old.out_channels, old.kernel_size, padding=old.padding
    )
    del unet.conv_in
    return unet


class Vae(nn.Module):
    """``AutoencoderKL``: mean of the posterior, scaled."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vae = AutoencoderKL.from_config(dict(config.vae))
        self.scale = float(self.vae.config.scaling_factor)

    def encode(self, image: Tensor) -> Tensor:
        """(n,3,H,W) in [-1,1] -> latent (n,4,H/8,W/8)."""
        mean: Tensor = self.vae.quant_conv(self.vae.encoder(image)).chunk(2, dim=1)[0]
        return mean * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (n,4,h,w) -> (n,3,8h,8w), not clipped."""
        image: Tensor = self.vae.decoder(self.vae.post_quant_conv(latent / self.scale))
        return image


def build_text(config: Config) -> CLIPTextModel:
    """The text tower of transformers."""
    table = CLIPTextConfig.from_dict(dict(config.text))
    table._attn_implementation = "eager"  # the others trace to more nodes, or not at all
    return CLIPTextModel(table)
