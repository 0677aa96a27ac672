"""Pass tables: every cell once, counts as published, bytes frozen."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from percoedge.bitstream.schedules import (
    MAX_GRID_SIDE,
    SCHEDULES,
    pass_count,
    pass_table,
    passes,
)
from percoedge.errors import UsageError

GRIDS = ((8, 8), (16, 16), (32, 32), (64, 64), (7, 13), (1, 64), (33, 20))

# First 16 digits of the SHA-256 of each table of GRIDS. Part of the format: never to be changed.
FROZEN = {
    "uniform": "f5a5fd42d16a2030 5341e6b2646979a7 5f70bf18a0860070 ad7facb2586fc6e9 "
    "2795ec931b5b17c9 f5a5fd42d16a2030 213e3a2ae54f25b0",
    "checkerboard": "b793679ad749e488 080cf56058983c56 ff484e64fe04a372 2b2e97a2d55dfafd "
    "5e737a7cd0568047 efacf3f57130743f 5eda55af77d61a16",
    "quincunx": "27c1286aef1e6637 00f53575eb4665b9 b684cbe768515b34 51a4b442a2d1bf2d "
    "3b0b7f9a0f6f724c 0e86cd5d93f27be3 df1b065329507d54",
    "qlds-4": "a1c37e997afa770a 9014d711428ab472 b4cda23df733b6cc e27888d11d95bfb1 "
    "42a7c807d63d2e6a 7153b02d8dd14c56 571d5d3aae918b26",
    "qlds-8": "b98693a203e8b477 aacffd74fd545d97 b88e46ea20da43f7 021a780eadb25777 "
    "b722cf085a37445d 53488f46ba0c5b60 0017df9184b01626",
    "qlds-12": "6f8eca8cd6d78050 f2b6bff56b42315a 3f9c2b66ef6a99b9 f30aabb04260c681 "
    "4fb0a99a4b143b47 413e4b8c6796926e e1781075e14597c9",
    "var": "fbddb8f970c7e552 7c311c2a7204daaa 4c9c58ca0de6fb7d 295c36f09cce1492 "
    "9a9dd3534bd73933 fcce866581ea8e66 53a31ca0b819723c",
}


def test_schedule_ids_are_frozen() -> None:
    assert SCHEDULES == (
        "uniform",
        "checkerboard",
        "quincunx",
        "qlds-4",
        "qlds-8",
        "qlds-12",
        "var",
    )
    assert [pass_count(name) for name in SCHEDULES] == [1, 2, 5, 4, 8, 12, 10]


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_frozen(name: str) -> None:
    digests = [hashlib.sha256(pass_table(name, *grid).tobytes()).hexdigest() for grid in GRIDS]
    assert [digest[:16] for digest in digests] == FROZEN[name].split()


@pytest.mark.parametrize(
    ("name", "cumulative"),
    [
        ("checkerboard", [32, 64]),
        ("quincunx", [4, 8, 16, 32, 64]),
        ("qlds-4", [4, 14, 34, 64]),
        ("qlds-8", [1, 4, 8, 14, 23, 34, 48, 64]),
        ("qlds-12", [1, 2, 4, 6, 10, 14, 20, 27, 34, 43, 53, 64]),
    ],
)
def test_counts_on_8x8_are_those_published(name: str, cumulative: list[int]) -> None:
    assert np.cumsum([len(cells) for cells in passes(name, 8, 8)]).tolist() == cumulative


def test_qlds_visits_the_r2_sequence() -> None:
    """Against exact rational arithmetic on Python's integers, written independently."""
    order: list[int] = []
    n = 0
    while len(order) < 35 * 50:
        row = ((2**63 + n * 0x91E10DA5C79E7B1C) % 2**64 * 35) >> 64
        column = ((2**63 + n * 0xC13FA9A902A6328F) % 2**64 * 50) >> 64
        if (cell := row * 50 + column) not in set(order):
            order.append(cell)
        n += 1
    table = pass_table("qlds-12", 35, 50).ravel()[order]
    assert (np.diff(table.astype(int)) >= 0).all()
    assert table[0] == 0
    assert table[-1] == 11


def test_var_scales_are_nested_from_coarse_to_fine() -> None:
    table = pass_table("var", 16, 16)
    assert np.argwhere(table == 0).tolist() == [[8, 8]]
    assert np.argwhere(table == 1).tolist() == [[4, 4], [4, 12], [12, 4], [12, 12]]
    assert table.max() == 9


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SCHEDULES), st.integers(1, 80), st.integers(1, 80))
def test_every_cell_is_in_exactly_one_pass(name: str, height: int, width: int) -> None:
    table = pass_table(name, height, width)
    groups = passes(name, height, width)
    assert table.shape == (height, width)
    assert table.dtype == np.uint8
    assert len(groups) == pass_count(name)
    assert sorted(np.concatenate(groups).tolist()) == list(range(height * width))
    for number, cells in enumerate(groups):
        assert cells.dtype == np.int32
        assert (np.diff(cells) > 0).all()
        assert (table.ravel()[cells] == number).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_long_thin_grids(name: str) -> None:
    assert pass_table(name, 1, MAX_GRID_SIDE).shape == (1, MAX_GRID_SIDE)
    assert pass_table(name, 1, 1).item() < pass_count(name)


def test_tables_cannot_be_altered_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        pass_table("qlds-8", 8, 8)[0, 0] = 3


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="qlds-9"):
        pass_table("qlds-9", 8, 8)
    with pytest.raises(UsageError, match="0x8"):
        passes("var", 0, 8)
    with pytest.raises(UsageError, match="tiles"):
        passes("uniform", 8, MAX_GRID_SIDE + 1)
