"""The measures that need no download: where they are 0 or 1, and what makes them grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks.quality.perceptual import (
    FEATURES,
    OCTAVES,
    PATCH_PX,
    Moments,
    features,
    frechet,
    octave_energies,
)

Damage = Callable[[Any], Any]


def moments(*photos: Any) -> Moments:
    made = Moments()
    for photo in photos:
        made.add(features(photo))
    return made


def blur(sigma: float) -> Damage:
    return lambda photo: np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))


def noise(sigma: float) -> Damage:
    def damage(photo: Any) -> Any:
        noisy = photo + np.random.default_rng(0).normal(0, sigma, photo.shape)
        return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)

    return damage


def blocks(side: int) -> Damage:
    def damage(photo: Any) -> Any:
        height, width = photo.shape[:2]
        small = Image.fromarray(photo).reduce(side)
        return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))

    return damage


def cast(levels: int) -> Damage:
    return lambda photo: np.clip(photo.astype(int) + [levels, 0, -levels], 0, 255).astype(np.uint8)


def scrambled(photo: Any) -> Any:
    """Noise of about the photo's spectrum: its amplitudes with the phases of white noise."""
    white = np.fft.fft2(np.random.default_rng(0).normal(size=photo.shape[:2]))
    spectrum = np.fft.fft2(photo.astype(float), axes=(0, 1))
    turned = spectrum * (white / np.abs(white))[..., None]
    turned[0, 0] = spectrum[0, 0]
    return np.clip(np.fft.ifft2(turned, axes=(0, 1)).real, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("octave", range(OCTAVES))
@pytest.mark.parametrize("turned", [False, True])
def test_a_wave_lies_in_its_octave(octave: int, turned: bool) -> None:
    frequency = 0.75 * 2.0 ** -(octave + 1)
    wave = 128 + 100 * np.cos(2 * np.pi * frequency * np.arange(256))
    plane = np.tile(np.rint(wave), (256, 1))
    pixels = np.stack([plane.T if turned else plane] * 3, axis=2).astype(np.uint8)
    energies = octave_energies(pixels)
    assert energies[octave] > 0.98 * energies.sum()


def test_energy_grows_with_the_square_of_contrast(photo: Any) -> None:
    even = photo // 2 * 2
    assert octave_energies(even) == pytest.approx(4 * octave_energies(even // 2))
    assert octave_energies(np.full((64, 70, 3), 90, np.uint8)) == pytest.approx(0, abs=1e-6)


def test_features_are_those_of_whole_patches(photo: Any) -> None:
    rows, columns = 400 // PATCH_PX, 600 // PATCH_PX
    assert features(photo).shape == (rows * columns, FEATURES)
    np.testing.assert_array_equal(
        features(photo), features(photo[: rows * PATCH_PX, : columns * PATCH_PX])
    )
    assert features(photo[: PATCH_PX - 1]).shape == (0, FEATURES)
    assert np.isfinite(features(np.zeros((PATCH_PX, PATCH_PX, 3), np.uint8))).all()


def test_distance_of_a_set_to_itself_is_zero(photo: Any) -> None:
    assert frechet(moments(photo), moments(photo)) == pytest.approx(0, abs=1e-6)
    halves = moments(photo[:192], photo[192:384])
    assert frechet(moments(photo[:384]), halves) < 0.5  # only filters at the cut differ


@pytest.mark.parametrize(
    "damages",
    [
        [blur(0.5), blur(1), blur(2), blur(4), blur(8)],
        [noise(2), noise(5), noise(10), noise(20), noise(40)],
        [blocks(2), blocks(4), blocks(8), blocks(16)],
        [cast(5), cast(10), cast(20)],
    ],
    ids=["blur", "noise", "blocks", "cast"],
)
def test_distance_grows_with_damage(damages: list[Damage], photo: Any) -> None:
    original = moments(photo)
    distances = [frechet(original, moments(damage(photo))) for damage in damages]
    assert distances == sorted(distances)
    assert distances[0] > 0.01
    assert distances[-1] > 4 * distances[0]


def test_distance_tells_edges_from_noise_of_the_same_spectrum(photo: Any) -> None:
    worse = frechet(moments(photo), moments(scrambled(photo)))
    assert worse > frechet(moments(photo), moments(blur(1)(photo)))
    assert worse > 5


def test_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    spread = np.concatenate([np.eye(3), -np.eye(3)]) * 3**0.5  # covariance 1
    plain, other = Moments(3), Moments(3)
    plain.add(spread @ np.diag([1, 2, 3]) @ turn)
    other.add(spread @ np.diag([2, 2, 5]) @ turn + [1, 0, -2])
    shift, widths = 1 + 4, (2 - 1) ** 2 + (5 - 3) ** 2
    assert frechet(plain, other, standardise=False) == pytest.approx(shift + widths)
    assert frechet(other, plain, standardise=False) == pytest.approx(shift + widths)


def test_standardised_distance_does_not_depend_on_units() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(50, 4)), rng.normal(1, 2, size=(60, 4))
    units = np.array([1, 10, 100, 1000])
    distances = []
    for scale in (1, units):
        first, second = Moments(4), Moments(4)
        first.add(a * scale)
        second.add(b * scale)
        distances.append(frechet(first, second))
    assert distances[0] == pytest.approx(distances[1])
