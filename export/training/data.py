"""Training photographs: decoded once, then random crops and flips, the batch of every step."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from percoedge.export.training.synthetic import synthetic_crop

Pixels = NDArray[np.uint8]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

# Processes that draw crops for a GPU: drawing a batch takes longer than a step on it.
_GPU_WORKERS = 10

# Narrow sources are drawn less often than the rest.
SOURCE_WEIGHTS = dict.fromkeys(
    ("tf_flowers", "grocery", "farmbot", "odri", "openbot", "opensfm", "openstax_astronomy"), 0.5
)


def _source_of(photo_dir: Path) -> dict[str, str]:
    manifest = photo_dir.parent / "MANIFEST.csv"
    if not manifest.exists():
        return {}
    with manifest.open(newline="") as handle:
        return {row["file"]: row["source"] for row in csv.DictReader(handle)}


class Photos:
    """All photos of a folder in memory as uint8 (H,W,3), with a weight for drawing each.

    ``limit`` keeps the first so many (for dry runs). Raises ValueError when there is none.
    """

    def __init__(self, photo_dir: Path, limit: int | None = None) -> None:
        found = (path for path in photo_dir.iterdir() if not path.name.startswith("."))
        files = sorted(path for path in found if path.suffix.lower() in _SUFFIXES)
        if limit is not None:
            files = files[:: max(1, len(files) // limit)][:limit]
        if not files:
            raise ValueError(
                f"expected photos in {photo_dir}, found none; give --photos a folder of them"
            )
        source_of = _source_of(photo_dir)
        self.names = [path.name for path in files]
        with ThreadPoolExecutor() as threads:
            self.images = list(threads.map(_read, files))
        weights = [SOURCE_WEIGHTS.get(source_of.get(name, ""), 1.0) for name in self.names]
        self.weights = np.asarray(weights) / sum(weights)

    def check_sides(self, least: int) -> None:
        """Raise ValueError when a side of a photo is shorter than ``least`` pixels."""
        for name, image in zip(self.names, self.images, strict=True):
            if min(image.shape[:2]) < least:
                height, width = image.shape[:2]
                raise ValueError(
                    f"expected sides of at least {least} pixels, the crop of the recipe, got "
                    f"{name} of {width}x{height}; remove or enlarge it"
                )

    def crops(
        self, rng: np.random.Generator, batch: int, size: int, synthetic_share: float = 0.0
    ) -> Pixels:
        """Random flipped crops: uint8 (batch,size,size,3).

        ``synthetic_share``: how many of them are made up, see synthetic.py.
        """
        out = np.empty((batch, size, size, 3), np.uint8)
        for slot, index in enumerate(rng.choice(len(self.images), batch, p=self.weights)):
            if synthetic_share and rng.random() < synthetic_share:
                out[slot] = synthetic_crop(rng, size)
                continue
            image = self.images[index]
            top = rng.integers(image.shape[0] - size + 1)
            left = rng.integers(image.shape[1] - size + 1)
            crop = image[top : top + size, left : left + size]
            out[slot] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return out


class Crops(Dataset[Tensor]):
    """The crops of every step of a stage: step ``i`` draws with (seed, i, rank), whoever draws.

    ``size``: pixels a side; ``rank``: number of the process among those of torchrun.
    """

    def __init__(
        self,
        photos: Photos,
        batch: int,
        size: int,
        seed: int,
        synthetic_share: float = 0.0,
        rank: int = 0,
    ) -> None:
        photos.check_sides(size)
        self.photos, self.batch, self.size = photos, batch, size
        self.seed, self.rank, self.synthetic_share = seed, rank, synthetic_share

    def __getitem__(self, step: int) -> Tensor:
        rng = np.random.default_rng((self.seed, step, self.rank, 1))
        pixels = self.photos.crops(rng, self.batch, self.size, self.synthetic_share)
        return torch.from_numpy(pixels)

    def batches(self, steps: Sequence[int], device: torch.device) -> Iterator[Tensor]:
        """Crops of these steps in turn: float32 (batch,3,size,size) in [-1,1] on the device.

        For a GPU they are drawn ahead, by other processes.
        """
        if device.type == "cpu":
            drawn = map(self.__getitem__, steps)
        else:
            workers = max(1, min(_GPU_WORKERS, (os.cpu_count() or 1) - 2))
            drawn = iter(
                DataLoader(self, None, sampler=steps, num_workers=workers, pin_memory=True)
            )
        return (image_tensor(pixels.to(device, non_blocking=True)) for pixels in drawn)


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def image_tensor(pixels: Tensor) -> Tensor:
    """uint8 (B,H,W,3) -> float32 (B,3,H,W) in [-1,1], where the pixels are."""
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return images.contiguous(memory_format=torch.channels_last)
