"""PSNR and MS-SSIM against closed forms and invariants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from percoedge.errors import UsageError
from percoedge.runtime.images.metrics import ms_ssim, psnr_db

C1 = (0.01 * 255) ** 2


def flat(value: int, side: int = 11) -> Any:
    return np.full((side, side, 3), value, np.uint8)


def test_psnr_of_equal_photos_is_infinite(fakes: Any) -> None:
    photo = fakes.photo(9, 7)
    assert psnr_db(photo, photo) == math.inf


@pytest.mark.parametrize("difference", [1, 5, 255])
def test_psnr_of_a_constant_difference(difference: int) -> None:
    expected = 20 * math.log10(255 / difference)
    assert psnr_db(flat(0), flat(difference)) == pytest.approx(expected)
    assert psnr_db(flat(difference), flat(0)) == pytest.approx(expected)


def test_one_wrong_sample_in_n() -> None:
    photo = flat(100)
    wrong = photo.copy()
    wrong[3, 4, 1] = 110
    assert psnr_db(photo, wrong) == pytest.approx(10 * math.log10(255**2 / (100 / photo.size)))


@pytest.mark.parametrize("side", [11, 21, 22, 176, 180])
def test_ms_ssim_of_a_photo_with_itself_is_one(side: int, fakes: Any) -> None:
    assert ms_ssim(fakes.photo(side, side + 3), fakes.photo(side, side + 3)) == pytest.approx(1)


def test_ms_ssim_of_flat_photos_is_the_luminance_of_the_coarsest_scale() -> None:
    luminance = (2 * 80 * 120 + C1) / (80**2 + 120**2 + C1)
    assert ms_ssim(flat(80), flat(120)) == pytest.approx(luminance, abs=1e-4)
    two_scales = luminance ** (0.2856 / (0.0448 + 0.2856))
    assert ms_ssim(flat(80, 22), flat(120, 22)) == pytest.approx(two_scales, abs=1e-4)
    five_scales = luminance ** (0.1333 / 1.0001)
    assert ms_ssim(flat(80, 176), flat(120, 176)) == pytest.approx(five_scales, abs=1e-4)


def test_ms_ssim_falls_with_noise_and_is_zero_for_a_negative(fakes: Any) -> None:
    photo = fakes.photo(48, 40)
    rng = np.random.default_rng(1)
    scores = []
    for sigma in (2, 20, 80):
        noisy = np.clip(photo + rng.normal(0, sigma, photo.shape), 0, 255).astype(np.uint8)
        scores.append(ms_ssim(photo, noisy))
    assert 1 > scores[0] > scores[1] > scores[2] > 0
    assert ms_ssim(photo, 255 - photo) == 0


def test_ms_ssim_does_not_depend_on_order_or_orientation(fakes: Any) -> None:
    a, b = fakes.photo(48, 32), fakes.photo(48, 32, seed=1) // 2 + fakes.photo(48, 32) // 2
    expected = ms_ssim(a, b)
    assert ms_ssim(b, a) == pytest.approx(expected, rel=1e-5)
    assert ms_ssim(a[::-1], b[::-1]) == pytest.approx(expected, rel=1e-5)
    assert ms_ssim(a.swapaxes(0, 1), b.swapaxes(0, 1)) == pytest.approx(expected, rel=1e-5)
    assert ms_ssim(a[..., ::-1], b[..., ::-1]) == pytest.approx(expected, rel=1e-5)


def test_photos_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(UsageError, match="one size"):
        psnr_db(flat(1), flat(1, 12))
    with pytest.raises(UsageError, match="one size"):
        ms_ssim(flat(1), flat(1, 12))
    with pytest.raises(UsageError, match="at least 11 px"):
        ms_ssim(flat(1, 10), flat(1, 10))
    with pytest.raises(UsageError, match=r"\(H, W, 3\)"):
        ms_ssim(flat(1)[..., 0], flat(1)[..., 0])
