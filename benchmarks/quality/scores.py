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
from benchmarks.quality.lite2 import feature_distance, position_features
from benchmarks.quality.perceptual import OCTAVES, Moments, frechet, octave_energies
from percoedge.runtime.images.metrics import ms_ssim, psnr_db

__all__ = [
    "Originals",
    "Scores",
    "Setting",
    "labels",
    "longest_passes",
    "table",
    "wins",
    "write_csv",
]

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One way to code: a bundle's or rival's name, and the passes sent, steps and guidance.

    A rival has no steps, and ``passes`` names the file of ours whose size it was given; it is None
    for a codec with files of its own.
    """

    codec: str
    passes: int | None
    steps: int | None = None
    guidance: float | None = None


class _Set:
    """Statistics of a set of photos that do not pair them with another."""

    def __init__(self, learned: Learned) -> None:
        self._learned = learned
        self.energies: list[Array] = []
        self.moments: Moments | None = None
        self.inception: list[Array] = []
        self.maps: list[NDArray[np.float32]] = []  # of the last photo alone: they are large

    def add(self, pixels: Pixels) -> None:
        self.energies.append(octave_energies(pixels))
        if self._learned.lite2 is not None:
            self.maps = self._learned.lite2.maps(pixels)
            vectors = position_features(self.maps)
            self.moments = self.moments or Moments(vectors.shape[1])
            self.moments.add(vectors)
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
        }
        if self.maps:
            row["feature_distance"] = feature_distance(self._originals.maps, self.maps)
        row |= {
            **self._originals.learned.compare(original, pixels),
            "psnr_db": psnr_db(original, pixels),
            "ms_ssim": ms_ssim(original, pixels),
        }
        self.maps = []
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
        if self.moments and originals.moments:
            learned["frechet"] = frechet(originals.moments, self.moments)
        if self.inception:
            learned.update(set_distances(originals.inception, self.inception))
        learned.update({key: means.pop(key) for key in NAMES if key in means})
        settings = {"passes": setting.passes, "steps": setting.steps, "guidance": setting.guidance}
        return {
            "codec": setting.codec,
            **{key: value for key, value in settings.items() if value is not None},
            **({"photos_over_budget": self.over_budget} if setting.steps is None else {}),
            "bytes": means.pop("bytes"),
            "bpp": means.pop("bpp"),
            **learned,
            **means,
            **{f"energy_{octave + 1}": float(ratio[octave]) for octave in range(OCTAVES)},
        }


def wins(scores: Sequence[Scores], rivals: Sequence[str]) -> dict[Setting, int]:
    """For each setting of ours, on how many photos it beats all of the rivals at its bytes.

    Beats: its feature distance is lower. A rival whose smallest file is larger counts with that.
    Empty where no feature distance was measured or none of the rivals.
    """

    def distances(one: Scores) -> Array:
        return np.array([row["feature_distance"] for row in one.rows])

    found = {}
    for one in scores:
        setting = one.setting
        beside = [
            other
            for other in scores
            if other.setting.codec in rivals and other.setting.passes == setting.passes
        ]
        if setting.steps is not None and beside and "feature_distance" in one.rows[0]:
            best = np.min([distances(other) for other in beside], axis=0)
            found[setting] = int((distances(one) < best).sum())
    return found


def longest_passes(scores: Sequence[Scores]) -> int:
    """Passes of the longest of our files."""
    return max(one.setting.passes for one in scores if one.setting.passes is not None)


def labels(settings: Sequence[Setting]) -> dict[Setting, str]:
    """Names for tables and plots: whatever differs between the settings is named."""
    several_passes = len({one.passes for one in settings if one.passes is not None}) > 1
    several_guidances = len({one.guidance for one in settings if one.steps}) > 1
    names = {}
    for one in settings:
        parts = [one.codec]
        if one.steps is not None:
            parts.append(f"{one.steps} step{'s' if one.steps > 1 else ''}")
        if several_guidances and one.guidance is not None:
            parts.append(f"guidance {one.guidance:g}")
        if several_passes and one.passes is not None:
            passes = f"{one.passes} pass{'es' if one.passes > 1 else ''}"
            parts.append(passes if one.steps is not None else f"size of {passes}")
        names[one] = ", ".join(parts)
    return names


def table(scores: Sequence[Scores]) -> str:
    """A Markdown table with aligned columns, learned measures first, only those there are."""
    names = labels([one.setting for one in scores])
    results = [one.result() for one in scores]
    found = [key for key in NAMES if any(result[key] != MISSING for result in results)]
    titles = [NAMES[key] for key in found]
    rows = [["", "bytes", "bpp", *titles, "PSNR dB", "MS-SSIM", "energy by octave"]]
    for one, result in zip(scores, results, strict=True):
        energy = " ".join(f"{result[f'energy_{octave + 1}']:.2f}" for octave in range(OCTAVES))
        rows.append(
            [
                names[one.setting],
                f"{result['bytes']:.0f}",
                f"{result['bpp']:.4f}",
                *(f"{result[key]:.4g}" for key in found),
                f"{result['psnr_db']:.2f}",
                f"{result['ms_ssim']:.3f}",
                energy,
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
