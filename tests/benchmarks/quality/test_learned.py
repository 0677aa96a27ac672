"""Learned metrics: never a download, "missing" in place of a number, and the two set distances."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest

from benchmarks.quality import learned
from benchmarks.quality.learned import MISSING, NAMES, Learned, kernel_distance, set_distances
from benchmarks.quality.scores import Originals, Scores, Setting


def test_a_metric_that_would_download_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def downloads() -> Any:
        asked.append(True)
        return socket.create_connection(("localhost", 9))

    lookup = socket.getaddrinfo
    for maker in ("_lpips", "_dists", "_clip_score", "_inception"):
        monkeypatch.setattr(learned, maker, downloads)
    found = Learned()
    assert len(asked) == 4
    assert found.pairs == {}
    assert found.inception is None
    assert socket.getaddrinfo is lookup


def test_what_is_missing_is_never_a_number(photo: Any) -> None:
    originals = Originals(Learned(wanted=False))
    scores = Scores(Setting("tiny", 8, 1, 1.0), originals)
    originals.add_photo("a.png", photo)
    scores.add_output(photo[:, ::-1], 100)
    assert {scores.result()[key] for key in NAMES} == {MISSING}


def test_what_is_there_is_measured(photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def difference() -> Any:
        return lambda original, output: float(np.abs(original - output.astype(float)).mean())

    def thumbnails() -> Any:
        return lambda pixels: pixels[::64, ::64].reshape(-1, 3).astype(float)

    def absent() -> Any:
        raise ImportError

    for maker, made in {
        "_lpips": difference,
        "_dists": absent,
        "_clip_score": absent,
        "_inception": thumbnails,
    }.items():
        monkeypatch.setattr(learned, maker, made)
    originals = Originals(Learned())
    scores = Scores(Setting("tiny", 8, 1, 1.0), originals)
    originals.add_photo("a.png", photo)
    scores.add_output(photo // 2, 100)
    result = scores.result()
    assert result["lpips"] == pytest.approx((photo - photo // 2.0).mean())
    assert result["dists"] == result["clip_score"] == MISSING
    assert result["fid"] > 0
    assert result["kid"] > 0


def test_set_distances_are_zero_for_equal_sets_and_grow_with_a_shift() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 6))
    assert set_distances([vectors], [vectors[:20], vectors[20:]])["fid"] == pytest.approx(
        0, abs=1e-9
    )
    near, far = (set_distances([vectors], [vectors + shift]) for shift in (0.5, 2.0))
    assert near["fid"] == pytest.approx(6 * 0.5**2)
    assert far["fid"] == pytest.approx(6 * 2.0**2)
    assert 0 < near["kid"] < far["kid"]


def test_kernel_distance_of_two_points_each() -> None:
    a, b = np.array([[1.0], [2.0]]), np.array([[0.0], [1.0]])
    within_a, within_b = (1 * 2 + 1) ** 3, (0 * 1 + 1) ** 3
    between = ((0 + 1) ** 3 + (1 + 1) ** 3 + (0 + 1) ** 3 + (2 + 1) ** 3) / 4
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)
