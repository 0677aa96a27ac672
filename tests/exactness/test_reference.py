"""The reference misses nothing of the graph, and the cases are the same everywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cases import Case, Tally, batches, compare, digest, make_cases, read_cases, write_cases
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle
from percoedge.errors import BundleError
from percoedge.export.exact.integers import IntegerMim, prove, reference_weights
from percoedge.export.exact.read import integers_of


def test_the_integers_read_from_the_graph_make_the_very_same_graphs(
    bundle: Bundle, model: IntegerMim, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="without the exporter: pip install '.[export]'")
    import onnx

    from percoedge.export.exact.graph import entropy_graphs
    from percoedge.export.graphs.onnx_files import OPSET, WeightFile

    file = tmp_path / "entropy.weights"
    with WeightFile(file) as weights:
        graphs = entropy_graphs(model, OPSET, weights)
    for again, variant in ((graphs.floats, "fp32"), (graphs.bytes, "int8")):
        source = bundle.read("entropy", variant)
        assert again == onnx.load_from_string(source.model)
        assert source.data == {file.name: file.read_bytes()}


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_what_cannot_be_read_back_is_one_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    source = bundle.read("entropy", "fp32")
    cut = dataclasses.replace(source, model=source.model[: int(share * len(source.model))])
    monkeypatch.setattr(Bundle, "read", lambda *_: cut)
    with pytest.raises(BundleError, match="expected an entropy graph as .* export the bundle"):
        integers_of(bundle)


def test_no_partial_sum_of_the_bundle_reaches_two_to_the_24(model: IntegerMim) -> None:
    assert max(prove(model).values()) < 1 << 24


def test_cases_never_change() -> None:
    expected = "e54e43664e91188457ca5d3e5a2e6f22a7cefa101c7dfea8a3619ee17c9c25d4"
    arrays = [a.ravel() for case in make_cases(1024) for a in (case.tokens, case.positions)]
    assert digest(np.concatenate(arrays)) == expected


@pytest.mark.slow
def test_cases_cover_sizes_and_masks(cases: list[Case]) -> None:
    fractions = {float(np.mean(grid == 1024)) for case in cases for grid in case.tokens}
    assert {0.0, 1.0} <= fractions
    assert {case.cells for case in cases} >= {1, 35, 256, 1024, 64 * 48, 64 * 64}
    assert sum(len(set(case.digests)) for case in cases) > 20


def test_batches_put_every_slot_in_every_place() -> None:
    seen = {(len(slots), place, slot) for slots in batches(8) for place, slot in enumerate(slots)}
    assert seen == {(n, place, s) for n in range(1, 9) for place in range(n) for s in range(8)}


def test_one_wrong_integer_is_told(model: IntegerMim, small_cases: list[Case]) -> None:
    case = next(case for case in small_cases if case.name == "7x5")

    def run(tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.int32]:
        weights = reference_weights(model, tokens.astype(np.int64), positions.astype(np.int64))
        weights[1, 0, 0] += 1
        return weights.astype(np.int32)

    tally = Tally("wrong")
    compare(run, case, [[0, 1], [2, 3]], "here", tally)
    assert tally.grids == 4
    assert tally.wrong == [
        "here 7x5: slot 1 in place 1 of [0, 1]",
        "here 7x5: slot 3 in place 1 of [2, 3]",
    ]


def test_targets_read_what_was_written(tmp_path: Path, small_cases: list[Case]) -> None:
    write_cases(small_cases, tmp_path)
    for one, other in zip(small_cases, read_cases(tmp_path), strict=True):
        assert (one.name, one.digests) == (other.name, other.digests)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.positions, other.positions)
