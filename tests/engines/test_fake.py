"""Fakes keep the contract, and record what the loops did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine, TensorSpec
from percoedge.engines.fake import FakeBackend, FakeBuffer, FakeEngine
from percoedge.errors import BackendError

X, Y = TensorSpec("x", "float32", ("n",)), TensorSpec("y", "float32", ("n",))


def double(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {"y": feeds["x"] * np.float32(2)}


def test_calls_are_recorded_by_value() -> None:
    engine = FakeEngine((X,), (Y,), double)
    feed = np.ones(2, np.float32)
    np.testing.assert_array_equal(engine.run({"x": feed})["y"], [2, 2])
    feed[:] = 9
    (call,) = engine.calls
    np.testing.assert_array_equal(call.feeds["x"], [1, 1])
    assert (call.on_device, call.from_device) == (False, frozenset())


def test_what_stays_on_the_device_is_fetched_once_asked_for() -> None:
    first, second = FakeEngine((X,), (Y,), double), FakeEngine((X,), (Y,), double)
    middle = first.run({"x": np.ones(2, np.float32)}, on_device=True)["y"]
    assert isinstance(middle, FakeBuffer)
    end = second.run({"x": middle}, on_device=True)["y"]
    assert second.calls[0].from_device == {"x"}
    assert first.fetches == second.fetches == 0
    np.testing.assert_array_equal(np.asarray(end), [4, 4])
    assert (first.fetches, second.fetches) == (0, 1)


def test_feeds_and_outputs_are_checked() -> None:
    with pytest.raises(BackendError, match="input 'x': expected float32"):
        FakeEngine((X,), (Y,), double).run({"x": np.ones(2)})
    longer = FakeEngine((X,), (Y,), lambda feeds: {"y": np.zeros(3, np.float32)})
    with pytest.raises(BackendError, match="output 'y': axis 0 .* expected 2"):
        longer.run({"x": np.ones(2, np.float32)})


def test_a_closed_engine_does_not_run() -> None:
    with FakeEngine((X,), (Y,), double) as engine:
        pass
    with pytest.raises(BackendError, match="closed"):
        engine.run({"x": np.ones(2, np.float32)})


def test_a_backend_loads_functions(bundle: Bundle) -> None:
    fake = FakeBackend({"encoder": lambda feeds: {"tokens": np.zeros((1, 2, 3), np.int32)}})
    backend: Backend = fake
    engine: Engine = backend.load(bundle.read("encoder", backend.variant))
    tokens = engine.run({"image": np.zeros((1, 8, 12, 3), np.uint8)})["tokens"]
    assert tokens.shape == (1, 2, 3)
    assert [kind for kind, _ in fake.engines] == ["encoder"]
    with pytest.raises(BackendError, match="function for graph 'flow'"):
        backend.load(bundle.read("flow", "fp32"))
