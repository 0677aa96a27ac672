"""Measures of detail and likeness that need numpy alone: spectral energy, and Frechet's distance.

Neither asks that each detail be in its place. The energy says how much detail there is; the
distance compares the distribution of whatever features a network gives (see lite2.py, learned.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["OCTAVES", "Moments", "frechet", "octave_energies"]

OCTAVES = 5
"""Octaves of spatial frequency, from 1/4..1/2 cycles per pixel (pixel to pixel) downwards."""

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]


def octave_energies(pixels: Pixels) -> Array:
    """Spectral energy (OCTAVES,) of a photo's luma under a Hann window, finest octave first.

    Octave k holds the frequencies r = max(|fx|, |fy|) of 2^-(k+2) < r <= 2^-(k+1) cycles per
    pixel: square bands, as those of a wavelet transform, so that the finest has the corners too.
    """
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    luma = (pixels.astype(np.float32) @ weights).astype(np.float64)
    height, width = luma.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    spectrum = np.fft.rfft2((luma - luma.mean()) * window)
    power = np.abs(spectrum) ** 2
    power[:, 1 : (width + 1) // 2] *= 2  # the half that a transform of real numbers leaves out
    radius = np.maximum(np.abs(np.fft.fftfreq(height))[:, None], np.fft.rfftfreq(width)[None])
    edges = [2.0 ** -(octave + 1) for octave in range(OCTAVES + 1)]
    bands = zip(edges, edges[1:], strict=False)
    return np.array([power[(radius <= high) & (radius > low)].sum() for high, low in bands])


class Moments:
    """Mean and covariance of feature vectors that come a photo at a time."""

    def __init__(self, size: int) -> None:
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
        """Unbiased covariance (size, size), of two vectors or more."""
        centred = self._outer - np.outer(self._sum, self._sum) / self.count
        covariance: Array = centred / (self.count - 1)
        return covariance


def frechet(original: Moments, other: Moments) -> float:
    """Squared Frechet distance of the Gaussians with these moments, at least 0.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), Dowson and Landau, 1982. Distances compare
    only over the same originals: they depend on how many vectors there are.
    """
    shift = original.mean - other.mean
    first, second = original.covariance, other.covariance
    root = _root(first)
    overlap = _root(root @ second @ root)
    distance = shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(overlap)
    return max(0.0, float(distance))


def _root(matrix: Array) -> Array:
    """Square root of a symmetric matrix without negative eigenvalues (up to rounding)."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
