"""The end of the recipe, trained on what people see: the decode as it runs, from pixels to pixels.

``joint`` trains encoder, tokens, flow and decoder together on the 1-step decode. ``refine`` leaves
the tokens alone; the 1-step decode stays the faithful image and a second step learns the detail
that an ImageNet network misses in it, with a projected GAN coming in late (arXiv 2111.01007; the
one-step decoder of CoD-Lite is finetuned so too, arXiv 2604.12525).
"""

from __future__ import annotations

import math
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
from percoedge.export.training.features import Features, feature_distance, shifted
from percoedge.export.training.losses import pixel_loss, psnr
from percoedge.export.training.stages import (
    crops_of,
    decode_figures,
    freeze,
    perplexity,
    place_at_random,
)
from percoedge.export.training.stages_mim import masked_at_random
from percoedge.export.training.trainer import Figures, Trainer

# Batches over which the use of the codebook is counted before it is trained on.
_COUNTED = 24
# Difference in cosine that makes a code e times less likely to be taken for a neighbour.
_NEARNESS = 0.03
_SAVE_EVERY = 100


def train_joint(
    family: Family,
    config: Config,
    photos: Photos,
    valid: list[Tensor],
    out: Path,
    features: Features,
) -> None:
    """Encoder, hyper-encoder, codebook, flow and decoder by the 1-step decode, and what it costs.

    The loss is of pixels with a little of features, and ``rate_weight`` times the rate. Statistics
    of the codes stay as they are, so that tokens are the same in training and after it.
    """
    stage = config.train["joint"]
    device = next(family.parameters()).device
    trained = nn.ModuleDict(
        {"vae": family.vae, "hyper": family.hyper, "quantizer": family.quantizer}
        | {"flow": family.flow, "mim": family.mim}
    )
    family.mim.exact = False
    for parameter in trained.parameters():
        parameter.requires_grad_(True)
    trainer = Trainer("joint", trained, stage, out, config.seed, save_every=_SAVE_EVERY)
    family.quantizer.decay = stage.codebook_decay

    def step(index: int, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Figures]:
        place_at_random(family, config, stage, rng)
        family.quantizer.spread.eval()
        with precision(device):
            latent = family.vae.encode(images)
            codes = family.quantizer.codes(family.hyper(latent))
            z, tokens = family.quantizer.quantize(codes)
            price, fit = rate(family, codes, tokens, rng)
            noise = torch.randn(latent.shape, device=device)
            velocity = family.flow(noise, z, torch.ones(len(noise), device=device)).float()
            decoded = family.vae.decode(noise - velocity).float()
            target, made = (features(x) for x in shifted([images, decoded], rng))
        pixels = pixel_loss(decoded, images, stage.ssim_weight, stage.square_weight, scales=5)
        distance = feature_distance([x.float() for x in made], [x.float() for x in target])
        loss = pixels + stage.feature_weight * distance + stage.rate_weight * price + fit
        figures = {
            "psnr_db": psnr(decoded, images),
            "pixels": pixels,
            "features": distance,
            "bits": fit / math.log(2),
            "perplexity": perplexity(family.quantizer.usage),
        }
        return loss, figures

    if not trainer.finished():
        count_usage(family, photos, stage, config.seed)
        crops = crops_of(stage, photos, config.seed)
        trainer.run(step, crops, lambda: figures_of(family, config, valid))
    family.quantizer.codebook.copy_(F.normalize(family.quantizer.codebook, dim=1))
    family.flow.place(None)


def train_refine(
    family: Family,
    config: Config,
    photos: Photos,
    valid: list[Tensor],
    out: Path,
    features: Features,
) -> None:
    """Flow and decoder, by the 1-step and the 2-step decode of tokens that do not change.

    The first velocity is trained by the 1-step decode only, so that one step stays faithful. The
    second step mostly starts half-way, as it will run, else elsewhere, so that more steps work too.
    """
    stage = config.train["refine"]
    flow, decoder = family.flow, family.vae.decoder
    device = next(flow.parameters()).device
    discriminator = Discriminator(features.channels, stage.discriminator_width)
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

    def step(index: int, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Figures]:
        place_at_random(family, config, stage, rng)
        start = 0.5 if rng.random() < stage.half_way_share else float(rng.uniform(0.2, 0.85))
        with precision(device):
            with torch.no_grad():
                latent = family.vae.encode(images)
                tokens = family.tokens(latent)
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
            "psnr_db": psnr(faithful, originals),
            "few_psnr_db": psnr(made, images),
            "features": distance,
            "generator": judged,
            "discriminator": judging,
        }
        return loss, figures

    if not trainer.finished():
        crops = crops_of(stage, photos, config.seed)
        trainer.run(step, crops, lambda: figures_of(family, config, valid))
    flow.place(None)
    freeze(trained)


def rate(
    family: Family, codes: Tensor, tokens: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Cost of tokens (B,h,w) under the entropy model, in nats a token, twice: both scalars.

    The first moves the codes (B,h,w,D) towards tokens that the model expects, each taken as a draw
    among the nearest; the second is the model's own loss on the tokens as they are.
    """
    masked = masked_at_random(rng, tokens, family.mim.mask_id)
    hidden = masked == family.mim.mask_id
    logits = family.mim(masked)[hidden].float()
    near = torch.softmax(family.quantizer.cosines(codes[hidden]) / _NEARNESS, dim=-1)
    price = -(near * F.log_softmax(logits.detach(), dim=-1)).sum(-1).mean()
    return price, F.cross_entropy(logits, tokens[hidden])


@torch.no_grad()
def count_usage(family: Family, photos: Photos, stage: StageConfig, seed: int) -> None:
    """Count the use of each code, where nobody has: a bundle does not say.

    Without it the first batch would take every code that it does not use for dead.
    """
    quantizer = family.quantizer
    if bool(quantizer.usage.any()):
        return
    device = quantizer.usage.device
    for images in crops_of(stage, photos, seed).batches(range(_COUNTED), device):
        with precision(device):
            codes = quantizer.codes(family.hyper(family.vae.encode(images)))
        counts = torch.bincount(quantizer.nearest(codes).flatten(), minlength=quantizer.size)
        quantizer.usage += counts / _COUNTED


def figures_of(family: Family, config: Config, valid: list[Tensor]) -> dict[str, float]:
    """Quality of 1, 2 and 4 steps on validation images (1,3,H,W), at the centre of positions."""
    family.flow.place(None)
    return decode_figures(family, valid, config.codec.flow_tile * config.codec.stride)
