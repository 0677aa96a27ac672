"""Stages of the recipe but those of the entropy model, each a loss on a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from percoedge.export.config import Config, StageConfig
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.sampling import sample
from percoedge.export.models.percov2.vae import TinyVae
from percoedge.export.models.precision import precision
from percoedge.export.training.data import Crops, Photos, image_tensor
from percoedge.export.training.losses import ms_ssim, pixel_loss, psnr
from percoedge.export.training.trainer import Figures, Trainer


def validation_images(folder: Path, device: torch.device, unit: int = 16) -> list[Tensor]:
    """The photos of a folder as (1,3,H,W) in [-1,1], cropped to multiples of ``unit``."""
    images = []
    for pixels in Photos(folder).images:
        height, width = (side // unit * unit for side in pixels.shape[:2])
        images.append(image_tensor(torch.tensor(pixels[None, :height, :width]).to(device)))
    return images


def image_figures(outputs: list[Tensor], targets: list[Tensor]) -> dict[str, float]:
    """Mean PSNR and MS-SSIM over images."""
    clipped = [output.float().clamp(-1, 1) for output in outputs]
    pairs = list(zip(clipped, targets, strict=True))
    return {
        "psnr_db": round(float(np.mean([float(psnr(a, b)) for a, b in pairs])), 3),
        "ms_ssim": round(float(np.mean([float(ms_ssim(a, b)) for a, b in pairs])), 4),
    }


def train_vae(vae: TinyVae, config: Config, photos: Photos, valid: list[Tensor], out: Path) -> None:
    """Autoencoder alone; noise on the latent keeps its scale up and the decoder tolerant."""
    stage = config.train["vae"]
    device = next(vae.parameters()).device
    trainer = Trainer("vae", vae, stage, out, config.seed)

    def step(index: int, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Figures]:
        with precision(device):
            latent = vae.encode(images)
            decoded = vae.decode(latent + stage.latent_noise * torch.randn_like(latent)).float()
        spread = (latent.float() ** 2).mean()
        loss = pixel_loss(decoded, images, stage.ssim_weight) + stage.kl_weight * spread
        return loss, {"psnr_db": psnr(decoded, images), "spread": spread}

    def validate() -> dict[str, float]:
        with precision(device):
            outputs = [vae.decode(vae.encode(image)) for image in valid]
        return image_figures(outputs, valid)

    if not trainer.finished():
        trainer.run(step, crops_of(stage, photos, config.seed), validate)


def crops_of(stage: StageConfig, photos: Photos, seed: int) -> Crops:
    """The crops that a stage trains on. Raises ValueError when a photo is smaller than they are."""
    return Crops(photos, stage.batch, stage.crop, seed, stage.synthetic_share)


@torch.no_grad()
def latent_statistics(vae: TinyVae, photos: Photos) -> None:
    """Measure mean and standard deviation per channel and store them in the autoencoder."""
    device = next(vae.parameters()).device
    batches = Crops(photos, 32, 256, seed=0).batches(range(8), device)
    latent = torch.cat([vae.encoder(images).float() for images in batches])
    vae.latent_mean.copy_(latent.mean(dim=(0, 2, 3), keepdim=True))
    vae.latent_std.copy_(latent.std(dim=(0, 2, 3), keepdim=True))


def freeze(module: nn.Module) -> None:
    """No gradients, evaluation mode."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def train_codec(
    family: Family,
    config: Config,
    photos: Photos,
    valid: list[Tensor],
    out: Path,
    name: str = "codec",
) -> None:
    """Hyper-encoder, codebook and flow together; the autoencoder is frozen.

    A share of each batch sits at t = 1, where the flow predicts the mean of the latent given the
    tokens: this trains the one-step decode and is the loss that shapes the tokens. The other
    samples draw t as SD3 does (logit-normal), with z_l dropped now and then for guidance. ``name``
    is the stage: "codec" on small crops, then "codec_wide" on larger ones, whose longer rows of
    tokens attention has to learn.
    """
    stage = config.train[name]
    codec = nn.ModuleDict(
        {"hyper": family.hyper, "quantizer": family.quantizer, "flow": family.flow}
    )
    device = next(codec.parameters()).device
    trainer = Trainer(name, codec, stage, out, config.seed)
    at_one = int(stage.batch * stage.one_step_share)

    def step(index: int, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Figures]:
        with torch.no_grad(), precision(device):
            latent = family.vae.encode(images).float()
        place_at_random(family, config, stage, rng)
        noise = torch.randn_like(latent)
        t = torch.sigmoid(torch.randn(len(latent), device=device) + 0.5)
        t[:at_one] = 1.0
        mixed = torch.lerp(latent, noise, t[:, None, None, None])
        with precision(device):
            z, tokens = family.quantizer(family.hyper(latent))
            kept = torch.rand(len(latent), 1, 1, 1, device=device) >= config.flow.condition_dropout
            kept[:at_one] = True
            velocity = family.flow(mixed, z * kept, t).float()
            few = slice(0, stage.pixel_batch)
            decoded = family.vae.decode(noise[few] - velocity[few]).float()
        errors = (velocity - (noise - latent)).square().mean(dim=(1, 2, 3))
        pixels = pixel_loss(decoded, images[few], stage.ssim_weight)
        loss = errors.mean() + stage.pixel_weight * pixels
        figures = {
            "one_step": errors[:at_one].mean(),
            "other": errors[at_one:].mean(),
            "psnr_db": psnr(decoded, images[few]),
            "perplexity": perplexity(family.quantizer.usage),
        }
        return loss, figures

    def validate() -> dict[str, float]:
        family.flow.place(None)
        return decode_figures(family, valid, config.codec.flow_tile * config.codec.stride)

    if not trainer.finished():
        trainer.run(step, crops_of(stage, photos, config.seed), validate)
    family.flow.place(None)


def place_at_random(
    family: Family, config: Config, stage: StageConfig, rng: np.random.Generator
) -> None:
    """Move the flow's window into its table of positions to where a crop may lie."""
    positions = config.flow.pos_embed_max_size - stage.crop // config.codec.stride + 1
    family.flow.place((int(rng.integers(positions)), int(rng.integers(positions))))


def perplexity(usage: Tensor) -> Tensor:
    """How many codes are in effective use: 2 to the entropy of their frequencies; a scalar."""
    share = (usage / usage.sum()).clamp_min(1e-9)
    return torch.exp(-(share * share.log()).sum())


@torch.no_grad()
def decode_figures(family: Family, valid: list[Tensor], side: int) -> dict[str, float]:
    """Quality of 1, 2 and 4 Euler steps on the upper left side x side pixels of each photo."""
    device = valid[0].device
    generator = torch.Generator().manual_seed(0)
    targets = [photo[:, :, :side, :side] for photo in valid]
    figures: dict[str, float] = {}
    for steps in (1, 2, 4):
        outputs = []
        for photo in targets:
            with precision(device):
                latent = family.vae.encode(photo)
                tokens = family.tokens(latent)
                z = family.quantizer.embed(tokens)
                noise = torch.randn(latent.shape, generator=generator).to(device)
                made = sample(family.flow, noise, z, steps)
                outputs.append(family.vae.decode(made).float())
        for key, value in image_figures(outputs, targets).items():
            figures[f"{key}_{steps}step"] = value
    return figures
