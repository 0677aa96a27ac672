"""What is measured of one way to code a folder of photos, summed up a photo at a time."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.learned import MISSING, NAMES, Learned, set_distances
from benchmarks.quality.perceptual import OCTAVES, Moments, features, frechet, octave_energies
from percoedge.runtime.images.metrics import ms_ssim, psnr_db

__all__ = ["Originals", "Scores", "Setting", "labels", "table", "write_csv"]

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One way to code: a bundle's or rival's name, and the passes sent, steps and guidance.

    A rival has no steps, and ``passes`` names the file of ours whose size it was given.
    """

    codec: str
    passes: int
    steps: int | None = None
    guidance: float | None = None


class _Set:
    """Statistics of a set of photos that do not pair them with another."""

    def __init__(self, learned: Learned) -> None:
        self._learned = learned
        self.energies: list[Array] = []
        self.moments = Moments()
        self.inception: list[Array] = []

    def add(self, pixels: Pixels) -> None:
        self.energies.append(octave_energies(pixels))
        self.moments.add(features(pixels))
        if self._learned.inception is not None:
            self.inception.append(self._learned.inception(pixels))


class Originals(_Set):
    """The photos that were coded: their ``names``, their statistics, and the last one's pixels."""

    def __init__(self, learned: Learned) -> None:
        super().__init__(learned)
        self.learned = learned
        self.names: list[str] = []
        self.last: Pixels = np.empty((0, 0, 3), np.uint8)

    def add_photo(self, name: str, pixels: Pixels) -> None:
        """Take in the next photo; then ``Scores.add`` compares with it."""
        self.add(pixels)
        self.names.append(name)
        self.last = pixels


class Scores(_Set):
    """The outputs of one setting, in the order of the originals."""

    def __init__(self, setting: Setting, originals: Originals) -> None:
        super().__init__(originals.learned)
        self.setting = setting
        self.rows: list[dict[str, float]] = []
        self.over_budget = 0
        self._originals = originals

    def add_output(self, pixels: Pixels, size_bytes: int, *, fits: bool = True) -> dict[str, float]:
        """Take in what became of the originals' last photo; returns its row.

        ``fits``: whether a rival's file is as small as it should be.
        """
        self.over_budget += not fits
        original = self._originals.last
        self.add(pixels)
        row = {
            "bytes": size_bytes,
            "bpp": 8 * size_bytes / (original.shape[0] * original.shape[1]),
            "psnr_db": psnr_db(original, pixels),
            "ms_ssim": ms_ssim(original, pixels),
            **self._originals.learned.compare(original, pixels),
        }
        self.rows.append(row)
        return row

    @property
    def energy_ratios(self) -> Array:
        """Energy of each photo over its original's (n, OCTAVES); nan where that has none."""
        originals = np.array(self._originals.energies[: len(self.energies)])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios: Array = np.array(self.energies) / originals
        return np.where(originals > 0, ratios, np.nan)

    def result(self) -> dict[str, Any]:
        """Means over the photos, and the measures of the whole set; for JSON.

        ``energy_ratio`` is of the sums over all photos, finest octave first.
        """
        originals = self._originals
        setting = self.setting
        means = {key: float(np.mean([row[key] for row in self.rows])) for key in self.rows[0]}
        ratio = np.sum(self.energies, axis=0) / np.sum(originals.energies, axis=0)
        learned: dict[str, Any] = dict.fromkeys(NAMES, MISSING)
        if self.inception:
            learned.update(set_distances(originals.inception, self.inception))
        learned.update({key: means.pop(key) for key in originals.learned.pairs})
        settings = {"passes": setting.passes, "steps": setting.steps, "guidance": setting.guidance}
        return {
            "codec": setting.codec,
            **{key: value for key, value in settings.items() if value is not None},
            **({"photos_over_budget": self.over_budget} if setting.steps is None else {}),
            **means,
            "frechet": frechet(originals.moments, self.moments),
            **{f"energy_{octave + 1}": float(ratio[octave]) for octave in range(OCTAVES)},
            **learned,
        }


def labels(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Names for tables and plots: whatever differs between the settings is told."""
    several_passes = len({one.passes for one in settings}) > 1
    several_guidances = len({one.guidance for one in settings if one.steps}) > 1
    names = {}
    for one in settings:
        parts = [one.codec]
        if one.steps is not None:
            parts.append(f"{one.steps} step{'s' if one.steps > 1 else ''}")
        if several_guidances and one.guidance is not None:
            parts.append(f"guidance {one.guidance:g}")
        if several_passes:
            passes = f"{one.passes} pass{'es' if one.passes > 1 else ''}"
            parts.append(passes if one.steps is not None else f"size of {passes}")
        names[one] = ", ".join(parts)
    return names


def table(scores: Sequence[Scores]) -> str:
    """A Markdown table with aligned columns; learned metrics only where there are any."""
    names = labels([one.setting for one in scores])
    results = [one.result() for one in scores]
    found = [key for key in NAMES if any(result[key] != MISSING for result in results)]
    header = ["", "bytes", "bpp", "PSNR dB", "MS-SSIM", "Fréchet", "energy by octave"]
    rows = [[*header, *(NAMES[key] for key in found)]]
    for one, result in zip(scores, results, strict=True):
        energy = " ".join(f"{result[f'energy_{octave + 1}']:.2f}" for octave in range(OCTAVES))
        rows.append(
            [
                names[one.setting],
                f"{result['bytes']:.0f}",
                f"{result['bpp']:.4f}",
                f"{result['psnr_db']:.2f}",
                f"{result['ms_ssim']:.3f}",
                f"{result['frechet']:.2f}",
                energy,
                *(f"{result[key]:.4g}" for key in found),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]]]
    missing = [name for key, name in NAMES.items() if key not in found]
    if missing:
        lines += ["", f"{', '.join(missing)}: {MISSING}."]
    return "\n".join(lines)


def write_csv(path: Path, scores: Sequence[Scores], names: Sequence[str]) -> None:
    """Write one line of figures for each photo and setting."""
    keys = list(scores[0].rows[0])
    octaves = [f"energy_{octave + 1}" for octave in range(OCTAVES)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["photo", "codec", "passes", "steps", "guidance", *keys, *octaves])
        for one in scores:
            for name, row, ratios in zip(names, one.rows, one.energy_ratios, strict=True):
                figures = [f"{value:.6g}" for value in (*(row[key] for key in keys), *ratios)]
                writer.writerow([name, *astuple(one.setting), *figures])
