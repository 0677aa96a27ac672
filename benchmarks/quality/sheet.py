"""A contact sheet: original, ours and the best rivals side by side, with their figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.quality.scores import Scores, Setting, labels

__all__ = ["Picture", "draw_sheet", "evenly_spaced", "sheet_settings"]

_CELL_PX = 400
_GAP_PX = 6
_CAPTION_PX = 38
_FONT_PX = 15
_RIVALS = 2

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """What one setting made of one photo; ``note`` follows the setting's name in the caption."""

    pixels: Pixels
    figures: str
    note: str = ""


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` indices of ``count`` photos, so that nobody picks the good ones."""
    shown = min(count, wanted)
    return [index * count // shown for index in range(shown)]


def sheet_settings(scores: Sequence[Scores]) -> list[Setting]:
    """Columns: ours in full, in order, then the rivals of highest mean MS-SSIM at that size."""
    longest = max(one.setting.passes for one in scores)
    full = [one for one in scores if one.setting.passes == longest]
    ours = [one.setting for one in full if one.setting.steps is not None]
    rivals = [one for one in full if one.setting.steps is None]
    rivals.sort(key=lambda one: -float(np.mean([row["ms_ssim"] for row in one.rows])))
    return ours + [one.setting for one in rivals[:_RIVALS]]


def draw_sheet(
    rows: Sequence[tuple[Picture, Mapping[Setting, Picture]]],
    columns: Sequence[Setting],
    path: Path,
) -> None:
    """Write one row per photo: its original, then its pictures of the settings in ``columns``."""
    width = (1 + len(columns)) * (_CELL_PX + _GAP_PX) - _GAP_PX
    titles = ["original", *labels(columns).values()]
    strips = []
    for original, pictures in rows:
        row = [original, *(pictures[setting] for setting in columns)]
        strips.append(_strip(titles, row, width))
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(path, quality=90)  # which a PNG has not


def _strip(titles: Sequence[str], row: Sequence[Picture], width: int) -> Image.Image:
    """Pictures of one photo side by side, captions below."""
    height, cell = row[0].pixels.shape[0], row[0].pixels.shape[1]
    scale = min(1.0, _CELL_PX / max(height, cell))
    size = max(1, round(cell * scale)), max(1, round(height * scale))
    strip = Image.new("RGB", (width, size[1] + _CAPTION_PX + _GAP_PX), "white")
    draw = ImageDraw.Draw(strip)
    font: Any = ImageFont.load_default(_FONT_PX)
    for index, (title, picture) in enumerate(zip(titles, row, strict=True)):
        left = index * (_CELL_PX + _GAP_PX)
        strip.paste(
            Image.fromarray(picture.pixels).resize(size, Image.Resampling.LANCZOS), (left, 0)
        )
        draw.text((left + 2, size[1] + 1), title + picture.note, "black", font)
        draw.text((left + 2, size[1] + 19), picture.figures, "#444444", font)
    return strip
