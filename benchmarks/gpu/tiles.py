"""Part "entropy": the entropy graph on 1 to 32 tiles of tokens at once, by backend.

A 4096x4096 picture has 16 such tiles in each pass. "fetched" has the weights on the host, as the
range coder wants them; "on_device" leaves them on the GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.backends import feeds_for, gpu_backends
from benchmarks.gpu.record import Options, Record
from percoedge.bitstream.schedules import passes
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.selection import runs_on_gpu
from percoedge.engines.tensorrt.backend import TensorRtBackend

_COUNTS = (1, 4, 8, 16, 32)
_ROUNDS = 10


def entropy(record: Record, options: Options) -> None:
    """The last and largest pass of the bundle's schedule; skipped where no backend works."""
    bundle = Bundle.open(options.bundle)
    backends: dict[str, Backend] = {}
    backends |= gpu_backends(record, bundle)
    backends["onnxruntime-cpu"] = OnnxRuntimeBackend()
    for name, backend in backends.items():
        record.attempt(name, _measure, bundle, backend)


def _measure(bundle: Bundle, backend: Backend) -> dict[str, Any]:
    codec = bundle.codec
    side = codec.entropy_tile
    positions = max((len(cells), cells) for cells in passes(codec.schedule, side, side))[0]
    graph = bundle.graph("entropy", backend.variant)
    found: dict[str, Any] = {"tile": side, "positions": positions}
    wait: Callable[[], object] = int  # nothing: ONNX Runtime returns when all is done
    if isinstance(backend, TensorRtBackend):
        wait = backend.gpu.wait
    with backend.load(graph) as engine:
        one = feeds_for(bundle, graph, {"n": 1, "h": side, "w": side, "p": positions})
        wanted = np.asarray(engine.run(one)["weights"])
        for count in _COUNTS if runs_on_gpu(backend.name) else (1, 4):
            feeds = {**one, "tokens": np.repeat(one["tokens"], count, axis=0)}
            try:
                got = np.asarray(engine.run(feeds)["weights"])
            except Exception as error:
                found[f"{count} tiles"] = {"error": f"{type(error).__name__}: {error}"}
                continue
            found[f"{count} tiles"] = {
                "exact": bool((got == wanted).all()),
                "weights_mib": got.nbytes / (1 << 20),
                "fetched_ms": _median_ms(engine, feeds, False, wait),
                "on_device_ms": _median_ms(engine, feeds, True, wait),
            }
    return found


def _median_ms(
    engine: Engine, feeds: dict[str, Any], on_device: bool, wait: Callable[[], object]
) -> float:
    """Of one run, to where it is done."""
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        engine.run(feeds, on_device=on_device)
        wait()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)
