"""Perceptual measures that need no download: spectral energy, and a Frechet distance of textures.

Both compare what a viewer notices first in a generative codec, whether there is as much detail as
in the original and of the same kind, without asking that each detail be in its place.

The distance's features are statistics of derivative filters, which steer to any direction
(Freeman and Adelson, "The design and use of steerable filters", 1991), in the manner of the texture
model of Portilla and Simoncelli, "A parametric texture model", 2000. They are fixed by these
lines, few enough (34) to be estimated from a few hundred patches where an Inception network's 2048
need ten thousand images, and each has a meaning. They see texture, edges, blocks and colour
casts, no objects: of learned metrics see learned.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "OCTAVES", "PATCH_PX", "Moments", "features", "frechet", "octave_energies"]

OCTAVES = 5
"""Octaves of spatial frequency, from 1/4..1/2 cycles per pixel (pixel to pixel) downwards."""
PATCH_PX = 64
"""Side of the squares whose statistics make one sample of the features."""
FEATURES = 34
_SCALES = 4
# One grey level squared: structure of less energy is hardly seen, and its logarithm must not swing
# the distance in skies.
_FLOOR = 1.0
# Smallest standard deviation to divide by: a feature that is constant in the originals (colour in
# grey photos) must not make the distance infinite. Most features are in octaves of energy.
_MIN_DEVIATION = 0.1
_HALF = np.float32(0.5**0.5)  # in energy

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]
Map = NDArray[np.float32]


def octave_energies(pixels: Pixels) -> Array:
    """Spectral energy (OCTAVES,) of a photo's luma under a Hann window, finest octave first.

    Octave k holds the frequencies r = max(|fx|, |fy|) of 2^-(k+2) < r <= 2^-(k+1) cycles per
    pixel: square bands, as those of a wavelet transform, so that the finest has the corners too.
    """
    luma = _colours(pixels)[0].astype(np.float64)
    height, width = luma.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    spectrum = np.fft.rfft2((luma - luma.mean()) * window)
    power = np.abs(spectrum) ** 2
    power[:, 1 : (width + 1) // 2] *= 2  # the half that a transform of real numbers leaves out
    radius = np.maximum(np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None])
    edges = [2.0 ** -(octave + 1) for octave in range(OCTAVES + 1)]
    bands = zip(edges, edges[1:], strict=False)
    return np.array([power[(radius <= high) & (radius > low)].sum() for high, low in bands])


def features(pixels: Pixels) -> Array:
    """Texture statistics (n, FEATURES) of the n whole patches of a photo uint8 (H,W,3).

    Of each patch: at four scales the logarithm of the luma's energy in four directions and of
    both chromas', and how sparse the luma's gradients are; between neighbouring scales how
    well the gradients' magnitudes agree, which tells edges from noise of the same spectrum; and
    the mean colour. Sides below PATCH_PX give n = 0.
    """
    height, width = (side // PATCH_PX * PATCH_PX for side in pixels.shape[:2])
    if not height or not width:
        return np.empty((0, FEATURES))
    planes = _colours(pixels[:height, :width])
    columns = [_pooled(plane, PATCH_PX) / 16 for plane in planes]  # 16 grey levels weigh an octave
    finer: Map | None = None
    for scale in range(_SCALES):
        side = PATCH_PX >> scale
        down, right = _gradients(planes[0])
        directions = (down, right, (down + right) * _HALF, (down - right) * _HALF)
        columns += [_octaves(_pooled(one**2, side)) for one in directions]
        magnitude = np.hypot(down, right)
        energy = _pooled(magnitude**2, side)
        columns.append(_octaves(energy) - _octaves(_pooled(magnitude, side) ** 2))
        for chroma in planes[1:]:
            down, right = _gradients(chroma)
            columns.append(_octaves(_pooled(down**2 + right**2, side)))
        if finer is not None:
            columns.append(_correlation(_halved(finer), magnitude, side))
        finer = magnitude
        planes = [_halved(plane) for plane in planes]
    return np.stack([column.ravel() for column in columns], axis=1)


class Moments:
    """Mean and covariance of feature vectors that come a photo at a time."""

    def __init__(self, size: int = FEATURES) -> None:
        self.count = 0
        self._sum = np.zeros(size)
        self._outer = np.zeros((size, size))

    def add(self, vectors: Array) -> None:
        """Take in vectors (n, size)."""
        self.count += len(vectors)
        self._sum += vectors.sum(axis=0)
        self._outer += vectors.T @ vectors

    @property
    def mean(self) -> Array:
        """Mean (size,)."""
        return self._sum / self.count

    @property
    def covariance(self) -> Array:
        """Covariance (size, size)."""
        return self._outer / self.count - np.outer(self.mean, self.mean)


def frechet(original: Moments, other: Moments, *, standardise: bool = True) -> float:
    """Squared Frechet distance of the Gaussians with these moments, at least 0.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), Dowson and Landau, 1982. With
    ``standardise`` each feature counts in units of its standard deviation over the originals.
    Distances compare only over the same originals: they depend on how many patches there are.
    """
    deviation = np.ones_like(original.mean)
    if standardise:
        deviation = np.maximum(np.sqrt(np.diag(original.covariance)), _MIN_DEVIATION)
    shift = (original.mean - other.mean) / deviation
    scale = np.outer(deviation, deviation)
    first, second = original.covariance / scale, other.covariance / scale
    root = _root(first)
    overlap = _root(root @ second @ root)
    distance = shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(overlap)
    return max(0.0, float(distance))


def _root(matrix: Array) -> Array:
    """Square root of a symmetric matrix without negative eigenvalues (up to rounding)."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def _colours(pixels: Pixels) -> list[Map]:
    """Luma and the two chromas of ITU-R BT.601, each float32 (H,W) in grey levels."""
    red, green, blue = np.moveaxis(pixels.astype(np.float32), 2, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return [luma, (blue - luma) * np.float32(0.564), (red - luma) * np.float32(0.713)]


def _gradients(plane: Map) -> tuple[Map, Map]:
    """Derivatives down and to the right (H,W) at the corners between 2x2 pixels, edges repeated."""
    padded = np.pad(plane, ((0, 1), (0, 1)), mode="edge")
    down = padded[1:] - padded[:-1]
    right = padded[:, 1:] - padded[:, :-1]
    half = np.float32(0.5)
    return (down[:, 1:] + down[:, :-1]) * half, (right[1:] + right[:-1]) * half


def _halved(plane: Map) -> Map:
    """Every other sample (H/2,W/2) under binomial weights 1, 3, 3, 1 a side; even sides."""
    for _ in range(2):
        rows = np.pad(plane, ((1, 1), (0, 0)), mode="edge")
        sums: Map = rows[:-3:2] + rows[3::2] + np.float32(3) * (rows[1:-2:2] + rows[2:-1:2])
        plane = (sums * np.float32(0.125)).T
    return plane


def _pooled(plane: Map, side: int) -> Array:
    """Mean (H/side,W/side) over squares."""
    height, width = plane.shape
    squares = plane.reshape(height // side, side, width // side, side)
    means: Array = squares.mean(axis=(1, 3), dtype=np.float64)
    return means


def _octaves(energy: Array) -> Array:
    return np.log2(energy + _FLOOR)


def _correlation(a: Map, b: Map, side: int) -> Array:
    """Correlation of two maps within squares; 0 where one of them is flat."""
    mean_a, mean_b = _pooled(a, side), _pooled(b, side)
    covariance = _pooled(a * b, side) - mean_a * mean_b
    spread = (_pooled(a * a, side) - mean_a**2) * (_pooled(b * b, side) - mean_b**2)
    correlation: Array = covariance / np.sqrt(np.maximum(spread, _FLOOR**2))
    return correlation
