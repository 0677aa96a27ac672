"""How fast each graph of a decode ran, and what share that is of what the device reaches.

Operations and weights are those that the bundle's manifest states; without them a rate is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from percoedge.engines.bundle import Bundle
from percoedge.engines.tensorrt.binding import COMPUTE
from percoedge.runtime.bench.ceiling import Ceiling
from percoedge.runtime.bench.probe import Call

__all__ = ["GraphRun", "graph_runs"]

_FLOW = ("flow step", "flow, queueing", "flow, waiting")


@dataclass(frozen=True)
class GraphRun:
    """All calls of a graph in one decode: how many, their time, and what they take together.

    Operations are of matrix products and convolutions, two for each multiply-accumulate, those on
    bytes by themselves. ``weight_bytes`` and ``io_bytes`` (inputs and outputs) must be moved once
    by any backend. None for a graph whose cost the manifest does not state.
    """

    kind: str
    calls: int
    time_ms: float
    float_ops: int | None = None
    int8_ops: int | None = None
    weight_bytes: int | None = None
    io_bytes: int | None = None

    def record(self, ceiling: Ceiling) -> dict[str, Any]:
        """As JSON can hold it, with the rate and its shares; None is what is unknown.

        ``bound_ms``: what the ceiling allows at best, be it for products or for memory traffic.
        """
        record: dict[str, Any] = {
            **{"graph": self.kind, "calls": self.calls, "time_ms": round(self.time_ms, 3)},
            **{"float_ops": self.float_ops, "int8_ops": self.int8_ops},
            **{"weight_bytes": self.weight_bytes, "io_bytes": self.io_bytes},
            **{"ops_per_s": None, "bound_ms": None},
            **{"fraction_of_bound": None, "fraction_of_matrix_rate": None},
        }
        if (
            self.float_ops is None
            or self.int8_ops is None
            or self.weight_bytes is None
            or self.io_bytes is None
            or self.time_ms <= 0
        ):
            return record
        record["ops_per_s"] = round((self.float_ops + self.int8_ops) / self.time_ms * 1000)
        rates = (self.float_ops, ceiling.float_ops_per_s), (self.int8_ops, ceiling.int8_ops_per_s)
        known = [(count, rate) for count, rate in rates if count and rate is not None]
        if ceiling.bytes_per_s is None or len(known) < sum(count > 0 for count, _ in rates):
            return record
        matrix_ms = sum(count / rate for count, rate in known) * 1000
        moving_ms = (self.weight_bytes + self.io_bytes) / ceiling.bytes_per_s * 1000
        bound_ms = max(matrix_ms, moving_ms)
        record["bound_ms"] = round(bound_ms, 3)
        record["fraction_of_bound"] = round(bound_ms / self.time_ms, 4)
        record["fraction_of_matrix_rate"] = round(matrix_ms / self.time_ms, 4)
        return record


def graph_runs(
    bundle: Bundle,
    variant: str,
    stages_ms: Mapping[str, float],
    calls: Sequence[Call],
    device_ms: Mapping[str, float] | None = None,
) -> list[GraphRun]:
    """Every graph of the bundle that a decode ran, in that order.

    ``variant``: the backend's. ``stages_ms``: of ``stages_of``. ``calls``: of one decode.
    ``device_ms``: what a GPU says, by COMPUTE and kind; stages there end before it is done.
    """
    flow = sum(time_ms for name, time_ms in stages_ms.items() if name.startswith(_FLOW))
    times = {
        "entropy": sum(t for name, t in stages_ms.items() if name.startswith("MIM pass")),
        **{"flow": flow, "flow_guided": flow, "decoder": stages_ms.get("decoder", 0.0)},
    }
    times |= {
        kind: device_ms[f"{COMPUTE}{kind}"]
        for kind in times
        if device_ms is not None and f"{COMPUTE}{kind}" in device_ms
    }
    by_kind = {kind: [call for call in calls if call.kind == kind] for kind in times}
    return [
        _run(bundle, kind, variant, times[kind], of_kind)
        for kind, of_kind in by_kind.items()
        if of_kind
    ]


def _run(
    bundle: Bundle, kind: str, variant: str, time_ms: float, calls: Sequence[Call]
) -> GraphRun:
    graph = bundle.manifest.graphs[kind]
    if graph.cost is None:
        return GraphRun(kind, len(calls), time_ms)
    variant = graph.nearest(variant)
    operations = [graph.cost.operations(variant, call.sizes) for call in calls]
    tensors = [
        (prod(spec.shape_at(call.sizes)), np.dtype(spec.dtype).itemsize)
        for call in calls
        for spec in (*graph.input_specs, *graph.output_specs)
    ]
    return GraphRun(
        kind,
        len(calls),
        time_ms,
        float_ops=sum(floats for floats, _ in operations),
        int8_ops=sum(on_bytes for _, on_bytes in operations),
        weight_bytes=len(calls) * graph.cost.weight_bytes(variant),
        io_bytes=sum(elements * size for elements, size in tensors),
    )
