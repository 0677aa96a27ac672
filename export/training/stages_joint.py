"""The end of the recipe, trained on what people see: the decode as it runs, from pixels to pixels.

``joint`` trains encoder, tokens, flow and decoder together on the 1-step decode. ``refine`` leaves
the tokens alone; the 1-step decode stays the faithful image and a second step learns the detail
that an ImageNet network misses in it, with a projected GAN coming in late (arXiv 2111.01007; the
one-step decoder of CoD-Lite is finetuned so too, arXiv 2604.12525).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.export.config import Config, StageConfig
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.precision import precision
from percoedge.export.training.data import Photos
from percoedge.export.training.discriminator import (
    Discriminator,
    discriminator_loss,
    generator_loss,
)
from percoedge.export.training.features import CHANNELS, FeatureNetwork, feature_distance, shifted
from percoedge.export.training.losses import pixel_loss, psnr
from percoedge.export.training.stages import decode_figures, freeze, perplexity
from percoedge.export.training.trainer import Trainer

# Batches over which the use of the codebook is counted before it is trained on.
_COUNTED = 24
_SAVE_EVERY = 100


def train_joint(
    family: Family,
    config: Config,
    photos: Photos,
    valid: list[Tensor],
    out: Path,
    features: FeatureNetwork,
) -> None:
    """Encoder, hyper-encoder, codebook, flow and decoder, by the 1-step decode alone.

    The loss is of pixels with a little of features. Statistics of the codes stay as they are, so
    that tokens are the same in training and after it.
    """
    stage = config.train["joint"]
    device = next(family.parameters()).device
    trained = nn.ModuleDict(
        {"vae": family.vae, "hyper": family.hyper, "quantizer": family.quantizer}
        | {"flow": family.flow}
    )
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    trainer = Trainer("joint", trained, stage, out, config.seed, save_every=_SAVE_EVERY)
    family.quantizer.decay = stage.codebook_decay

    def step(index: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        images = photos.crops(rng, stage.batch, stage.crop, stage.synthetic_share).to(device)
        place_at_random(family, config, stage, rng)
        family.quantizer.spread.eval()
        with precision(device):
            latent = family.vae.encode(images)
            z, _ = family.quantizer(family.hyper(latent))
            noise = torch.randn(latent.shape, device=device)
            velocity = family.flow(noise, z, torch.ones(len(noise), device=device)).float()
            decoded = family.vae.decode(noise - velocity).float()
            target, made = (features(x) for x in shifted([images, decoded], rng))
        pixels = pixel_loss(decoded, images, stage.ssim_weight, stage.square_weight, scales=5)
        distance = feature_distance([x.float() for x in made], [x.float() for x in target])
        loss = pixels + stage.feature_weight * distance
        figures = {
            "psnr_db": float(psnr(decoded.detach(), images)),
            "pixels": float(pixels.detach()),
            "features": float(distance.detach()),
            "perplexity": perplexity(family.quantizer.usage),
        }
        return loss, figures

    if not trainer.finished():
        count_usage(family, photos, stage, config.seed)
        trainer.run(step, lambda: figures_of(family, config, valid))
    family.quantizer.codebook.copy_(F.normalize(family.quantizer.codebook, dim=1))
    family.flow.place(None)


def train_refine(
    family: Family,
    config: Config,
    photos: Photos,
    valid: list[Tensor],
    out: Path,
    features: FeatureNetwork,
) -> None:
    """Flow and decoder, by the 1-step and the 2-step decode of tokens that do not change.

    The first velocity is trained by the 1-step decode only, so that one step stays faithful. The
    second step mostly starts half-way, as it will run, else elsewhere, so that more steps work too.
    """
    stage = config.train["refine"]
    flow, decoder = family.flow, family.vae.decoder
    device = next(flow.parameters()).device
    discriminator = Discriminator(CHANNELS, stage.discriminator_widths)
    discriminator.to(device, memory_format=torch.channels_last)
    freeze(family.hyper)
    freeze(family.quantizer)
    freeze(family.vae.encoder)
    some = slice(0, stage.pixel_batch)
    trained = nn.ModuleDict({"flow": flow, "decoder": decoder, "discriminator": discriminator})
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    trainer = Trainer(
        "refine",
        trained,
        stage,
        out,
        config.seed,
        apart=[discriminator],
        apart_rate=stage.discriminator_rate,
        save_every=_SAVE_EVERY,
    )

    def step(index: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        images = photos.crops(rng, stage.batch, stage.crop, stage.synthetic_share).to(device)
        place_at_random(family, config, stage, rng)
        start = 0.5 if rng.random() < stage.half_way_share else float(rng.uniform(0.2, 0.85))
        with precision(device):
            with torch.no_grad():
                latent = family.vae.encode(images)
                tokens = family.quantizer.nearest(family.quantizer.codes(family.hyper(latent)))
                z = family.quantizer.embed(tokens)
            noise = torch.randn(latent.shape, device=device)
            ones = torch.ones(len(noise), device=device)
            mean = noise - flow(noise, z, ones).float()
            begun = torch.lerp(mean.detach(), noise, start)
            ended = begun - start * flow(begun, z, start * ones).float()
            faithful, made = (family.vae.decode(x).float() for x in (mean[some], ended))
            real, drawn = (features(x) for x in shifted([images, made], rng))
            real, drawn = ([x.float() for x in each] for each in (real, drawn))
        originals = images[some]
        pixels = pixel_loss(faithful, originals, stage.ssim_weight, stage.square_weight, scales=5)
        few_pixels = pixel_loss(made, images, stage.ssim_weight, scales=5)
        distance = feature_distance(drawn, real)
        judged = generator_loss(discriminator, drawn)
        judging = discriminator_loss(discriminator, real, drawn)
        ramp = min(1.0, index / max(1.0, stage.adversarial_ramp * stage.steps))
        loss = (
            stage.pixel_weight * pixels
            + stage.few_pixel_weight * few_pixels
            + stage.feature_weight * distance
            + ramp * stage.adversarial_weight * judged
            + judging
        )
        figures = {
            "psnr_db": float(psnr(faithful.detach(), originals)),
            "few_psnr_db": float(psnr(made.detach(), images)),
            "features": float(distance.detach()),
            "generator": float(judged.detach()),
            "discriminator": float(judging.detach()),
        }
        return loss, figures

    if not trainer.finished():
        trainer.run(step, lambda: figures_of(family, config, valid))
    flow.place(None)
    freeze(trained)


def place_at_random(
    family: Family, config: Config, stage: StageConfig, rng: np.random.Generator
) -> None:
    """Move the flow's window into its table of positions to where a crop may lie."""
    positions = config.flow.pos_embed_max_size - stage.crop // config.codec.stride + 1
    family.flow.place((int(rng.integers(positions)), int(rng.integers(positions))))


@torch.no_grad()
def count_usage(family: Family, photos: Photos, stage: StageConfig, seed: int) -> None:
    """Count the use of each code, where nobody has: a bundle does not say.

    Without it the first batch would take every code that it does not use for dead.
    """
    quantizer = family.quantizer
    if bool(quantizer.usage.any()):
        return
    device = quantizer.usage.device
    rng = np.random.default_rng(seed)
    for _ in range(_COUNTED):
        images = photos.crops(rng, stage.batch, stage.crop, stage.synthetic_share).to(device)
        with precision(device):
            codes = quantizer.codes(family.hyper(family.vae.encode(images)))
        counts = torch.bincount(quantizer.nearest(codes).flatten(), minlength=quantizer.size)
        quantizer.usage += counts / _COUNTED


def figures_of(family: Family, config: Config, valid: list[Tensor]) -> dict[str, float]:
    """Quality of 1, 2 and 4 steps on validation images (1,3,H,W), at the centre of positions."""
    family.flow.place(None)
    return decode_figures(family, valid, config.codec.flow_tile * config.codec.stride)
