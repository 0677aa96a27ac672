"""Crops that photos do not hold enough of: flat colours, gradients, stripes, checkers, text.

A codec that has only seen photos gives flat green as grey green and fine stripes as purple.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]


def synthetic_crop(rng: np.random.Generator, size: int) -> Pixels:
    """One crop uint8 (size,size,3) of a kind drawn at random."""
    kinds: list[Callable[[np.random.Generator, int], Pixels]] = [_patches, _stripes, _text]
    if rng.random() < 0.6:
        return _flat(rng, size)
    return kinds[rng.integers(len(kinds))](rng, size)


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """A corner of the cube, a grey, or any colour: float64 (3,) in 0..255."""
    draw = rng.random()
    if draw < 0.5:
        return 255.0 * rng.integers(0, 2, 3).astype(np.float64)
    if draw < 0.65:
        return np.full(3, rng.uniform(0, 255))
    anything: NDArray[np.float64] = rng.uniform(0, 255, 3)
    return anything


def _flat(rng: np.random.Generator, size: int) -> Pixels:
    """One colour, or a linear gradient between two in any direction."""
    first, second = _colour(rng), _colour(rng)
    if rng.random() < 0.6:
        second = first
    return _blend(first, second, np.clip(_ramp(rng, size), 0, 1))


def _patches(rng: np.random.Generator, size: int) -> Pixels:
    """Rectangles of flat colours over a flat ground: hard edges between saturated colours."""
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[:] = _colour(rng).astype(np.uint8)
    for _ in range(int(rng.integers(1, 6))):
        top, left = rng.integers(0, size, 2)
        height, width = rng.integers(size // 16, size, 2)
        pixels[top : top + height, left : left + width] = _colour(rng).astype(np.uint8)
    return pixels


def _stripes(rng: np.random.Generator, size: int) -> Pixels:
    """Stripes or a checker of 1 to 8 pixels, upright or turned, black and white or coloured."""
    first, second = _colour(rng), _colour(rng)
    if rng.random() < 0.4:
        first, second = np.zeros(3), np.full(3, 255.0)
    width = 2.0 ** rng.uniform(0, 3)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    if rng.random() < 0.5:
        width = max(1.0, np.round(width))
        angle = rng.choice([0.0, np.pi / 2])
    else:
        angle = rng.uniform(0, np.pi)
    across = np.floor((x * np.cos(angle) + y * np.sin(angle)) / width + 1e-6)
    if rng.random() < 0.3:
        across = across + np.floor((y * np.cos(angle) - x * np.sin(angle)) / width + 1e-6)
    return _blend(first, second, across % 2)


def _text(rng: np.random.Generator, size: int) -> Pixels:
    """Lines of random words in one colour on another."""
    colours = [tuple(int(value) for value in _colour(rng)) for _ in range(2)]
    if rng.random() < 0.5:
        colours = [(255, 255, 255), (0, 0, 0)]
    image = Image.new("RGB", (size, size), colours[0])
    draw = ImageDraw.Draw(image)
    height = float(rng.integers(10, 49))
    font = ImageFont.load_default(height)
    letters = list(string.ascii_letters + string.digits + "      ")
    top = float(rng.uniform(-height, height))
    while top < size:
        line = "".join(rng.choice(letters, 48))
        draw.text((float(rng.uniform(-height, height)), top), line, fill=colours[1], font=font)
        top += 1.3 * height
    return np.asarray(image)


def _ramp(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Float64 (size,size), from about 0 to about 1 in a direction drawn at random."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    ramp: NDArray[np.float64] = 0.5 + (x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(0.7, 2)
    return ramp


def _blend(
    first: NDArray[np.float64], second: NDArray[np.float64], share: NDArray[np.float64]
) -> Pixels:
    """(size,size) shares of the second colour -> uint8 (size,size,3)."""
    mixed = first + share[..., None] * (second - first)
    pixels: Pixels = np.round(mixed).astype(np.uint8)
    return pixels
