"""Plots of measured settings: quality over bytes, and the distortion-perception plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.quality.learned import MISSING
from benchmarks.quality.scores import Scores, longest_passes

__all__ = ["plot_plane", "plot_rate"]

# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*"
_AIM = (0.7, 1.3)
_DPI = 110

Result = dict[str, Any]


def plot_rate(scores: Sequence[Scores], path: Path) -> None:
    """Feature distance, PSNR and MS-SSIM over the bytes of a photo, those that were measured.

    One line per codec, step count and guidance; its points are the numbers of passes sent. A rival
    has points only where all its files are as small as ours; for what it cannot reach it has none.
    """
    lines: dict[str, list[Result]] = {}
    ours = [one.setting for one in scores if one.setting.steps is not None]
    guided = len({setting.guidance for setting in ours}) > 1
    for one in scores:
        if not one.over_budget:
            lines.setdefault(_name(one, guided), []).append(one.result())
    results = [result for line in lines.values() for result in line]
    titles = {
        "feature_distance": "feature distance, EfficientNet-Lite2 (low is close)",
        "psnr_db": "PSNR, dB",
        "ms_ssim": "MS-SSIM",
    }
    keys = [key for key in titles if all(result[key] != MISSING for result in results)]
    figure = Figure(figsize=(4.6 * len(keys), 4.4), layout="constrained")
    panels = figure.subplots(1, len(keys))
    for (name, line), style in zip(lines.items(), _styles(len(lines)), strict=True):
        line.sort(key=lambda result: result["bytes"])
        if "steps" not in line[0]:
            style |= {"linestyle": "--", "markerfacecolor": "white"}
        for panel, key in zip(panels, keys, strict=True):
            x = [result["bytes"] for result in line]
            panel.plot(x, [result[key] for result in line], label=name, **style)
    low, high = (choose(result["bytes"] for result in results) for choose in (min, max))
    for panel, key in zip(panels, keys, strict=True):
        panel.set_title(titles[key], fontsize=10)
        panel.set_xlabel("bytes of a photo, whole file (mean)")
        _log_axis(panel, "x", 0.85 * low, 1.18 * high)
        panel.margins(y=0.08)
        panel.grid(alpha=0.3)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False
    )
    figure.savefig(path, dpi=_DPI)


def plot_plane(scores: Sequence[Scores], path: Path) -> None:
    """Frechet distance and fine energy over PSNR: a line per guidance, a point per step count.

    Rivals, and files of fewer passes than the longest, are left out.
    """
    longest = longest_passes(scores)
    lines: dict[float, list[Result]] = {}
    for one in scores:
        setting = one.setting
        if setting.steps is not None and setting.passes == longest:
            lines.setdefault(setting.guidance or 1.0, []).append(one.result())
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (guidance, results), style in zip(lines.items(), _styles(len(lines)), strict=True):
        results.sort(key=lambda result: result["steps"])
        psnr = [result["psnr_db"] for result in results]
        name = "no guidance" if guidance == 1 else f"guidance {guidance:g}"
        for panel, values in (
            (left, [result["frechet"] for result in results]),
            (right, [result["energy_1"] for result in results]),
        ):
            panel.plot(psnr, values, label=name, **style)
            for index, (x, y) in enumerate(zip(psnr, values, strict=True)):
                panel.annotate(
                    str(results[index]["steps"]),
                    (x, y),
                    ((6, 5), (-12, -11), (6, -11), (-12, 5))[index % 4],  # points may lie together
                    textcoords="offset points",
                    fontsize=9,
                    color=style["color"],
                    path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )
    left.set_title("Perception: Fréchet distance of features (lower: closer)", fontsize=10)
    right.set_title("Energy of the finest octave, output / original", fontsize=10)
    right.axhspan(*_AIM, color="0.9", zorder=0)
    for panel, key in ((left, "frechet"), (right, "energy_1")):
        values = [result[key] for results in lines.values() for result in results]
        _log_axis(panel, "y", 0.85 * max(min(values), 1e-3), 1.2 * max(max(values), 1e-2))
        panel.set_xlabel("distortion: PSNR, dB (numbers at the points: steps)")
        panel.grid(alpha=0.3)
    if len(lines) > 1:
        left.legend(frameon=False)
    figure.savefig(path, dpi=_DPI)


def _name(one: Scores, guided: bool) -> str:
    setting = one.setting
    if setting.steps is None:
        return setting.codec
    name = f"{setting.codec}, {setting.steps} step{'s' if setting.steps > 1 else ''}"
    return f"{name}, guidance {setting.guidance:g}" if guided else name


def _styles(count: int) -> list[dict[str, Any]]:
    return [
        {
            "color": _COLOURS[index % len(_COLOURS)],
            "marker": _MARKERS[index % len(_MARKERS)],
            "markersize": 5,
            "linewidth": 1.4,
        }
        for index in range(count)
    ]


def _log_axis(panel: Axes, way: str, low: float, high: float) -> None:
    """A logarithmic axis, "x" or "y", from low to high, with plain numbers at round ones."""
    digits = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    panel.set(**{f"{way}scale": "log", f"{way}lim": (low, high)})
    axis = getattr(panel, f"{way}axis")
    ticks = [digit * 10.0**power for power in range(-4, 7) for digit in digits]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
