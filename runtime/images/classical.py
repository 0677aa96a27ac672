"""Classical codecs at the size of a given file: JPEG, WebP, AVIF, and others that Pillow has.

At a kilobyte a photo none of them is at its best at full size, so each may shrink the photo to 1/2,
1/4 or 1/8 a side first (Lanczos) and enlarge what was decoded (bicubic or Lanczos); of all this
the best by MS-SSIM counts. Sizes are those of whole files, as they would be stored, without colour
profile or metadata.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percoedge.runtime.images.metrics import ms_ssim

__all__ = ["CLASSICAL", "Attempt", "PhotoRival", "Rival"]

_SHRINKS = (1, 2, 4, 8)
_ENLARGERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Rival:
    """A codec of Pillow: its format, its range of quality from 0 on, and its other settings."""

    name: str
    format: str
    top_quality: int
    options: Mapping[str, Any] = field(default_factory=dict)


CLASSICAL = (
    Rival("JPEG", "JPEG", 95, {"optimize": True}),
    Rival("WebP", "WEBP", 100, {"method": 6}),
    # Slower settings gain .005 (speed 2) of MS-SSIM at a kilobyte, for 4 times the time.
    Rival("AVIF", "AVIF", 100, {"speed": 4}),
)
"""Those that Pillow's wheels hold."""


@dataclass(frozen=True)
class Attempt:
    """The best that a rival gives under a budget, or the smallest that it has where none fits."""

    size_bytes: int
    pixels: Pixels
    shrink: int
    quality: int
    fits: bool


class PhotoRival:
    """One rival on one photo uint8 (H,W,3); files are kept, so that more budgets cost little."""

    def __init__(self, rival: Rival, pixels: Pixels) -> None:
        self.name = rival.name
        self._rival = rival
        self._pixels = pixels
        height, width = pixels.shape[:2]
        photo = Image.fromarray(pixels)
        self._small = {
            shrink: photo.resize(
                (-(-width // shrink), -(-height // shrink)), Image.Resampling.LANCZOS
            )
            for shrink in _SHRINKS
        }
        self._files: dict[tuple[int, int], bytes] = {}

    def best(self, budget_bytes: int) -> Attempt:
        """The attempt of highest MS-SSIM whose file has at most so many bytes.

        Each size takes the highest quality that fits. Where none does, the smallest file is taken.
        """
        fitting = [
            (shrink, quality)
            for shrink in _SHRINKS
            if (quality := self._highest_quality(shrink, budget_bytes)) is not None
        ]
        chosen = fitting or [min(((s, 0) for s in _SHRINKS), key=lambda key: len(self._file(*key)))]
        outputs = [(key, output) for key in chosen for output in self._outputs(*key)]
        (shrink, quality), pixels = max(outputs, key=lambda one: ms_ssim(self._pixels, one[1]))
        return Attempt(
            len(self._file(shrink, quality)), pixels, shrink, quality, fits=bool(fitting)
        )

    def _highest_quality(self, shrink: int, budget_bytes: int) -> int | None:
        """By bisection: sizes grow with quality, up to a few bytes."""
        if len(self._file(shrink, 0)) > budget_bytes:
            return None
        low, high = 0, self._rival.top_quality
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._file(shrink, middle)) <= budget_bytes:
                low = middle
            else:
                high = middle - 1
        return low

    def _file(self, shrink: int, quality: int) -> bytes:
        key = shrink, quality
        if key not in self._files:
            buffer = io.BytesIO()
            options = {"quality": quality, **self._rival.options}
            self._small[shrink].save(buffer, self._rival.format, **options)
            self._files[key] = buffer.getvalue()
        return self._files[key]

    def _outputs(self, shrink: int, quality: int) -> list[Pixels]:
        """The decoded file at the photo's size, by each of the enlargers."""
        with Image.open(io.BytesIO(self._file(shrink, quality))) as image:
            decoded = image.convert("RGB")
        if shrink == 1:
            return [np.asarray(decoded)]
        height, width = self._pixels.shape[:2]
        return [np.asarray(decoded.resize((width, height), enlarger)) for enlarger in _ENLARGERS]
