"""What each layer of an engine takes, by the profiler of the library, and what it is made of."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from percoedge.engines.contract import Buffer
from percoedge.engines.tensorrt.binding import Binding
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.engines.tensorrt.library import Library
from percoedge.errors import BackendError

__all__ = ["Layers", "describe_layers", "measure_layers"]

_WARM_UP = 2


@dataclass(frozen=True)
class Layers:
    """``times_ms``: median by name, in the order in which layers run.

    ``described``: what the library tells of layers and bindings, as its JSON has it.
    """

    times_ms: Mapping[str, float]
    described: Any


def measure_layers(
    library: Library,
    gpu: Gpu,
    binding: Binding,
    feeds: Mapping[str, Buffer],
    runs: int,
) -> dict[str, float]:
    """Median milliseconds of each layer over ``runs`` runs of a binding that captures nothing.

    Of a layer that runs several times in a run they are added up. Raises BackendError.
    """
    binding.upload(feeds)
    for _ in range(_WARM_UP):
        binding.execute()
    gpu.wait()
    profiler = _make_profiler(library)
    binding.context.profiler = profiler
    rows = []
    for _ in range(runs):
        profiler.times_ms = {}
        binding.execute()
        gpu.wait()
        rows.append(profiler.times_ms)
    if not rows[0]:
        raise BackendError(f"{library.name} {library.version} reports no layers")
    return {name: statistics.median(row.get(name, 0.0) for row in rows) for name in rows[0]}


def describe_layers(trt: Any, engine: Any, context: Any) -> Any:
    """What the library's inspector tells of an engine in this context; None where it does not."""
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    try:
        return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except ValueError:
        return None


def _make_profiler(library: Library) -> Any:
    """A profiler of the library that adds up milliseconds by name in ``times_ms``."""
    base = library.module.IProfiler

    def create(self: Any) -> None:
        base.__init__(self)
        self.times_ms = {}

    def report(self: Any, name: str, time_ms: float) -> None:
        self.times_ms[name] = self.times_ms.get(name, 0.0) + time_ms

    return type("Profiler", (base,), {"__init__": create, "report_layer_time": report})()
