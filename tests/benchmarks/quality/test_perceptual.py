"""The measures that need no download: where they are 0 or 1, and what makes them grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.quality.perceptual import OCTAVES, Moments, frechet, octave_energies


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


def test_distance_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    spread = np.concatenate([np.eye(3), -np.eye(3)]) * 2.5**0.5  # unbiased covariance 1
    plain, other = Moments(3), Moments(3)
    plain.add(spread @ np.diag([1, 2, 3]) @ turn)
    other.add(spread @ np.diag([2, 2, 5]) @ turn + [1, 0, -2])
    shift, widths = 1 + 4, (2 - 1) ** 2 + (5 - 3) ** 2
    assert frechet(plain, other) == pytest.approx(shift + widths)
    assert frechet(other, plain) == pytest.approx(shift + widths)


def test_moments_are_those_of_all_vectors_at_once() -> None:
    vectors = np.random.default_rng(1).normal(3, 2, size=(50, 4))
    moments = Moments(4)
    for part in (vectors[:7], vectors[7:]):
        moments.add(part)
    assert moments.mean == pytest.approx(vectors.mean(axis=0))
    assert moments.covariance == pytest.approx(np.cov(vectors.T))
    assert frechet(moments, moments) == pytest.approx(0, abs=1e-9)
