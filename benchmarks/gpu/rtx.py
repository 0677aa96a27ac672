"""Part "rtx": whether TensorRT-RTX builds a plan for this GPU, deserialises it, and runs it right.

Each graph is built for the GPU at hand ("current") and for every GPU that the library names
("named"): it does not name all that exist, and what it does with another is for this to find out.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine_calls import call_times
from benchmarks.gpu.backends import BATCHES, differences, feeds_for, with_gpu
from benchmarks.gpu.record import Options, Record, Skipped
from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.plans.build import build_plan, stage_graph
from percoedge.engines.plans.cache import PlanCache
from percoedge.engines.plans.profiles import profile_for
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.library import Library, find_library, log_to, supported_targets
from percoedge.errors import BackendError

_NAME, _VARIANT, _ROUNDS = "tensorrt-rtx", "fp16", 50
_SIZES = ((512, 512), (1024, 1024))


def rtx(record: Record, options: Options) -> None:
    """Build, load, run and compare each graph; what fails does not stop the next."""
    try:
        library = find_library(_NAME)
    except BackendError as error:
        raise Skipped(f"needs {_NAME}: {error}") from error
    bundle = Bundle.open(options.bundle)
    record.put("version", library.version)
    record.put("names", supported_targets(library))
    gpu = with_gpu()
    record.put("sm", gpu.sm)
    cache = PlanCache()
    loaded = []
    for label, targets in {"current": (), "named": supported_targets(library)}.items():
        for kind in bundle.kinds:
            name = f"plans/{label}/{kind}"
            works = record.attempt(
                name,
                _try_plan,
                library,
                bundle,
                cache,
                kind,
                targets,
                gpu.sm,
            )
            if works and works["deserialises"] and kind not in loaded:
                loaded.append(kind)
    for kind in loaded:
        record.attempt(f"graphs/{kind}", _run, bundle, cache, kind)


def _try_plan(
    library: Library,
    bundle: Bundle,
    cache: PlanCache,
    kind: str,
    targets: tuple[int, ...],
    sm: int,
) -> dict[str, Any]:
    """Build a plan and load it; one that loads is kept, for this GPU."""
    graph = bundle.manifest.graphs[kind]
    specs = (*graph.input_specs, *graph.output_specs)
    profile = profile_for(kind, specs, bundle.codec, _SIZES, BATCHES)
    began = time.perf_counter()
    with cache.scratch() as folder, tempfile.TemporaryFile("w+") as log:
        staged = stage_graph(bundle.read(kind, _VARIANT), folder)
        plan = folder / "plan"
        try:
            build_plan(staged, profile, library, plan, log, targets=targets)
        finally:
            log.seek(0)
            print(log.read())
        found: dict[str, Any] = {
            "build_seconds": time.perf_counter() - began,
            "bytes": plan.stat().st_size,
        }
        messages = _deserialise(library, plan)
        found |= {"deserialises": not messages, "messages": messages}
        if not messages:
            cache.store(
                plan,
                kind=kind,
                precision=_VARIANT,
                graph_sha256=staged.sha256,
                library=library,
                targets=(sm,),
                profile=profile,
            )
    return found


def _deserialise(library: Library, plan: Path) -> list[str]:
    """Why the library does not take a plan; nothing when it does."""
    messages: list[str] = []
    with log_to(library, lambda *words: messages.append(": ".join(words))) as logger:
        runtime = library.module.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is not None:
        return []
    return messages or ["it gives no reason"]


def _run(bundle: Bundle, cache: PlanCache, kind: str) -> dict[str, Any]:
    """A graph against ONNX Runtime in FP32 on the CPU, and its times by batch."""
    backend = TensorRtBackend(_NAME, cache)
    graph = bundle.graph(kind, _VARIANT)
    sizes = {"n": 1, "h": 32, "w": 32, "p": 128, "l": 77}
    if kind.startswith("flow"):
        sizes |= {"n": 4, "h": bundle.codec.flow_tile, "w": bundle.codec.flow_tile}
    found: dict[str, Any] = {"sizes": sizes}
    began = time.perf_counter()
    with backend.load(graph) as engine:
        found["load_seconds"] = time.perf_counter() - began
        feeds: dict[str, Any] = dict(feeds_for(bundle, graph, sizes))
        began = time.perf_counter()
        got = engine.run(feeds)
        found["first_run_seconds"] = time.perf_counter() - began
        with OnnxRuntimeBackend().load(bundle.graph(kind, "fp32")) as cpu:
            found["against_fp32_on_the_cpu"] = differences(got, cpu.run(feeds))
        again = [engine.run(feeds) for _ in range(3)]
        found["runs_are_the_same"] = all(
            np.array_equal(np.asarray(one[name]), np.asarray(got[name]))
            for one in again
            for name in got
        )
        for batch in BATCHES:
            more: dict[str, Any] = dict(feeds_for(bundle, graph, sizes | {"n": batch * sizes["n"]}))
            found[f"batch {batch}"] = call_times(engine, more, _ROUNDS)
    return found
