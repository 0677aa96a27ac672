"""The one checker: what it feeds, how it measures, when it says no, and what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from percoedge.engines.bundle import Bundle
from percoedge.engines.comparison import (
    Difference,
    backend_source,
    compare_sources,
    difference_cells,
    difference_record,
    example_feeds,
    function_source,
)
from percoedge.engines.contract import TensorSpec, check_tensors
from percoedge.engines.fake import FakeBackend, FakeEngine
from percoedge.engines.selection import select
from percoedge.errors import BackendError

FLOATS = [{"x": np.linspace(-1, 1, 12, dtype=np.float32)}, {"x": np.ones(3, np.float32)}]


def compared(
    output: Callable[[Any], Any],
    other: Callable[[Any], Any],
    *,
    kind: str = "flow",
    variants: tuple[str, str] = ("fp32", "fp32"),
) -> Difference:
    a, b = (
        function_source(name, variant, lambda feeds, f=f: {"y": f(feeds["x"])})
        for name, variant, f in zip("ab", variants, (output, other), strict=True)
    )
    (row,) = compare_sources(kind, FLOATS, a, [b])
    return row


def same(x: Any) -> Any:
    return x


def image(x: Any) -> Any:
    return np.round(x * 100 + 100).astype(np.uint8)


def tokens(x: Any) -> Any:
    return np.round(x * 100).astype(np.int32)


@pytest.mark.parametrize("shape", [("n", "h", "w"), ("n", "4*h", "2*w")])
def test_feeds_have_the_sizes_asked_for_and_stay_in_range(shape: tuple[str, ...]) -> None:
    specs = [
        TensorSpec("tokens", "int32", shape),
        TensorSpec("positions", "int32", ("p",)),
        TensorSpec("image", "uint8", (*shape, 3)),
        TensorSpec("ids", "int32", ("n", 77)),
        TensorSpec("t", "float32", (1,)),
        TensorSpec("x", "float32", ("n", 4, "h", "w")),
    ]
    feeds = example_feeds(specs, {"n": 2, "h": 5, "w": 7}, codebook_size=8)
    sizes = check_tensors("feeds", specs, feeds)
    assert sizes == {"n": 2, "h": 5, "w": 7, "p": 18}
    assert set(np.unique(feeds["tokens"])) == set(range(9))  # 8 stands for "unknown"
    assert feeds["ids"].max() < 256 and 0 <= feeds["t"][0] < 1
    assert list(feeds["positions"]) == list(range(0, 35, 2))
    again = example_feeds(specs, {"n": 2, "h": 5, "w": 7}, codebook_size=8)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_floats_are_measured_by_their_relative_error() -> None:
    row = compared(same, lambda x: x * np.float32(1.5))
    assert (row.graph, row.output, row.a, row.b) == ("flow", "y", "a fp32", "b fp32")
    assert (row.measure, row.bound) == ("relative_l2", 1e-5)
    assert row.relative_l2 == pytest.approx(0.5) and row.largest == pytest.approx(0.5)
    assert row.differing is row.psnr_db is None and not row.ok
    assert str(row) == "graph 'flow', 'y' of b fp32: relative L2 error 0.5, above 1e-05"


def test_images_are_measured_by_their_psnr() -> None:
    equal = compared(image, image, kind="decoder")
    assert (equal.measure, equal.psnr_db, equal.differing, equal.ok) == ("psnr_db", np.inf, 0, True)
    one_off = compared(image, lambda x: image(x) + np.uint8(1), kind="decoder")
    assert one_off.psnr_db == pytest.approx(48.13, abs=0.01)
    assert (one_off.largest, one_off.differing, one_off.ok) == (1, 1, False)
    assert compared(
        image, lambda x: image(x) + np.uint8(1), kind="decoder", variants=("int8", "fp32")
    ).ok


def test_tokens_are_counted_and_the_worst_feed_counts() -> None:
    def two_off(x: Any) -> Any:
        return tokens(x) + (np.arange(x.size) < 2) * np.int32(7)

    row = compared(tokens, two_off, kind="encoder")
    assert row.measure == "differing" and row.differing == pytest.approx(2 / 3)
    assert row.largest == 7 and row.relative_l2 is None


def test_integers_of_the_entropy_model_must_be_equal() -> None:
    def one_off(x: Any) -> Any:
        return tokens(x) + (np.arange(x.size) == 0).astype(np.int32)

    row = compared(tokens, one_off, kind="entropy", variants=("fp32", "int8"))
    assert row.bound == 0 and not row.ok
    assert compared(tokens, tokens, kind="entropy").ok


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_what_is_not_finite_is_never_within_a_bound(spoilt: float) -> None:
    bundle = Bundle.open("tiny")
    row = compared(same, lambda x: np.where(x == 1, np.float32(spoilt), x))
    assert not row.ok
    (plain,) = json.loads(json.dumps(difference_record(bundle, [row])))["differences"]
    assert plain["relative_l2"] is None and plain["ok"] is False
    assert difference_cells([row])[1][-1] == "FAILED"


@pytest.mark.parametrize(
    ("variants", "bound"), [(("fp32", "fp16"), 5e-3), (("int8", "fp16"), 0.05)]
)
def test_the_coarser_variant_sets_the_bound(variants: tuple[str, str], bound: float) -> None:
    assert compared(same, same, variants=variants).bound == bound


def test_outputs_of_other_shapes_are_refused() -> None:
    with pytest.raises(BackendError, match=r"expected outputs .*\(12,\).* of a fp32, got .* of b"):
        compared(same, lambda x: x[None])


def test_engines_are_loaded_one_at_a_time_and_closed() -> None:
    graph = Bundle.open("tiny").graph("flow", "fp32")
    backend = FakeBackend({"flow": lambda feeds: {"x_next": feeds["x"]}})
    feeds = [example_feeds(graph.inputs, {"n": 1, "h": 2, "w": 3}, 64)]

    class OneAtATime(FakeBackend):
        def load(self, graph: Any) -> FakeEngine:
            assert all(engine.closed for _, engine in backend.engines)
            return backend.load(graph)

    sources = [backend_source(OneAtATime({}), graph) for _ in range(3)]
    assert [row.ok for row in compare_sources("flow", feeds, sources[0], sources[1:])] == [True] * 2
    assert len(backend.engines) == 3
    assert all(engine.closed and len(engine.calls) == 1 for _, engine in backend.engines)


def test_polygraphys_own_words_stay_off_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    bundle, backend = Bundle.open("tiny"), select("onnxruntime-cpu:fp32")
    source = backend_source(backend, bundle.graph("flow", "fp32"))
    feeds = [example_feeds(bundle.graph("flow", "fp32").inputs, {"n": 1, "h": 1, "w": 1}, 1024)]
    (row,) = compare_sources("flow", feeds, source, [source])
    assert (row.largest, row.ok) == (0, True)
    assert capfd.readouterr().out == ""


def test_without_polygraphy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.comparator", None)
    with pytest.raises(BackendError, match=r"install it with: pip install 'percoedge\[compare\]'"):
        compared(same, same)
