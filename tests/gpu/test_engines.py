"""Every graph on every GPU backend: exact where it must be, close to the CPU where it need not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, Tally, batches, compare, make_cases
from numpy.typing import NDArray
from reference import answered

from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine, TensorSpec, split_axis
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.onnxruntime.engine import OrtBuffer
from percoedge.export.exact.read import integers_of
from percoedge.runtime.images import read_image

SIZES = {"n": 2, "h": 12, "w": 17, "p": 60, "l": 77}


@pytest.fixture(scope="module")
def cases(bundle: Bundle) -> list[Case]:
    model = integers_of(bundle)
    return answered(model, make_cases(bundle.codec.codebook_size))


def feed(bundle: Bundle, spec: TensorSpec) -> NDArray[Any]:
    """Something like what the codec feeds: a photo, tokens, noise."""
    shape = tuple(
        axis if isinstance(axis, int) else split_axis(axis)[0] * SIZES[split_axis(axis)[1]]
        for axis in spec.shape
    )
    rng = np.random.default_rng(3)
    if spec.dtype == "uint8":
        photo = read_image(shipped_photo()).pixels[: shape[1], : shape[2]]
        return np.stack([photo, photo[::-1]])
    if spec.name == "positions":
        return rng.permutation(SIZES["h"] * SIZES["w"])[: shape[0]].astype(np.int32)
    if spec.dtype == "int32":
        return rng.integers(0, bundle.codec.codebook_size, shape, np.int32)
    if shape == (1,):
        return np.array([{"t": 0.5, "dt": 0.25}.get(spec.name, 2.0)], np.float32)
    return rng.standard_normal(shape, np.float32).astype(spec.dtype)


def feeds_of(bundle: Bundle, engine: Engine) -> dict[str, Any]:
    return {spec.name: feed(bundle, spec) for spec in engine.inputs}


def test_the_entropy_graph_is_exact(backend: Backend, bundle: Bundle, cases: list[Case]) -> None:
    tally = Tally(backend.name)
    with backend.load(bundle.read("entropy", backend.variant)) as engine:

        def run(tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[Any]:
            return np.asarray(engine.run({"tokens": tokens, "positions": positions})["weights"])

        for case in cases:
            for _ in range(3):  # as it is, captured, and launched again
                compare(run, case, batches(len(case.tokens)), backend.name, tally)
    assert tally.runs > 0
    assert tally.wrong == []


@pytest.mark.parametrize("kind", ["encoder", "flow", "flow_guided", "decoder"])
def test_float_graphs_are_close_to_the_cpu(backend: Backend, bundle: Bundle, kind: str) -> None:
    if kind not in bundle.kinds:
        pytest.skip(f"the bundle has no graph {kind!r}")
    with OnnxRuntimeBackend().load(bundle.read(kind, "fp32")) as cpu:
        feeds = feeds_of(bundle, cpu)
        wanted = cpu.run(feeds)
    with backend.load(bundle.read(kind, backend.variant)) as engine:
        results = engine.run(feeds)
    for spec in engine.outputs:
        got, want = (np.asarray(each[spec.name]).astype(float) for each in (results, wanted))
        if spec.dtype == "int32":  # tokens at the border of two codebook vectors
            assert (got != want).mean() < 0.01
        elif spec.dtype == "uint8":
            assert abs(got - want).mean() < 1
        else:
            assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


@pytest.mark.parametrize("kind", ["encoder", "entropy", "flow", "decoder"])
def test_every_run_gives_the_same_bits(backend: Backend, bundle: Bundle, kind: str) -> None:
    """The first run is plain, the second is captured, the others are launches of that."""
    with backend.load(bundle.read(kind, backend.variant)) as engine:
        feeds = feeds_of(bundle, engine)
        other = {
            spec.name: feed[:1].copy() if spec.shape[:1] == ("n",) else feed
            for spec, feed in zip(engine.inputs, feeds.values(), strict=True)
        }
        first = engine.run(feeds)
        for count in range(4):
            engine.run(other, on_device=count % 2 == 0)
            again = engine.run(feeds, on_device=count % 2 == 1)
            for name, want in first.items():
                np.testing.assert_array_equal(np.asarray(again[name]), want)


def test_a_chain_on_the_device_gives_what_one_over_the_host_gives(
    backend: Backend, bundle: Bundle
) -> None:
    with (
        backend.load(bundle.read("flow", backend.variant)) as flow,
        backend.load(bundle.read("decoder", backend.variant)) as decoder,
    ):
        ends, pictures = [], []
        for on_device in (True, False):
            feeds, held = feeds_of(bundle, flow), []
            for _ in range(5):
                feeds["x"] = flow.run(feeds, on_device=on_device)["x_next"]
                held.append(feeds["x"])
            assert isinstance(held[-1], np.ndarray) != on_device
            if isinstance(held[-1], OrtBuffer):
                assert held[-1].value.device_name() == "cuda"
            pictures.append(np.asarray(decoder.run({"x": held[-1]})["image"]))
            ends.append([np.asarray(latent) for latent in held])
    for there, here in zip(*ends, strict=True):
        np.testing.assert_array_equal(there, here)
    np.testing.assert_array_equal(*pictures)
