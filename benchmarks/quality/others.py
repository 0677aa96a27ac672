"""What another codec made of the same photos: a folder of decoded images and a table of bytes.

The folder holds, for every photo, one image of the same size and stem ("kodim01.png" for
"kodim01.jpg"), and a file `bytes.csv` with the columns file (an image's name) and bytes (of the
whole compressed file that it was decoded from):

    file,bytes
    kodim01.png,742
    kodim02.png,801
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from percoedge.errors import InputError
from percoedge.runtime.images import read_image

__all__ = ["SUFFIXES", "TABLE", "Other"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}
"""Of the files in a folder that are photos."""
TABLE = "bytes.csv"

Pixels = NDArray[np.uint8]


class Other:
    """The outputs of one codec, by ``name``, in ``folder``; images are read when asked for.

    Raises InputError at once where an image or a row of the table is missing for a photo, or is
    there twice.
    """

    def __init__(self, name: str, folder: Path, photos: Iterable[Path]) -> None:
        self.name = name
        sizes = _sizes(folder / TABLE)
        images: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES:
                images.setdefault(path.stem, []).append(path)
        self._outputs: dict[str, tuple[Path, int]] = {}
        for photo in photos:
            found = images.get(photo.stem, [])
            if len(found) != 1:
                raise InputError(
                    f"expected one image {photo.stem}.png (or .jpg, .webp, .avif) in {folder}, got "
                    f"{', '.join(path.name for path in found) or 'none'}; --also needs one for "
                    "each photo"
                )
            if found[0].name not in sizes:
                raise InputError(
                    f"expected a row for {found[0].name} in {folder / TABLE}, got none; say there "
                    "how many bytes it was decoded from"
                )
            self._outputs[photo.name] = found[0], sizes[found[0].name]

    def output(self, photo: str, original: Pixels) -> tuple[Pixels, int]:
        """Pixels of the image for a photo, by its file name, and the bytes it took.

        Raises InputError for another size than that of the original (H,W,3).
        """
        path, size_bytes = self._outputs[photo]
        pixels = read_image(path).pixels
        if pixels.shape != original.shape:
            raise InputError(
                f"expected {original.shape[1]}x{original.shape[0]} px, as {photo} has, got "
                f"{pixels.shape[1]}x{pixels.shape[0]} in {path}; crop or resize it"
            )
        return pixels, size_bytes


def _sizes(table: Path) -> dict[str, int]:
    """Bytes by the name of the image."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read {table}: {error}; write one with the columns file and bytes"
        ) from error
    sizes: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        name, text = row.get("file"), (row.get("bytes") or "").strip()
        if not name or not (text.isascii() and text.isdigit()) or int(text) < 1:
            raise InputError(
                f"expected the columns file and bytes (1 or more) in {table}, got {row} in line "
                f"{number}"
            )
        if name in sizes:
            raise InputError(f"expected one row for {name} in {table}, got two; remove one")
        sizes[name] = int(text)
    return sizes
