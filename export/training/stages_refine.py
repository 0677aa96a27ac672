"""The stage that makes few steps enough: texture by an adversarial loss, the mean kept at one step.

The velocity at t = 1 stays the regression that it was, so one step decodes to the mean image. The
steps that follow start from it and are trained as they will run, through the whole few-step decode,
against a discriminator that sees the result beside the mean image (as adversarial finetuning of
flow models does, arXiv 2311.17042 and 2501.08316). Tokens do not change: encoder, codebook and
entropy model are left alone, and files made before are read as before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.export.config import Config
from percoedge.export.models.family import Family
from percoedge.export.training.discriminator import (
    Discriminator,
    discriminator_loss,
    generator_loss,
)
from percoedge.export.training.latents import LatentPhotos
from percoedge.export.training.losses import energy_loss, pixel_loss, psnr
from percoedge.export.training.stages import decode_figures
from percoedge.export.training.trainer import Trainer, precision

# Flow steps through which gradients flow: the last ones of a decode.
_GRADIENT_STEPS = 3


def train_refine(
    family: Family, config: Config, latents: LatentPhotos, valid: list[Tensor], out: Path
) -> None:
    """Train the flow and the decoder of the autoencoder; ``family`` must be otherwise trained."""
    stage = config.train["refine"]
    flow, decoder = family.flow, family.vae.decoder
    device = next(flow.parameters()).device
    discriminator = Discriminator(stage.discriminator_widths)
    discriminator.to(device, memory_format=torch.channels_last)
    trained = nn.ModuleDict({"flow": flow, "decoder": decoder, "discriminator": discriminator})
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    trainer = Trainer("refine", trained, stage, out, config.seed, apart=[discriminator])
    positions = config.flow.pos_embed_max_size - stage.crop // config.codec.stride + 1

    def sampled(noise: Tensor, first: Tensor, z: Tensor, steps: int) -> Tensor:
        """Latent after ``steps`` steps, the first of which had the velocity ``first``."""
        x = noise - first / steps
        for index in range(1, steps):
            t = torch.full((len(x),), 1 - index / steps, device=device)
            with torch.set_grad_enabled(steps - index <= _GRADIENT_STEPS):
                x = x - flow(x, z, t).float() / steps
        return x

    def step(index: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        latent, images = latents.crops(rng, stage.batch, stage.crop)
        flow.place((int(rng.integers(positions)), int(rng.integers(positions))))
        noise = torch.randn_like(latent)
        steps = int(rng.choice(stage.few_steps))
        ones = torch.ones(len(latent), device=device)
        with precision(device):
            with torch.no_grad():
                tokens = family.quantizer.nearest(family.quantizer.codes(family.hyper(latent)))
                z = family.quantizer.embed(tokens)
            first = flow(noise, z, ones).float()
            mean = family.vae.decode(noise - first).float()
            made = family.vae.decode(sampled(noise, first.detach(), z, steps)).float()
            # without tokens, for guidance: the plain flow matching loss
            t = torch.rand(1, device=device)
            mixed = torch.lerp(latent[:1], noise[:1], t)
            free = flow(mixed, torch.zeros_like(z[:1]), t).float()
        # in float32: the penalty is on differences of scores that bfloat16 cannot tell apart
        beside = mean.detach().clamp(-1, 1)
        judged = generator_loss(discriminator, images, made, beside)
        judging = discriminator_loss(discriminator, images, made, beside, stage.penalty)
        means = pixel_loss(mean, images, stage.ssim_weight)
        pixels = pixel_loss(made, images, stage.ssim_weight)
        energy = energy_loss(made, images)
        loss = (
            stage.pixel_weight * means
            + stage.few_pixel_weight * pixels
            + stage.energy_weight * energy
            + stage.adversarial_weight * judged
            + judging
            + 0.1 * F.mse_loss(free, noise[:1] - latent[:1])
        )
        figures = {
            "psnr_db": float(psnr(mean.detach(), images)),
            "few_psnr_db": float(psnr(made.detach(), images)),
            "energy": float(energy.detach()),
            "generator": float(judged.detach()),
            "discriminator": float(judging.detach()),
        }
        return loss, figures

    def validate() -> dict[str, float]:
        flow.place(None)
        return decode_figures(family, valid, config.codec.flow_tile * config.codec.stride)

    if not trainer.finished():
        trainer.run(step, validate)
    flow.place(None)
    for parameter in trained.parameters():
        parameter.requires_grad_(False)
