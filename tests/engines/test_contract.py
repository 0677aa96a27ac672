"""The one check of tensors that all backends share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from percoedge.engines.contract import TensorSpec, check_tensors, split_axis
from percoedge.errors import BackendError

SPECS = (
    TensorSpec("x", "float32", ("n", 16, "2*h", "2*w")),
    TensorSpec("tokens", "int32", ("n", "h", "w")),
)


def feeds(n: int = 1, h: int = 3, w: int = 5) -> dict[str, np.ndarray]:
    return {
        "x": np.zeros((n, 16, 2 * h, 2 * w), np.float32),
        "tokens": np.zeros((n, h, w), np.int32),
    }


@given(st.integers(0, 3), st.integers(0, 5), st.integers(0, 5))
def test_symbols_get_the_sizes_of_the_feeds(n: int, h: int, w: int) -> None:
    assert check_tensors("g", SPECS, feeds(n, h, w)) == {"n": n, "h": h, "w": w}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": np.zeros(1)}, "expected 'x', 'tokens'; got 'x', 'tokens', 'extra'"),
        ({"x": [0.0]}, "got list"),
        ({"x": np.zeros((1, 16, 6, 10))}, r"got <f8 .*astype\('float32'\)"),
        ({"x": np.zeros((1, 16, 6, 10), ">f4")}, "got >f4"),
        ({"x": np.zeros((16, 6, 10), np.float32)}, "reshape it to 4 axes"),
        ({"x": np.zeros((1, 4, 6, 10), np.float32)}, "axis 1 of .*: expected 16, got 4"),
        ({"x": np.zeros((1, 16, 7, 10), np.float32)}, "expected a multiple of 2, got 7"),
        ({"tokens": np.zeros((2, 3, 5), np.int32)}, "expected 1 because n = 1 elsewhere"),
        ({"tokens": np.zeros((1, 6, 10), np.int32)}, "expected 3 because h = 3 elsewhere"),
    ],
)
def test_a_feed_that_breaks_its_spec_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BackendError, match=f"^g: input.*{message}"):
        check_tensors("g: input", SPECS, {**feeds(), **change})  # type: ignore[dict-item]


def test_a_missing_feed_is_refused() -> None:
    with pytest.raises(BackendError, match="got none; pass exactly these names"):
        check_tensors("g", SPECS, {})


def test_symbols_bound_before_must_agree() -> None:
    with pytest.raises(BackendError, match="because n = 2 elsewhere"):
        check_tensors("g", SPECS, feeds(), {"n": 2})


@pytest.mark.parametrize(("axis", "parts"), [("h", (1, "h")), ("16*h", (16, "h"))])
def test_axes_are_symbols_or_multiples(axis: str, parts: tuple[int, str]) -> None:
    assert split_axis(axis) == parts


@pytest.mark.parametrize("axis", ["", "2h", "h*2", "0*h", "h+1", "2*", "h\n", "-1*h"])
def test_other_axes_are_refused(axis: str) -> None:
    with pytest.raises(ValueError, match=r"expected a symbolic axis like 'h' or '2\*h'"):
        split_axis(axis)
