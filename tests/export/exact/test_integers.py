"""The entropy model is exact: integers everywhere, the same from every implementation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from percoedge.export.config import Config
from percoedge.export.exact.graph import entropy_graphs
from percoedge.export.exact.integers import (
    ExactnessError,
    IntegerMim,
    frequency_table,
    prove,
    reference_weights,
)
from percoedge.export.graphs.onnx_files import OPSET, WeightFile
from percoedge.export.models.mim import Mim, integer_mim, norm_index, norm_table
from percoedge.export.models.percov2.family import Family


@pytest.fixture
def mim(family: Family, config: Config) -> Mim:
    family.mim.calibrate(torch.randint(0, config.codec.codebook_size + 1, (8, 8, 8)))
    return family.mim


@pytest.fixture
def model(mim: Mim) -> IntegerMim:
    return integer_mim(mim)


def tokens_of(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 33, shape)


def session(
    model: IntegerMim, folder: Path, kind: str, level: str = "ORT_ENABLE_ALL"
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    with WeightFile(folder / "entropy.weights") as weights:
        graphs = entropy_graphs(model, OPSET, weights)
    path = folder / "entropy.onnx"
    path.write_bytes(getattr(graphs, kind).SerializeToString())
    return onnxruntime.InferenceSession(path, options)


@pytest.mark.parametrize("kind", ["floats", "bytes"])
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 9), (3, 16, 5)])
def test_onnx_equals_the_integer_reference(
    model: IntegerMim, tmp_path: Path, kind: str, level: str, shape: tuple[int, int, int]
) -> None:
    tokens = tokens_of(0, shape)
    positions = np.arange(shape[1] * shape[2])[::2]
    feeds = {"tokens": tokens.astype(np.int32), "positions": positions.astype(np.int32)}
    (weights,) = session(model, tmp_path, kind, level).run(None, feeds)
    assert weights.dtype == np.int32
    np.testing.assert_array_equal(weights, reference_weights(model, tokens, positions))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 20), height=st.integers(1, 12), width=st.integers(1, 12))
def test_training_sees_the_very_integers_that_are_exported(
    seed: int, height: int, width: int
) -> None:
    torch.manual_seed(seed)
    from percoedge.export.config import MimConfig

    mim = Mim(MimConfig(width=8, hidden=16, layers=1, kernel=3), 32)
    tokens = torch.randint(0, 33, (2, height, width))
    mim.calibrate(tokens)
    with torch.no_grad():
        logits = mim.integer_logits(tokens).flatten(1, 2).long().numpy()
    model = integer_mim(mim)
    weights = model.weight_table[logits.max(-1, keepdims=True) - logits]
    everywhere = np.arange(height * width)
    np.testing.assert_array_equal(weights, reference_weights(model, tokens.numpy(), everywhere))


@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_a_slot_does_not_depend_on_its_batch(model: IntegerMim, tmp_path: Path, kind: str) -> None:
    run = session(model, tmp_path, kind).run
    tokens = tokens_of(3, (8, 6, 7)).astype(np.int32)
    positions = np.arange(0, 42, 5, dtype=np.int32)
    (together,) = run(None, {"tokens": tokens, "positions": positions})
    for slot in range(8):
        (alone,) = run(None, {"tokens": tokens[slot : slot + 1], "positions": positions})
        np.testing.assert_array_equal(alone[0], together[slot])


def test_bounds_hold_for_the_worst_input(model: IntegerMim) -> None:
    bounds = prove(model)
    assert max(bounds.values()) < 1 << 24
    mix, up, down = model.blocks[0]
    worst = (np.abs(up.weight).sum(0) * 128 + np.abs(up.bias)).max()
    assert bounds["block 0 up"] >= worst
    assert bounds["block 0 down"] >= (np.abs(down.weight).sum(0) * 255 + np.abs(down.bias)).max()


def test_pairs_of_products_fit_into_sixteen_bits(model: IntegerMim) -> None:
    """Else x86 CPUs without VNNI give other sums than those with it."""
    layers = [layer for block in model.blocks for layer in block] + [model.head]
    assert 2 * 255 * max(int(np.abs(layer.weight).max()) for layer in layers) < 1 << 15


def test_export_fails_when_a_bound_does_not_hold(model: IntegerMim, tmp_path: Path) -> None:
    wide = np.full((2100, 4), 63)
    layer = dataclasses.replace(
        model.head, weight=wide, bias=np.zeros(4, np.int64), shift=np.ones(4, np.int64)
    )
    failing = dataclasses.replace(model, head=layer)
    with (
        WeightFile(tmp_path / "entropy.weights") as weights,
        pytest.raises(ExactnessError, match=r"head: expected every partial sum below 2\^24"),
    ):
        entropy_graphs(failing, OPSET, weights)


@pytest.mark.parametrize("shift", [0, 25])
def test_export_refuses_shifts_out_of_range(model: IntegerMim, shift: int) -> None:
    head = dataclasses.replace(model.head, shift=np.full_like(model.head.shift, shift))
    with pytest.raises(ExactnessError, match="shifts of 1 to 24"):
        prove(dataclasses.replace(model, head=head))


def test_export_refuses_a_norm_table_with_long_significands(model: IntegerMim) -> None:
    table = np.nextafter(model.norm_table, np.float32(100))
    with pytest.raises(ExactnessError, match="11 bits"):
        prove(dataclasses.replace(model, norm_table=table))


def test_frequencies_fall_by_half_an_octave_every_eight() -> None:
    table = frequency_table()
    assert table[0] == 65536
    assert table[16] == 32768
    assert table[8] == round(65536 / 2**0.5)
    assert table[-1] == 1
    assert (np.diff(table) <= 0).all()


def test_the_norm_is_close_to_the_true_reciprocal_root() -> None:
    width = 128
    table = norm_table(width)
    squares = torch.arange(2048, 1 << 21, 997, dtype=torch.float32)
    true = 32 / ((squares / width).sqrt() * 8)
    error = (table[norm_index(squares)] / true - 1).abs().max()
    assert error < 0.01
    assert norm_index(torch.tensor([0.0, 31.0, 32.0])).tolist() == [0, 0, 1]
    assert (table[:-1] >= table[1:]).all()


def test_the_norm_of_larger_sums_is_that_of_the_largest_in_the_table() -> None:
    largest = len(norm_table(128)) - 1
    assert norm_index(torch.tensor([2.0**21 - 1, 2.0**21, 2.0**24])).tolist() == [largest] * 3
