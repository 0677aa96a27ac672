"""What the shipped bundle must not spoil: flat colours, saturated ones above all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from percoedge import Codec

# Levels of 255 by which the colour of a flat image may be off.
TOLERANCE = 12
COLOURS = [(0, 255, 0), (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128)]


@pytest.fixture(scope="module")
def codec() -> Iterator[Codec]:
    with Codec.load("tiny", backend="onnxruntime-cpu") as loaded:
        yield loaded


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("colour", COLOURS)
def test_flat_colours_come_back(codec: Codec, colour: tuple[int, int, int], steps: int) -> None:
    photo = np.full((96, 128, 3), colour, np.uint8)
    decoded = np.asarray(codec.decode(codec.encode(photo), steps=steps)).astype(int)
    means = decoded.reshape(-1, 3).mean(axis=0)
    assert np.abs(means - colour).max() <= TOLERANCE
    # and nearly everywhere, not on the average alone
    errors = np.abs(decoded - colour).max(axis=-1)
    assert np.quantile(errors, 0.9) <= 2 * TOLERANCE
