"""Losses and measures on images in [-1,1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights of the five scales, Wang et al., "Multi-scale structural similarity", 2003.
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _blurred(stack: Tensor) -> Tensor:
    """Separable Gaussian (11 taps, sigma 1.5) over the valid region of (B,C,H,W)."""
    channels = stack.shape[1]
    x = torch.arange(11, dtype=torch.float32, device=stack.device) - 5
    taps = torch.exp(-(x**2) / (2 * 1.5**2))
    taps = (taps / taps.sum()).expand(channels, 1, 11)
    rows = F.conv2d(stack, taps[..., :, None].contiguous(), groups=channels)
    return F.conv2d(rows, taps[..., None, :].contiguous(), groups=channels)


def ms_ssim(a: Tensor, b: Tensor, scales: int = 5) -> Tensor:
    """Multi-scale SSIM (scalar) of two (B,3,H,W) float32 images in [-1,1].

    The sides must be at least ``11 * 2 ** (scales - 1)``; fewer scales renormalise the weights.
    """
    whole = sum(_SCALE_WEIGHTS[:scales])
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    result = torch.ones((), device=a.device)
    for scale in range(scales):
        stack = torch.cat([a, b, a * a, b * b, a * b])
        mean_a, mean_b, aa, bb, ab = _blurred(stack).chunk(5)
        contrast = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
        if scale == scales - 1:
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            contrast = luminance * contrast
        else:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        result = result * contrast.mean().clamp_min(1e-4) ** (_SCALE_WEIGHTS[scale] / whole)
    return result


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Mean PSNR in dB of (B,3,H,W) images in [-1,1], after clipping."""
    error = ((a.clamp(-1, 1) - b.clamp(-1, 1)) ** 2).mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error.clamp_min(1e-10))).mean()


def pixel_loss(
    output: Tensor,
    target: Tensor,
    ssim_weight: float,
    square_weight: float = 0.0,
    scales: int = 3,
) -> Tensor:
    """Absolute error, the same of colours averaged over 16x16, and a weighted (1 - MS-SSIM).

    ``square_weight`` adds the squared error, which is what PSNR measures. ``scales``: of MS-SSIM.
    """
    tint = F.l1_loss(F.avg_pool2d(output, 16), F.avg_pool2d(target, 16))
    structure = 1 - ms_ssim(output, target, scales=scales)
    loss = F.l1_loss(output, target) + tint + ssim_weight * structure
    if square_weight:
        loss = loss + square_weight * F.mse_loss(output, target)
    return loss
