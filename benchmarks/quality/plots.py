"""Plots of measured settings: quality over rate, and the distortion-perception plane."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from benchmarks.quality.perceptual import OCTAVES
from benchmarks.quality.scores import Scores

__all__ = ["plot_plane", "plot_rate"]

# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*"
_AIM = (0.7, 1.3)
_DPI = 110

Result = dict[str, Any]


def plot_rate(scores: Sequence[Scores], path: Path) -> None:
    """PSNR, MS-SSIM and texture distance over bpp, and the spectral energy at the highest rate.

    One line per codec, step count and guidance; its points are the numbers of passes sent.
    """
    lines: dict[str, list[Result]] = {}
    ours = [one.setting for one in scores if one.setting.steps is not None]
    guided = len({setting.guidance for setting in ours}) > 1
    for one in scores:
        lines.setdefault(_name(one, guided), []).append(one.result())
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    panels = figure.subplots(1, 4)
    for (name, results), style in zip(lines.items(), _styles(len(lines)), strict=True):
        results.sort(key=lambda result: result["bpp"])
        rates = [result["bpp"] for result in results]
        if "steps" not in results[0]:
            style |= {"linestyle": "--", "markerfacecolor": "white"}
        for panel, key in zip(panels, ("psnr_db", "ms_ssim", "frechet"), strict=False):
            panel.plot(rates, [result[key] for result in results], label=name, **style)
        energies = [results[-1][f"energy_{octave}"] for octave in range(OCTAVES, 0, -1)]
        panels[3].plot(range(OCTAVES), energies, label=name, **style)
    titles = ("PSNR, dB", "MS-SSIM", "texture Fréchet distance (low is close)")
    widest = max(result["bpp"] for results in lines.values() for result in results)
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("bits per pixel, whole file")
        panel.set_xlim(0, 1.08 * widest)
        panel.margins(y=0.12)
        panel.grid(alpha=0.3)
    _energy_panel(panels[3])
    _log_axis(panels[2], [result["frechet"] for results in lines.values() for result in results])
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False
    )
    figure.savefig(path, dpi=_DPI)


def plot_plane(scores: Sequence[Scores], path: Path) -> None:
    """Texture distance and fine energy over PSNR: a line per guidance, a point per step count.

    Rivals, and files of fewer passes than the longest, are left out.
    """
    longest = max(one.setting.passes for one in scores)
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
    left.set_title("Perception: Fréchet distance of textures (lower: closer)", fontsize=10)
    right.set_title("Energy of the finest octave, output / original", fontsize=10)
    right.axhspan(*_AIM, color="0.9", zorder=0)
    for panel, key in ((left, "frechet"), (right, "energy_1")):
        _log_axis(panel, [result[key] for results in lines.values() for result in results])
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


def _energy_panel(panel: Axes) -> None:
    """Octaves from coarse to fine, with the aim shaded."""
    edges = [f"1/{2 ** (octave + 1)}" for octave in range(OCTAVES, 0, -1)]
    panel.axhspan(*_AIM, color="0.9", zorder=0)
    panel.axhline(1, color="0.5", linewidth=0.8)
    panel.set_xticks(range(OCTAVES), edges)
    panel.set_xlabel("start of the octave, cycles per pixel")
    panel.set_title("spectral energy, output / original", fontsize=10)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)


def _log_axis(panel: Axes, values: Sequence[float]) -> None:
    """Logarithmic y axis that holds the values, with plain numbers at round ones."""
    low, high = 0.85 * max(min(values), 1e-3), 1.2 * max(max(values), 1e-2)
    digits = (1, 2, 5) if high > 8 * low else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    panel.set_yscale("log")
    panel.set_ylim(low, high)
    ticks = [digit * 10.0**power for power in range(-4, 4) for digit in digits]
    panel.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
