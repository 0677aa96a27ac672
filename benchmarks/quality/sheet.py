"""Pictures of photos and what became of them, with their figures.

The contact sheet of the benchmark has a row for each photo: original, ours and the best rivals. The
README's picture has a column for each: original above, decoded below, and its bytes:

    python -m benchmarks.quality.sheet PHOTO... --out docs/demo.jpg [--bundle tiny] [--steps N]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.quality.scores import Scores, Setting, labels, longest_passes
from percoedge import Codec
from percoedge.errors import PercoedgeError
from percoedge.runtime.images import read_image

__all__ = ["Picture", "draw_pairs", "draw_sheet", "evenly_spaced", "main", "sheet_settings"]

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
    """Columns: ours in full, the rivals of highest mean MS-SSIM at that size, other codecs."""
    longest = longest_passes(scores)
    full = [one for one in scores if one.setting.passes == longest]
    ours = [one.setting for one in full if one.setting.steps is not None]
    rivals = [one for one in full if one.setting.steps is None]
    rivals.sort(key=lambda one: -float(np.mean([row["ms_ssim"] for row in one.rows])))
    others = [one.setting for one in scores if one.setting.passes is None]
    return ours + [one.setting for one in rivals[:_RIVALS]] + others


def draw_sheet(
    rows: Sequence[tuple[Picture, Mapping[Setting, Picture]]],
    columns: Sequence[Setting],
    path: Path,
) -> None:
    """Write one row per photo: its original, then its pictures of the settings in ``columns``."""
    titles = ["original", *labels(columns).values()]
    strips = []
    for original, pictures in rows:
        strips.append(_strip(titles, [original, *(pictures[setting] for setting in columns)]))
    _save_stacked(strips, path)


def draw_pairs(pairs: Sequence[tuple[Picture, Picture]], path: Path) -> None:
    """Write one column per photo: its original, and below it what was decoded."""
    originals, decoded = zip(*pairs, strict=True)
    strips = [
        _strip(["original"] * len(pairs), originals),
        _strip(["decoded"] * len(pairs), decoded),
    ]
    _save_stacked(strips, path)


def _strip(titles: Sequence[str], row: Sequence[Picture]) -> Image.Image:
    """Pictures side by side, captions below."""
    font: Any = ImageFont.load_default(_FONT_PX)
    cells = []
    for picture in row:
        cell = Image.fromarray(picture.pixels)
        cell.thumbnail((_CELL_PX, _CELL_PX), Image.Resampling.LANCZOS)
        cells.append(cell)
    below = max(cell.height for cell in cells)
    width = len(row) * (_CELL_PX + _GAP_PX) - _GAP_PX
    strip = Image.new("RGB", (width, below + _CAPTION_PX + _GAP_PX), "white")
    draw = ImageDraw.Draw(strip)
    for index, (title, picture, cell) in enumerate(zip(titles, row, cells, strict=True)):
        left = index * (_CELL_PX + _GAP_PX)
        strip.paste(cell, (left, below - cell.height))
        draw.text((left + 2, below + 1), title + picture.note, "black", font)
        draw.text((left + 2, below + 19), picture.figures, "#444444", font)
    return strip


def _save_stacked(strips: Sequence[Image.Image], path: Path) -> None:
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    sheet.save(path, quality=90)  # which a PNG has not


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the README's picture."""
    parser = argparse.ArgumentParser(description="Photos, and below them what was decoded.")
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--steps", type=int, help="default: the bundle's")
    args = parser.parse_args(arguments)
    pairs = []
    try:
        with Codec.load(args.bundle) as codec:
            for photo in args.photos:
                pixels = read_image(photo).pixels
                height, width = pixels.shape[:2]
                data = codec.encode(pixels)
                decoded = np.asarray(codec.decode(data, steps=args.steps))
                original = Picture(pixels, f"{width}x{height} px")
                pairs.append((original, Picture(decoded, "", f" from {len(data)} bytes")))
    except PercoedgeError as error:
        parser.error(str(error))
    draw_pairs(pairs, args.out)


if __name__ == "__main__":
    main()
