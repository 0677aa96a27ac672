"""PSNR and MS-SSIM of two photos, without a framework."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.errors import UsageError

__all__ = ["ms_ssim", "psnr_db"]

Pixels = NDArray[np.uint8]
# Weights of the five scales, Wang et al., "Multi-scale structural similarity", 2003.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_WINDOW = 11
_SIGMA = 1.5


def psnr_db(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape; infinite if equal."""
    _check_shapes(a, b)
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def ms_ssim(a: Pixels, b: Pixels) -> float:
    """Multi-scale structural similarity of two uint8 photos (H,W,3), mean over channels.

    Five scales, Gaussian window of 11 (sigma 1.5), valid region only. Photos with a side below 176
    use as many scales as fit, their weights renormalised. Raises UsageError below 11 pixels.
    """
    _check_shapes(a, b)
    if a.ndim != 3:
        raise UsageError(f"expected photos of shape (H, W, 3) for MS-SSIM, got {a.shape}")
    side = min(a.shape[:2])
    if side < _WINDOW:
        raise UsageError(f"expected sides of at least {_WINDOW} px for MS-SSIM, got {side}")
    scales = min(len(_SCALE_WEIGHTS), int(np.log2(side / _WINDOW)) + 1)
    weights = np.array(_SCALE_WEIGHTS[:scales]) / sum(_SCALE_WEIGHTS[:scales])
    x, y = a.astype(np.float32), b.astype(np.float32)
    result = np.ones(a.shape[2])
    for scale in range(scales):
        luminance, contrast = _ssim_parts(x, y)
        last = scale == scales - 1
        value = (luminance * contrast if last else contrast).mean(axis=(0, 1))
        result *= np.maximum(value, 0) ** weights[scale]
        x, y = _halved(x), _halved(y)
    return float(result.mean())


def _ssim_parts(
    x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Luminance and contrast-structure maps of one scale."""
    c1, c2 = np.float32((0.01 * 255) ** 2), np.float32((0.03 * 255) ** 2)
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x = _blurred(x * x) - mean_x**2
    var_y = _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (var_x + var_y + c2)


def _blurred(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Separable Gaussian over the valid region of (H,W,C)."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    gauss = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    taps = (gauss / gauss.sum()).astype(np.float32)
    for axis in (0, 1):
        length = x.shape[axis] - _WINDOW + 1
        rows = x.swapaxes(0, axis)
        blurred = rows[:length] * taps[0]
        for i in range(1, _WINDOW):  # no more than two copies of a photo at a time
            blurred += rows[i : i + length] * taps[i]
        x = blurred.swapaxes(0, axis)
    return x


def _halved(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over 2x2 blocks; an odd last row or column is dropped."""
    height, width = (side // 2 * 2 for side in x.shape[:2])
    blocks = x[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    result: NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return result


def _check_shapes(a: Pixels, b: Pixels) -> None:
    if a.shape != b.shape:
        raise UsageError(f"expected two photos of one size, got {a.shape} and {b.shape}")
