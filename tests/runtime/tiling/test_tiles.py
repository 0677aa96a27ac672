"""Tiles cover a grid, with the context and the blending that were promised."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from percoedge.runtime.tiling.tiles import (
    Tile,
    batch_parts,
    context_tiles,
    grid_tiles,
    overlapping_tiles,
    ramp,
)

SIDES = st.integers(1, 40)


def test_a_tile_has_a_shape_and_slices() -> None:
    tile = Tile(1, 3, 4, 9)
    assert tile.shape == (2, 5)
    assert tile.slices == (slice(1, 3), slice(4, 9))
    assert tile.scaled(8) == (slice(8, 24), slice(32, 72))


def test_grid_tiles_are_in_raster_order_with_small_ones_last() -> None:
    assert grid_tiles(5, 3, 2) == [
        Tile(0, 2, 0, 2),
        Tile(0, 2, 2, 3),
        Tile(2, 4, 0, 2),
        Tile(2, 4, 2, 3),
        Tile(4, 5, 0, 2),
        Tile(4, 5, 2, 3),
    ]


@given(
    height=SIDES,
    width=SIDES,
    side=st.integers(1, 12),
    margin=st.integers(0, 4),
    max_batch=st.sampled_from([None, 2]),
)
def test_context_tiles_cover_once_and_hold_their_margin(
    height: int, width: int, side: int, margin: int, max_batch: int | None
) -> None:
    covered = np.zeros((height, width), np.int32)
    pairs = context_tiles(height, width, side, margin, max_batch)
    for outer, inner in pairs:
        covered[inner.slices] += 1
        assert 0 <= outer.top <= max(0, inner.top - margin)
        assert 0 <= outer.left <= max(0, inner.left - margin)
        assert height >= outer.bottom >= min(height, inner.bottom + margin)
        assert width >= outer.right >= min(width, inner.right + margin)
        assert max(outer.shape) <= side + 2 * margin
    assert len({outer.shape for outer, _ in pairs}) == 1
    assert len(pairs) <= -(-height // side) * -(-width // side)
    assert (covered == 1).all()
    if max(height, width) <= side + 2 * margin:
        assert pairs == [(Tile(0, height, 0, width),) * 2]
    assert context_tiles(height, width, side, None) == [(Tile(0, height, 0, width),) * 2]


@given(data=st.data(), length=st.integers(1, 200), most=st.integers(1, 20))
def test_overlapping_tiles_cover_with_the_fewest_and_smallest(
    data: st.DataObject, length: int, most: int
) -> None:
    overlap = data.draw(st.integers(0, most // 2))
    side, starts = overlapping_tiles(length, most, overlap)
    assert side <= min(most, length)
    assert starts[0] == 0
    assert starts[-1] == length - side
    assert all(0 < step <= side - overlap for step in np.diff(starts))
    one_less = most + (len(starts) - 2) * (most - overlap)
    assert len(starts) == 1 or one_less < length
    smaller = side - 4  # sides are multiples of 4 or the largest
    assert len(starts) == 1 or len(starts) * (smaller - overlap) + overlap < length


@given(multiple=st.integers(1, 9), length=st.integers(1, 40), most=st.integers(1, 9))
def test_tiles_are_of_multiples_of_cells(multiple: int, length: int, most: int) -> None:
    length, most = length * multiple, most * multiple
    side, starts = overlapping_tiles(length, most, most // 4, multiple)
    assert side % multiple == 0 and side <= most
    assert starts[-1] + side == length
    assert all(0 < step <= side for step in np.diff(starts))


@given(data=st.data(), length=st.integers(1, 120), most=st.integers(1, 20))
def test_ramps_are_positive_and_add_up_to_one_at_the_exact_overlap(
    data: st.DataObject, length: int, most: int
) -> None:
    overlap = data.draw(st.integers(0, most // 2))
    total = np.zeros(length)
    side, starts = overlapping_tiles(length, most, overlap)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in starts:
            weights = ramp(side, start, length, overlap)
            assert weights.dtype == np.float32
            assert (weights > 0).all() and (weights <= 1).all()
            total[start : start + len(weights)] += weights
    assert (total > 0).all()
    if overlap and all(step == side - overlap for step in np.diff(starts)):
        np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_a_ramp_rises_and_falls_only_inside_the_grid() -> None:
    np.testing.assert_allclose(ramp(4, 0, 4, 2), [1, 1, 1, 1])
    np.testing.assert_allclose(ramp(4, 0, 9, 2), [1, 1, 0.75, 0.25])
    np.testing.assert_allclose(ramp(4, 5, 9, 2), [0.25, 0.75, 1, 1])
    assert ramp(4, 2, 9, 2) == pytest.approx([0.25, 0.75, 0.75, 0.25])


def test_parts_are_what_an_engine_takes_and_memory_holds() -> None:
    def sizes(*arguments: int | None) -> list[int]:
        parts = batch_parts(20, *arguments)  # type: ignore[arg-type]
        assert [row for part in parts for row in range(20)[part]] == list(range(20))
        return [len(range(20)[part]) for part in parts]

    assert sizes(512 * 512) == [4] * 5
    assert sizes(2048 * 2048) == [1] * 20
    assert sizes(512 * 512, 1) == [1] * 20
    assert sizes(512 * 512, 8) == [8, 8, 4]
    assert sizes(2048 * 2048, 8) == [4] * 5
    assert sizes(16384 * 16384, 8) == [1] * 20
