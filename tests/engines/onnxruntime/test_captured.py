"""Tensors at fixed addresses, as CUDA graphs need them; with the CPU in the place of the GPU."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime import captured
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.onnxruntime.captured import CapturedRuns
from percoedge.engines.onnxruntime.engine import OnnxRuntimeEngine, OrtBuffer


class Session:
    """A real session in front of which runs are noted: the graph's number, and the binding."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.runs: list[tuple[str, int]] = []
        self.io_binding = session.io_binding
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        number = options.get_run_config_entry("gpu_graph_id")
        self.runs.append((number, id(binding)))
        self._session.run_with_iobinding(binding, options)


@pytest.fixture
def engine(bundle: Bundle) -> OnnxRuntimeEngine:
    """The flow, as on a GPU whose name is "cpu"."""
    source = bundle.read("flow", "fp32")
    session = Session(OnnxRuntimeBackend(threads=1).load(source)._session)
    return OnnxRuntimeEngine(onnxruntime, session, source, "graph 'flow'", ("cpu", 0), True)


def latents(n: int, h: int = 2, w: int = 3, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(-8, 9, (n, 4, 2 * h, 2 * w)).astype(np.float32),
        "tokens": rng.integers(0, 4, (n, h, w)).astype(np.int32),
        "t": np.array([0.5], np.float32),
        "dt": np.array([0.25], np.float32),
    }


def check(engine: OnnxRuntimeEngine, toy: Any, feeds: dict[str, NDArray[Any]]) -> NDArray[Any]:
    out = engine.run(feeds, on_device=True)["x_next"]
    want = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
    np.testing.assert_allclose(np.asarray(out), want, rtol=1e-6, atol=1e-6)
    return np.asarray(out)


def test_every_shape_has_its_graph_and_its_addresses(engine: OnnxRuntimeEngine, toy: Any) -> None:
    for seed in range(3):
        for n in (1, 3):
            check(engine, toy, latents(n, seed=seed))
    runs = engine._session.runs
    assert [number for number, _ in runs] == ["1", "2"] * 3
    assert len(set(runs)) == 2


def test_outputs_are_the_callers_own(engine: OnnxRuntimeEngine, toy: Any) -> None:
    first = check(engine, toy, latents(1))
    kept = first.copy()
    check(engine, toy, latents(1, seed=1))
    np.testing.assert_array_equal(first, kept)
    feeds = latents(1)
    feeds["x"] = np.asfortranarray(feeds["x"])
    check(engine, toy, {**feeds, "x": first})  # what came out may go in
    check(engine, toy, feeds)


def test_threads_take_turns(engine: OnnxRuntimeEngine, toy: Any) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for _ in range(20):
                check(engine, toy, latents(1, seed=seed))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_one_shape_too_many_runs_without_a_graph(
    engine: OnnxRuntimeEngine, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "_MAX_SHAPES", 1)
    for n in (1, 2, 1, 2):
        check(engine, toy, latents(n))
    assert [number for number, _ in engine._session.runs] == ["1", "-1", "1", "-1"]


def test_close_frees_what_was_recorded(engine: OnnxRuntimeEngine, toy: Any) -> None:
    check(engine, toy, latents(1))
    assert isinstance(engine._captured, CapturedRuns)
    engine.close()
    assert engine._captured is None


def test_a_chain_stays_where_it_is(engine: OnnxRuntimeEngine, toy: Any) -> None:
    """Each result is one of its own, whatever runs later."""
    feeds: dict[str, Any] = latents(1)
    want, held, wanted = feeds["x"], [], []
    for _ in range(3):
        feeds["x"] = engine.run(feeds, on_device=True)["x_next"]
        want = toy.flow_reference(want, feeds["tokens"], 0.5, 0.25)
        assert isinstance(feeds["x"], OrtBuffer)
        held.append(feeds["x"])
        wanted.append(want)
    for buffer, want in zip(held, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(buffer), want, rtol=1e-5, atol=1e-5)
    host = engine.run(feeds)["x_next"]
    assert isinstance(host, np.ndarray)
