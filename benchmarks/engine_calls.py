"""The calls that a decode makes of its engines, made again in a row: what they take without Python.

On a GPU, a row of calls also tells how long the host is busy with each, while the device computes.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from percoedge import Codec
from percoedge.bitstream.container import unpack
from percoedge.bitstream.rangecoder import TokenDecoder
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine, Graph

__all__ = ["Recorder", "call_times", "engine_times"]


class Recorder:
    """A backend that notes every call of its engines: graph, engine, feeds and outputs."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.variant = backend.name, backend.variant
        self.calls: list[tuple[str, Engine, dict[str, Any], dict[str, Any]]] = []
        self._backend = backend

    def load(self, graph: Graph) -> Any:
        """An engine that does what the backend's does; see Backend."""
        engine = self._backend.load(graph)

        def run(feeds: dict[str, Any], *, on_device: bool = False) -> dict[str, Any]:
            outputs = engine.run(feeds, on_device=on_device)
            self.calls.append((graph.kind, engine, dict(feeds), outputs))
            return outputs

        ends = {name: getattr(engine, name) for name in ("inputs", "outputs", "max_batch")}
        return SimpleNamespace(run=run, close=engine.close, **ends)


def call_times(engine: Engine, feeds: dict[str, Any], rounds: int) -> dict[str, float]:
    """Microseconds of one run in a row of many, and how long the host is busy with it."""
    for _ in range(3):
        last = engine.run(feeds, on_device=True)
    np.asarray(next(iter(last.values())))
    busy = []
    began = time.perf_counter()
    for _ in range(rounds):
        called = time.perf_counter()
        last = engine.run(feeds, on_device=True)
        busy.append(time.perf_counter() - called)
    np.asarray(next(iter(last.values())))
    total = time.perf_counter() - began
    return {"run_us": round(1e6 * total / rounds, 1), "host_us": round(1e6 * min(busy), 1)}


def engine_times(
    backend: Backend, bundle: Bundle, data: bytes, steps: int, decode_ms: float, rounds: int
) -> dict[str, Any]:
    """Times of the last call of every graph in a decode, and what is left of ``decode_ms``.

    ``python_share``: of that time, what is neither engines nor range coder.
    """
    recorder = Recorder(backend)
    with Codec(bundle, recorder) as codec:
        codec.decode(data, steps=steps)
        calls = list(recorder.calls)
        last: dict[str, dict[str, float]] = {}
        spent_ms = 0.0
        for kind, engine, feeds, _ in calls:
            last[kind] = call_times(engine, feeds, rounds)
            spent_ms += last[kind]["run_us"] / 1000
    coder = TokenDecoder(unpack(data).tokens)
    began = time.perf_counter()
    for _, _, _, outputs in calls:
        if "weights" in outputs:
            coder.decode(np.asarray(outputs["weights"])[0])
    spent_ms += (time.perf_counter() - began) * 1000
    return {"calls": last, "python_share": round(1 - spent_ms / decode_ms, 4)}
