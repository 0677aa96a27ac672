"""Autoencoders: photo (B,3,H,W) in [-1,1] <-> latent (B,16,H/8,W/8) of about unit variance.

``TinyVae`` is norm-free, so that an output pixel depends on a bounded neighbourhood only and tiles
join without seams; at full size diffusers' ``AutoencoderKL`` takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from percoedge.export.config import VaeConfig


class ResidualBlock(nn.Module):
    """x + conv3x3(relu(conv3x3(relu(x)))), the second convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the convolutions add to it, of the same shape."""
        y: Tensor = self.conv2(torch.relu(self.conv1(torch.relu(x))))
        return x + y


def _encoder(widths: list[int], blocks: list[int], latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if level:
            layers += [nn.ReLU(), nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1)]
        layers += [ResidualBlock(width) for _ in range(count)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], latent_channels, 3, padding=1))


def _decoder(widths: list[int], blocks: list[int], latent_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1)]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        layers += [ResidualBlock(width) for _ in range(count)]
        below = widths[level + 1] if level + 1 < len(widths) else 3
        layers += [nn.ReLU(), nn.Conv2d(width, 4 * below, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers)


class TinyVae(nn.Module):
    """Convolutional autoencoder at 1/8 of the resolution.

    ``latent_mean`` and ``latent_std`` (per channel) are measured after training; encode and decode
    apply them, so that latents outside are normalised.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VaeConfig, latent_channels: int) -> None:
        super().__init__()
        self.encoder = _encoder(config.encoder_widths, config.encoder_blocks, latent_channels)
        self.decoder = _decoder(config.decoder_widths, config.decoder_blocks, latent_channels)
        self.register_buffer("latent_mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, latent_channels, 1, 1))

    def encode(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,C,H/8,W/8)."""
        latent: Tensor = self.encoder(image)
        return (latent - self.latent_mean) / self.latent_std

    def decode(self, latent: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,3,8h,8w), nominally in [-1,1] but not clipped."""
        image: Tensor = self.decoder(latent * self.latent_std + self.latent_mean)
        return image


class SdVae(nn.Module):
    """``AutoencoderKL`` of Stable Diffusion 3: mean of the posterior, shift and scale inside."""

    def __init__(self, config: VaeConfig, latent_channels: int) -> None:
        from diffusers import AutoencoderKL

        super().__init__()
        count = len(config.block_out_channels)
        self.vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * count,
            up_block_types=("UpDecoderBlock2D",) * count,
            block_out_channels=tuple(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            latent_channels=latent_channels,
            norm_num_groups=min(32, *config.block_out_channels),
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=config.scaling_factor,
            shift_factor=config.shift_factor,
        )
        self.tiny_decoder = _taesd_decoder(latent_channels) if config.tiny_decoder else None
        if config.tiny_decoder:
            del self.vae.decoder

    def encode(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,C,H/8,W/8)."""
        mean = self.vae.encoder(image).chunk(2, dim=1)[0]
        latent: Tensor = (mean - self.vae.config.shift_factor) * self.vae.config.scaling_factor
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,3,8h,8w)."""
        image: Tensor
        if self.tiny_decoder is not None:
            image = self.tiny_decoder(latent)  # trained on shifted and scaled latents
            return image
        config = self.vae.config
        image = self.vae.decoder(latent / config.scaling_factor + config.shift_factor)
        return image


def _taesd_decoder(latent_channels: int) -> nn.Module:
    """The decoder of TAESD and TAESD3, in the sizes of its published weights."""
    from diffusers.models.autoencoders.vae import DecoderTiny

    return DecoderTiny(
        in_channels=latent_channels,
        out_channels=3,
        num_blocks=(3, 3, 3, 1),
        block_out_channels=(64, 64, 64, 64),
        upsampling_scaling_factor=2,
        act_fn="relu",
        upsample_fn="nearest",
    )


def build_vae(config: VaeConfig, latent_channels: int) -> TinyVae | SdVae:
    """The autoencoder that ``config.kind`` names: ``tiny`` or ``kl``."""
    kinds: dict[str, type[TinyVae] | type[SdVae]] = {"tiny": TinyVae, "kl": SdVae}
    return kinds[config.kind](config, latent_channels)
