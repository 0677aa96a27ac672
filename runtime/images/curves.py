"""From the colours of a display to sRGB: transfer curves, primaries, and the way between.

Pixels become linear light relative to the white of a standard display, go through a matrix from
their primaries to sRGB's, and are encoded with sRGB's curve (IEC 61966-2-1). What is outside sRGB,
or brighter than its white, is clipped. Code points are those of ITU-T H.273.

Light of PQ and HLG is divided by 203 cd/m2, the reference white of ITU-R BT.2408, HLG being shown
at a peak of 1,000 cd/m2. The curves of video cameras (BT.709, BT.601, BT.2020) are taken as sRGB's:
their pictures are judged on displays, whose curve is not the inverse of the camera's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ADOBE_RGB",
    "PRIMARIES",
    "TRANSFERS",
    "Display",
    "gamma_curve",
    "srgb_curve",
    "srgb_from_display",
]

Floats = NDArray[np.float64]
Chromaticities = tuple[float, ...]

REFERENCE_WHITE = 203.0  # cd/m2, ITU-R BT.2408-7, table 1
_HLG_PEAK, _HLG_GAMMA = 1000.0, 1.2  # ITU-R BT.2100-2, table 5
_BLOCK_PIXELS = 1 << 18

_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
PRIMARIES: dict[int, Chromaticities] = {  # x and y of red, green, blue and white
    1: (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *_D65),  # BT.709 and sRGB
    4: (0.670, 0.330, 0.210, 0.710, 0.140, 0.080, *_C),  # BT.470 M
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *_D65),  # BT.470 B/G
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),  # BT.601
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),  # SMPTE 240M
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, *_C),  # film
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),  # BT.2020 and BT.2100
    10: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1 / 3, 1 / 3),  # CIE 1931 XYZ
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),  # DCI P3
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),  # Display P3
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *_D65),  # EBU 3213
}
_BRADFORD = np.array(  # as in ICC.1, annex E
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


@dataclass(frozen=True)
class Display:
    """The colours of pixels: what their values mean in light.

    curve: light of the 256 values, 1 for the white of a standard display. primaries: x and y of
    red, green, blue and white. hlg: `curve` is light of the scene; a display makes its own of it.
    """

    curve: Floats
    primaries: Chromaticities = PRIMARIES[1]
    hlg: bool = False


def srgb_curve(values: Floats) -> Floats:
    """Light 0..1 of sRGB's values 0..1 (IEC 61966-2-1)."""
    bright = ((np.maximum(values, 0) + 0.055) / 1.055) ** 2.4
    result: Floats = np.where(values <= 0.04045, values / 12.92, bright)
    return result


def gamma_curve(values: Floats, gamma: float) -> Floats:
    """Light 0..1 of values 0..1 on a display of that gamma."""
    result: Floats = np.maximum(values, 0) ** gamma
    return result


def _pq_curve(values: Floats) -> Floats:
    """Light of PQ values 0..1, 1 for the reference white (ITU-R BT.2100-2, table 4)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = np.maximum(values, 0) ** (1 / m2)
    light: Floats = (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return light * (10_000 / REFERENCE_WHITE)


def _hlg_scene(values: Floats) -> Floats:
    """Light 0..1 of the scene of HLG values 0..1 (ITU-R BT.2100-2, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    values = np.maximum(values, 0)
    result: Floats = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    return result


TRANSFERS = {  # by code points; those left out have no agreed light
    **dict.fromkeys((1, 2, 6, 7, 13, 14, 15), srgb_curve),
    4: lambda values: gamma_curve(values, 2.2),
    5: lambda values: gamma_curve(values, 2.8),
    8: lambda values: gamma_curve(values, 1.0),
    16: _pq_curve,
    17: lambda values: 52.37 / 48 * gamma_curve(values, 2.6),  # SMPTE ST 428-1
    18: _hlg_scene,
}

ADOBE_RGB = Display(  # Adobe RGB (1998), section 4.3
    gamma_curve(np.arange(256) / 255, 563 / 256),
    (0.64, 0.33, 0.21, 0.71, 0.15, 0.06, *_D65),
)


def srgb_from_display(pixels: NDArray[np.uint8], display: Display) -> NDArray[np.uint8]:
    """Convert uint8 pixels (H, W, 3) to sRGB, a block of rows at a time.

    Raises ValueError for primaries that span no colours.
    """
    to_srgb = np.linalg.inv(_xyz_from_rgb(PRIMARIES[1]))
    matrix = (to_srgb @ _to_d65(display.primaries)).T.astype(np.float32)
    luminance = _xyz_from_rgb(display.primaries)[1].astype(np.float32)
    curve = display.curve.astype(np.float32)
    encoded = _srgb_values()
    result = np.empty(pixels.shape, np.uint8)
    rows = max(1, _BLOCK_PIXELS // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):
        light = curve[pixels[top : top + rows]]
        if display.hlg:  # a display's light, table 5: by the luminance of the scene
            gain = (light @ luminance) ** np.float32(_HLG_GAMMA - 1)
            light *= gain[..., None] * np.float32(_HLG_PEAK / REFERENCE_WHITE)
        light = light @ matrix
        np.clip(light, 0, 1, out=light)
        result[top : top + rows] = encoded[(light * 65535 + np.float32(0.5)).astype(np.uint16)]
    return result


def _srgb_values() -> NDArray[np.uint8]:
    """The values 0..255 of light 0..65535, which is fine enough for the darkest of them."""
    light = np.arange(65536) / 65535
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    result: NDArray[np.uint8] = np.round(255 * values).astype(np.uint8)
    return result


def _xyz_from_rgb(primaries: Chromaticities) -> Floats:
    """Matrix from linear RGB to XYZ (SMPTE RP 177); raises ValueError where there is none."""
    x, y = np.array(primaries[::2], np.float64), np.array(primaries[1::2], np.float64)
    if y[3] <= 0:
        raise ValueError("a white without light")
    xyz: Floats = np.stack([x, y, 1 - x - y])
    try:
        scale = np.linalg.solve(xyz[:, :3], xyz[:, 3] / y[3])
    except np.linalg.LinAlgError as error:
        raise ValueError("primaries on a line") from error
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError("a white outside the primaries")
    matrix: Floats = xyz[:, :3] * scale
    return matrix


def _to_d65(primaries: Chromaticities) -> Floats:
    """Matrix from linear RGB to XYZ, its white adapted to D65 by Bradford's method."""
    xyz = _xyz_from_rgb(primaries)
    here, there = _BRADFORD @ xyz.sum(axis=1), _BRADFORD @ _xyz_from_rgb(PRIMARIES[1]).sum(axis=1)
    result: Floats = np.linalg.inv(_BRADFORD) @ np.diag(there / here) @ _BRADFORD @ xyz
    return result
