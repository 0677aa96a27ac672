"""Training of the entropy model: first in float, then with the exact integer forward pass."""

from __future__ import annotations

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
from percoedge.export.training.data import Photos, image_tensor
from percoedge.export.training.trainer import Trainer


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
class TokenPhotos:
    """Token grids int64 (h,w) of the training photos, their weights for drawing, and others."""

    grids: list[Tensor]
    weights: np.ndarray
    valid: list[Tensor]


@torch.no_grad()
def token_photos(family: Family, stride: int, photos: Photos, valid: list[Tensor]) -> TokenPhotos:
    """Tokens of all photos, of their mirror images, and of the validation images (1,3,H,W).

    ``stride``: pixels per token, each way.
    """
    device = valid[0].device

    def tokens_of(images: Tensor) -> Tensor:
        with precision(device):
            codes = family.quantizer.codes(family.hyper(family.vae.encode(images.to(device))))
        return family.quantizer.nearest(codes)

    grids: list[Tensor] = []
    for pixels in photos.images:
        height, width = (side // stride * stride for side in pixels.shape[:2])
        both = np.stack([pixels[:height, :width], pixels[:height, :width][:, ::-1]])
        grids += tokens_of(image_tensor(both))
    valid_grids = [tokens_of(image)[0] for image in valid]
    return TokenPhotos(grids, np.repeat(photos.weights, 2) / 2, valid_grids)


def fit_mim(
    mim: Mim, name: str, stage: StageConfig, tokens: TokenPhotos, out: Path, seed: int
) -> None:
    """Train in the mode that ``mim.exact`` says, as stage ``name``; a finished one is loaded."""
    device = next(mim.parameters()).device
    trainer = Trainer(name, mim, stage, out, seed)

    def step(index: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        target, masked = masked_crops(rng, tokens, stage.batch, stage.crop, mim.mask_id)
        hidden = masked == mim.mask_id
        with torch.autocast(device.type, torch.bfloat16, enabled=not mim.exact):
            logits = mim(masked)[hidden].float()
        loss = F.cross_entropy(logits, target[hidden])
        return loss, {"bits": float(loss.detach()) / np.log(2)}

    def validate() -> dict[str, float]:
        return {name: round(schedule_bits(mim, tokens.valid, name), 4) for name in SCHEDULES[1:]}

    if not trainer.finished():
        trainer.run(step, validate)


def train_mim(
    family: Family,
    config: Config,
    photos: Photos,
    valid: list[Tensor],
    out: Path,
    again: bool = False,
) -> None:
    """Float training, calibration of the scales, then quantisation-aware training.

    ``again``: the model has been trained on other tokens of the same codebook before; it goes on
    from there, in the stage ``mim_again``.
    """
    mim = family.mim
    mim.exact = False
    name = "mim_again" if again else "mim"
    if not again:
        mim.start_from(family.quantizer.codebook)
    tokens = token_photos(family, config.codec.stride, photos, valid)
    fit_mim(mim, name, config.train[name], tokens, out, config.seed)
    if not (out / "mim_exact.pt").exists():
        rng = np.random.default_rng(config.seed)
        size = config.train["mim_exact"].crop
        mim.calibrate(masked_crops(rng, tokens, 128, size, mim.mask_id)[1])
    mim.exact = True
    fit_mim(mim, "mim_exact", config.train["mim_exact"], tokens, out, config.seed + 1)


def masked_crops(
    rng: np.random.Generator, tokens: TokenPhotos, batch: int, size: int, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Random crops of token grids and the same with masked cells: int64 (batch,size,size) both."""
    crops = []
    for index in rng.choice(len(tokens.grids), batch, p=tokens.weights):
        grid = tokens.grids[index]
        top, left = (int(rng.integers(side - size + 1)) for side in grid.shape)
        crops.append(grid[top : top + size, left : left + size])
    target = torch.stack(crops)
    masks = torch.from_numpy(random_masks(rng, batch, size)).to(target.device)
    return target, target.masked_fill(masks, mask_id)
