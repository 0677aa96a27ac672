"""Rivals keep to the bytes they are given, and take the best that fits."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.quality.rivals import RIVALS, PhotoRival, Rival, version
from percoedge.runtime.images.metrics import ms_ssim

pytestmark = pytest.mark.slow

INSTALLED = [rival for rival in RIVALS if version(rival) != "missing"]


@pytest.mark.parametrize("rival", INSTALLED, ids=lambda rival: rival.name)
def test_files_fit_and_more_bytes_are_better(rival: Rival, photo: Any) -> None:
    pixels = photo[100:260, 100:290]
    files = PhotoRival(rival, pixels)
    poor, good = files.best(700), files.best(4000)
    assert poor.fits and good.fits
    assert poor.size_bytes <= 700 < good.size_bytes <= 4000
    assert good.shrink <= poor.shrink
    assert poor.pixels.shape == good.pixels.shape == pixels.shape
    assert ms_ssim(pixels, poor.pixels) < ms_ssim(pixels, good.pixels)


@pytest.mark.parametrize("rival", INSTALLED, ids=lambda rival: rival.name)
def test_out_of_reach_gives_the_smallest_file_and_says_so(rival: Rival, photo: Any) -> None:
    files = PhotoRival(rival, photo[:128, :128])
    smallest = files.best(1)
    assert not smallest.fits
    assert smallest.quality == 0
    fitting = files.best(smallest.size_bytes)
    assert fitting.fits
    assert fitting.size_bytes == smallest.size_bytes


def test_a_missing_codec_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl", None)
    assert version(RIVALS[-1]) == "missing"
    assert version(RIVALS[0]) != "missing"
