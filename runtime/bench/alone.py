"""Each graph of a decode by itself, run after run on the feeds of its last call there.

What a decode does between its calls is left out, so this is what trtexec and its like measure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Buffer, Engine, check_tensors
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.onnxruntime.layers import node_runs
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.binding import COMPUTE
from percoedge.engines.tensorrt.cuda import ENQUEUE
from percoedge.engines.tensorrt.engine import TensorRtEngine
from percoedge.engines.tiling import graph_of

__all__ = ["graphs_alone"]

_WARM_UP, _LEAST_RUNS, _LAYER_RUNS = 3, 5, 10
_COPIES = {"host to device": "host_to_device_ms", "device to host": "device_to_host_ms"}


def graphs_alone(
    bundle: Bundle,
    backend: Backend,
    feeds_of: Mapping[str, Mapping[str, Buffer]],
    seconds: float,
) -> list[dict[str, Any]]:
    """A record for each kind of graph in ``feeds_of``, measured for about so many seconds.

    ``runs_per_s``: of runs in a row that leave their outputs on the device. ``latency_ms``: from
    feeds to outputs on the host. Where the backend tells them apart (TensorRT): ``compute_ms`` on
    the GPU, what the host is busy with queueing, and copies. ``layers``: milliseconds
    in a run by the library's name; None in ONNX Runtime on a GPU, which tells those of the host.
    ``engine``: what TensorRT says of its layers. Raises EngineError.
    """
    return [_alone(bundle, backend, kind, feeds, seconds) for kind, feeds in feeds_of.items()]


def _alone(
    bundle: Bundle, backend: Backend, kind: str, feeds: Mapping[str, Buffer], seconds: float
) -> dict[str, Any]:
    graph = graph_of(bundle, kind, backend.variant)
    with backend.load(graph) as engine:
        sizes = check_tensors(kind, engine.inputs, feeds)
        for _ in range(_WARM_UP):
            engine.run(feeds)
        rows = _rows(backend, engine, feeds, seconds / 2)
        record: dict[str, Any] = {
            **{"graph": kind, "sizes": sizes, "runs": len(rows)},
            "runs_per_s": round(_runs_per_s(engine, feeds, seconds / 2), 2),
            "latency_ms": _percentiles([row["latency"] for row in rows]),
            **dict.fromkeys(("compute_ms", "enqueue_ms", *_COPIES.values())),
            **{"layers": None, "engine": None},
        }
        if (compute := f"{COMPUTE}{kind}") in rows[0]:
            record["compute_ms"] = _percentiles([row[compute] for row in rows])
            record["enqueue_ms"] = _percentiles([row[ENQUEUE] for row in rows])
            for name, key in _COPIES.items():
                times = [row[name] for row in rows if name in row]
                record[key] = _percentiles(times) if times else None
        if isinstance(engine, TensorRtEngine):
            layers = engine.layers(feeds, _LAYER_RUNS)
            record["layers"], record["engine"] = _rounded(layers.times_ms), layers.described
    if isinstance(backend, OnnxRuntimeBackend) and backend.device == "cpu":
        record["layers"] = _rounded(_nodes(backend, bundle, kind, feeds))
    return record


def _rows(
    backend: Backend, engine: Engine, feeds: Mapping[str, Buffer], seconds: float
) -> list[dict[str, float]]:
    """Milliseconds of single runs, each fetched: the latency, and the parts that a GPU tells."""
    rows: list[dict[str, float]] = []
    ends = time.perf_counter() + seconds
    while len(rows) < _LEAST_RUNS or time.perf_counter() < ends:
        began = time.perf_counter()
        engine.run(feeds)
        rows.append({"latency": (time.perf_counter() - began) * 1000})
    if isinstance(backend, TensorRtBackend):  # again, as events slow short runs down
        for row in rows:
            with backend.trace() as times_ms:
                engine.run(feeds)
            row |= times_ms
    return rows


def _runs_per_s(engine: Engine, feeds: Mapping[str, Buffer], seconds: float) -> float:
    count, began = 0, time.perf_counter()
    while count < _LEAST_RUNS or time.perf_counter() - began < seconds:
        outputs = engine.run(feeds, on_device=True)
        count += 1
    np.asarray(next(iter(outputs.values())))  # the last is done, so all are
    return count / (time.perf_counter() - began)


def _nodes(
    backend: OnnxRuntimeBackend, bundle: Bundle, kind: str, feeds: Mapping[str, Buffer]
) -> dict[str, float]:
    """Mean milliseconds of each node in a run."""
    hosts = {name: np.asarray(feed) for name, feed in feeds.items()}
    spent_us: dict[str, float] = {}
    for node in node_runs(backend, graph_of(bundle, kind, backend.variant), hosts, _LAYER_RUNS):
        name = f"{node.name} ({node.operator})"
        spent_us[name] = spent_us.get(name, 0.0) + node.host_us
    return {name: us / _LAYER_RUNS / 1000 for name, us in spent_us.items()}


def _percentiles(times_ms: list[float]) -> dict[str, float]:
    low, high = np.percentile(times_ms, (50, 99))
    return {"p50": round(float(low), 4), "p99": round(float(high), 4)}


def _rounded(times_ms: Mapping[str, float]) -> dict[str, float]:
    return {name: round(time_ms, 4) for name, time_ms in times_ms.items()}
