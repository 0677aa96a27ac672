"""Engines without models, for tests of the loops that drive engines.

A fake checks its feeds and outputs like a real backend, records every call, and hands out device
buffers that count how often they were brought to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from percoedge.engines.contract import Buffer, Graph, TensorSpec, check_tensors
from percoedge.errors import BackendError

__all__ = ["FakeBackend", "FakeBuffer", "FakeCall", "FakeEngine", "GraphFunction"]

GraphFunction: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Stands in for a graph: arrays by input name -> arrays by output name."""


class FakeBuffer:
    """A buffer on a device that does not exist; ``fetches`` counts conversions to numpy.

    ``begun``: whether it was asked for ahead.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.fetches = 0
        self.begun = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return self._array.dtype

    def begin_fetch(self) -> None:
        """Note that somebody asked for it; see the contract of DeviceBuffer."""
        self.begun = True

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        self.fetches += 1
        return self._array.astype(dtype or self._array.dtype, copy=bool(copy))


@dataclass(frozen=True)
class FakeCall:
    """One run: copies of the feeds, which of them came from the device, and where results went."""

    feeds: dict[str, NDArray[Any]]
    from_device: frozenset[str]
    on_device: bool


class FakeEngine:
    """Runs a function in place of a graph; ``calls`` and ``buffers`` record what went on."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        function: GraphFunction,
        max_batch: int | None = None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.max_batch = max_batch
        self.calls: list[FakeCall] = []
        self.buffers: list[FakeBuffer] = []
        self.closed = False
        self._function = function

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        """Run the function; see the contract of Engine."""
        if self.closed:
            raise BackendError("fake engine is closed; load it again")
        sizes = check_tensors("fake engine: input", self.inputs, feeds)
        if self.max_batch is not None and sizes.get("n", 1) > self.max_batch:
            raise BackendError(f"expected n of at most {self.max_batch}, got {sizes['n']}")
        arrays = {name: _contents(feed).copy() for name, feed in feeds.items()}
        from_device = frozenset(n for n, feed in feeds.items() if not isinstance(feed, np.ndarray))
        self.calls.append(FakeCall(arrays, from_device, on_device))
        results = dict(self._function({name: array.copy() for name, array in arrays.items()}))
        check_tensors("fake engine: output", self.outputs, results, sizes)
        if not on_device:
            return dict(results)
        buffers = {name: FakeBuffer(array) for name, array in results.items()}
        self.buffers += buffers.values()
        return dict(buffers)

    @property
    def fetches(self) -> int:
        """How often outputs left on the device were brought to the host."""
        return sum(buffer.fetches for buffer in self.buffers)

    def close(self) -> None:
        """Refuse further runs; see the contract of Engine."""
        self.closed = True

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


@dataclass
class FakeBackend:
    """A backend whose engines run ``functions[kind]``; ``engines`` lists those loaded, in order.

    ``max_batch``: that of every engine.
    """

    functions: Mapping[str, GraphFunction]
    name: str = "fake"
    variant: str = "fp32"
    max_batch: int | None = None
    engines: list[tuple[str, FakeEngine]] = field(default_factory=list)

    def load(self, graph: Graph) -> FakeEngine:
        """Make an engine of the graph's kind. Raises BackendError where it has no function."""
        if graph.kind not in self.functions:
            raise BackendError(f"expected a function for graph {graph.kind!r}, got none; add it")
        function = self.functions[graph.kind]
        engine = FakeEngine(graph.inputs, graph.outputs, function, self.max_batch)
        self.engines.append((graph.kind, engine))
        return engine


def _contents(feed: Buffer) -> NDArray[Any]:
    """The array of a feed; a fake's own buffer is not brought to the host, so it is not counted."""
    return feed._array if isinstance(feed, FakeBuffer) else np.asarray(feed)
