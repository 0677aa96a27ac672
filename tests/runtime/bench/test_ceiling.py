"""What a backend reaches at best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from percoedge.engines.contract import Backend, Buffer, Engine, Graph
from percoedge.engines.selection import select
from percoedge.runtime.bench.ceiling import measure_ceiling


@pytest.mark.slow
def test_the_ceiling_of_a_real_backend() -> None:
    ceiling = measure_ceiling(select("onnxruntime-cpu", threads=1), int8=True, seconds=0)
    assert ceiling.dtype == "float32"
    assert ceiling.float_ops_per_s is not None
    assert ceiling.int8_ops_per_s is not None
    assert ceiling.bytes_per_s is not None
    assert min(ceiling.float_ops_per_s, ceiling.int8_ops_per_s) > 1e8
    assert ceiling.bytes_per_s > 1e7


@dataclass
class Places:
    """A backend that notes in which memory the outputs of its last engine lie."""

    backend: Backend
    name: str = "onnxruntime-cpu"
    variant: str = "int8"
    engine: Any = None
    found: list[int] = field(default_factory=list)

    def load(self, graph: Graph) -> Engine:
        self.engine, self.found = self.backend.load(graph), []
        return self

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        outputs: dict[str, Buffer] = self.engine.run(feeds, on_device=on_device)
        self.found.append(np.asarray(outputs["y"]).ctypes.data)
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *details: object) -> None:
        self.engine.close()


@pytest.mark.slow
def test_memory_traffic_is_not_that_of_new_pages() -> None:
    """The last passes write into memory that an earlier one has written, and the best counts."""
    places = Places(select("onnxruntime-cpu", threads=1))
    measure_ceiling(places, seconds=0)
    assert places.found[-1] in places.found[:-1]
