"""Training of the entropy model: first in float, then with the exact integer forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from percoedge.bitstream.schedules import SCHEDULES, pass_table
from percoedge.export.config import Config, StageConfig
from percoedge.export.models.mim import Mim
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.precision import precision
from percoedge.export.training.data import Crops, Photos
from percoedge.export.training.trainer import Figures, Trainer


def random_masks(rng: np.random.Generator, batch: int, size: int) -> np.ndarray:
    """Masks bool (batch,size,size) with at least one masked cell each.

    Half of them are random with cosine-distributed shares (MaskGIT, arXiv 2202.04200); the others
    are the states in which the schedules leave a grid before one of their passes.
    """
    tables = [pass_table(name, size, size) for name in SCHEDULES[1:]]
    masks = np.empty((batch, size, size), bool)
    for slot in range(batch):
        if rng.random() < 0.5:
            share = np.cos(np.pi / 2 * rng.random())
            masks[slot] = rng.random((size, size)) < share
            masks[slot, rng.integers(size), rng.integers(size)] = True
        else:
            table = tables[rng.integers(len(tables))]
            turned = np.rot90(table, int(rng.integers(4))) if rng.random() < 0.5 else table
            masks[slot] = turned >= rng.integers(turned.max() + 1)
    return masks


@torch.no_grad()
def schedule_bits(mim: Mim, grids: list[Tensor], name: str) -> float:
    """Mean ideal code length, bits per token, of grids (h,w) coded by a schedule's passes."""
    total_bits, count = 0.0, 0
    for grid in grids:
        table = torch.tensor(pass_table(name, *grid.shape)).to(grid.device)
        for number in range(int(table.max()) + 1):
            masked = torch.where(table < number, grid, torch.full_like(grid, mim.mask_id))
            coded = table == number
            scores = torch.log_softmax(mim(masked[None])[0][coded].double(), dim=-1)
            total_bits -= float(scores.gather(1, grid[coded][:, None]).sum()) / np.log(2)
        count += grid.numel()
    return total_bits / count


@dataclass(frozen=True)
class Tokens:
    """Where the entropy model's tokens come from: a frozen encoder, and photos to put through it.

    ``of``: images (B,3,H,W) in [-1,1] -> tokens int64 (B,h,w), there where the images are, for
    sides that are multiples of ``stride``.
    """

    of: Callable[[Tensor], Tensor]
    stride: int
    photos: Photos
    valid: list[Tensor]  # images (1,3,H,W)

    def crops(self, stage: StageConfig, seed: int) -> Crops:
        """Crops of as many pixels as the stage's crops of tokens are made of."""
        return Crops(self.photos, stage.batch, stage.crop * self.stride, seed)


def family_tokens(family: Family, config: Config, photos: Photos, valid: list[Tensor]) -> Tokens:
    """The tokens of a family in PyTorch."""

    @torch.no_grad()
    def of(images: Tensor) -> Tensor:
        with precision(images.device):
            return family.tokens(family.vae.encode(images))

    return Tokens(of, config.codec.stride, photos, valid)


def fit_mim(mim: Mim, name: str, stage: StageConfig, tokens: Tokens, out: Path, seed: int) -> None:
    """Train in the mode that ``mim.exact`` says, as stage ``name``; a finished one is loaded."""
    device = next(mim.parameters()).device
    trainer = Trainer(name, mim, stage, out, seed)

    def step(index: int, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Figures]:
        target = tokens.of(images)
        masked = masked_at_random(rng, target, mim.mask_id)
        hidden = masked == mim.mask_id
        with torch.autocast(device.type, torch.bfloat16, enabled=not mim.exact):
            logits = mim(masked)[hidden].float()
        loss = F.cross_entropy(logits, target[hidden])
        return loss, {"bits": loss / math.log(2)}

    def validate() -> dict[str, float]:
        grids = [tokens.of(image)[0] for image in tokens.valid]
        return {name: round(schedule_bits(mim, grids, name), 4) for name in SCHEDULES[1:]}

    if not trainer.finished():
        trainer.run(step, tokens.crops(stage, seed), validate)


def train_mim(
    mim: Mim, tokens: Tokens, stages: Mapping[str, StageConfig], out: Path, seed: int
) -> None:
    """Float training, calibration of the scales, then quantisation-aware training."""
    mim.exact = False
    fit_mim(mim, "mim", stages["mim"], tokens, out, seed)
    stage = stages["mim_exact"]
    if not (out / "mim_exact.pt").exists():
        rng = np.random.default_rng(seed)
        device = next(mim.parameters()).device
        batches = tokens.crops(stage, seed).batches(range(8), device)
        masked = [masked_at_random(rng, tokens.of(images), mim.mask_id) for images in batches]
        mim.calibrate(torch.cat(masked))
    mim.exact = True
    fit_mim(mim, "mim_exact", stage, tokens, out, seed + 1)


def masked_at_random(rng: np.random.Generator, tokens: Tensor, mask_id: int) -> Tensor:
    """Square grids int64 (B,size,size) with cells masked as random_masks says."""
    masks = torch.from_numpy(random_masks(rng, *tokens.shape[:2])).to(tokens.device)
    return tokens.masked_fill(masks, mask_id)
