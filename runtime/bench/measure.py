"""Decodes one stream again and again and takes its time apart.

The latency of an iteration is that of ``Codec.decode`` (or ``decode_batch``): from bytes in memory
to images in memory. Writing the images as PNG is timed beside it and not counted into it.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from percoedge.bitstream.container import MAX_SIDE, unpack
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend
from percoedge.engines.processors import shared_threads
from percoedge.engines.selection import runs_on_gpu, select
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.cuda import ENQUEUE
from percoedge.errors import EngineError
from percoedge.runtime.bench.alone import graphs_alone
from percoedge.runtime.bench.case import Case, Limits
from percoedge.runtime.bench.ceiling import ceiling_of
from percoedge.runtime.bench.lanes import Lanes
from percoedge.runtime.bench.meters import GpuWatch, find_meter, peak_host_bytes
from percoedge.runtime.bench.probe import Call, Probe, stages_of
from percoedge.runtime.bench.rates import graph_runs
from percoedge.runtime.codec import Codec
from percoedge.runtime.images import image_bytes

__all__ = ["encode_photo", "measure", "measure_on"]

_WRITE = "write png"
_TRACED_DECODES = 10
_LEAST_ENCODES = 3
_MOST_SECONDS_ALONE = 0.5  # for a graph by itself


def encode_photo(case: Case) -> bytes:
    """The shipped photo in the size of a case, encoded with its bundle on its backend."""
    with Codec.load(
        case.bundle, case.backend, threads=case.threads, low_memory=case.low_memory
    ) as codec:
        return codec.encode(_photo(case), max_pixels=MAX_SIDE**2)


def measure(case: Case, limits: Limits, stream: bytes) -> dict[str, Any]:
    """Measure a case in this process. Raises what opening and decoding raise."""
    bundle = Bundle.open(case.bundle)
    threads = case.threads
    if threads is None and case.streams > 1:  # as ``decode FOLDER`` does
        threads = shared_threads(case.streams)
    backend = select(case.backend, bundle=bundle, threads=threads)
    return measure_on(bundle, backend, case, limits, stream)


def measure_on(
    bundle: Bundle,
    backend: Backend,
    case: Case,
    limits: Limits,
    stream: bytes,
) -> dict[str, Any]:
    """Measure a case on a backend that is there; values are such that JSON can hold.

    Where it has several streams, latency and stages are those of one decode among the others,
    images a second those of all. None is what is unknown: this machine or backend does not tell it.
    """
    probe = Probe(backend)
    schedule = unpack(stream).header.schedule or bundle.codec.schedule
    on_gpu = runs_on_gpu(backend.name)
    meter = find_meter(on_gpu)
    rows: list[dict[str, float]] = []
    starts: list[float] = []
    latencies: list[float] = []
    with Codec(bundle, probe, low_memory=case.low_memory) as codec:
        first_ms, _, calls = _once(codec, probe, case, stream, schedule)
        lanes = Lanes(codec, case.streams - 1, lambda c: _decode(c, case, stream))
        with lanes, GpuWatch(on_gpu) as watch:
            ends = time.perf_counter() + limits.warmup_seconds
            while time.perf_counter() < ends:
                _once(codec, probe, case, stream, schedule)
            gc.collect()
            if meter is not None:
                meter.start()
            began = time.perf_counter()
            while len(rows) < limits.iterations or time.perf_counter() - began < limits.seconds:
                starts.append((time.perf_counter() - began) * 1000)
                latency_ms, stages, calls = _once(codec, probe, case, stream, schedule)
                latencies.append(latency_ms)
                rows.append(stages)
            ended = time.perf_counter()
            joules = None if meter is None else meter.stop()
            peak = peak_host_bytes()
        device_ms = _device_times(backend, lambda: _once(codec, probe, case, stream, schedule)[0])
        probe.keeps_feeds = limits.layers
        if limits.layers:
            _once(codec, probe, case, stream, schedule)
    cuda_graphs = _cuda_graphs(backend)
    encode_rows: list[dict[str, float]] = []
    with contextlib.suppress(EngineError):  # boards that only decode have no engine file of it
        encode_rows = _encode_times(bundle, probe, case, limits, schedule)
    alone = None
    if limits.layers:
        most = min(limits.seconds, _MOST_SECONDS_ALONE)
        alone = graphs_alone(bundle, backend, probe.feeds, most)
    images = case.batch * (len(latencies) + lanes.done_between(began, ended))
    seconds = ended - began
    if case.streams == 1:
        seconds = sum(latencies) / 1000  # with no PNG among the decodes
    medians = _medians(rows)
    runs = graph_runs(bundle, backend.variant, medians, calls, device_ms)
    ceiling = ceiling_of(backend, int8=any(run.int8_ops for run in runs))
    return {
        "backend": backend.name,
        "variant": backend.variant,
        "stream_bytes": len(stream),
        "iterations": len(latencies),
        "first_ms": round(first_ms, 3),
        "latency_ms": _summary(latencies),
        "images_per_s": round(images / seconds, 4),
        "stages_ms": medians,
        "encode_ms": _summary([sum(row.values()) for row in encode_rows]) if encode_rows else None,
        "encode_stages_ms": _medians(encode_rows) if encode_rows else None,
        "device_ms": device_ms,
        "cuda_graphs": cuda_graphs,
        "outside_engines": _outside(calls, medians, statistics.median(latencies)),
        "peak_host_bytes": peak,
        "peak_device_bytes": watch.peak_bytes,
        "gpu": _gpu_state(backend, watch),
        "joules_per_image": None if joules is None else round(joules / images, 6),
        "energy_source": None if joules is None or meter is None else meter.source,
        "ceiling": ceiling.record(),
        "graphs": [run.record(ceiling) for run in runs],
        "alone": alone,
        "latencies_ms": [round(latency, 3) for latency in latencies],
        "times": [
            {"start_ms": round(start, 3), "latency_ms": round(latency, 3), "stages_ms": row}
            for start, latency, row in zip(starts, latencies, map(_rounded, rows), strict=True)
        ],
    }


def _photo(case: Case) -> Image.Image:
    with Image.open(shipped_photo()) as photo:
        return photo.convert("RGB").resize((case.width, case.height))


def _decode(codec: Codec, case: Case, stream: bytes) -> list[Image.Image]:
    if case.batch == 1:
        return [codec.decode(stream, steps=case.steps, max_pixels=MAX_SIDE**2)]
    return codec.decode_batch([stream] * case.batch, steps=case.steps, max_pixels=MAX_SIDE**2)


def _once(
    codec: Codec, probe: Probe, case: Case, stream: bytes, schedule: str
) -> tuple[float, dict[str, float], list[Call]]:
    """One decode: its latency, its stages with the writing behind them, and its calls.

    Nothing is written while others decode: it would be a lane that is idle.
    """
    probe.calls.clear()
    began = time.perf_counter()
    images = _decode(codec, case, stream)
    latency_ms = (time.perf_counter() - began) * 1000
    calls = list(probe.calls)
    stages = stages_of(codec.timings_ms, calls, schedule, latency_ms)
    if case.streams == 1:
        began = time.perf_counter()
        for image in images:
            image_bytes(np.asarray(image), "PNG")
        stages[_WRITE] = (time.perf_counter() - began) * 1000
    return latency_ms, stages, calls


def _encode_times(
    bundle: Bundle, backend: Backend, case: Case, limits: Limits, schedule: str
) -> list[dict[str, float]]:
    """Milliseconds of the stages of encoding one photo from pixels in memory, run by run.

    They sum up to what it takes.
    """
    photo = _photo(case)
    rows: list[dict[str, float]] = []
    with Codec(bundle, backend, low_memory=case.low_memory) as codec:
        codec.encode(photo, schedule=schedule, max_pixels=MAX_SIDE**2)
        ends = time.perf_counter() + limits.seconds
        while len(rows) < _LEAST_ENCODES or (
            len(rows) < limits.iterations and time.perf_counter() < ends
        ):
            began = time.perf_counter()
            codec.encode(photo, schedule=schedule, max_pixels=MAX_SIDE**2)
            latency_ms = (time.perf_counter() - began) * 1000
            stages = codec.timings_ms
            rows.append({**stages, "other": latency_ms - sum(stages.values())})
    return rows


def _device_times(backend: Backend, decode: Callable[[], float]) -> dict[str, float] | None:
    """What a decode is to the GPU, medians: copies, compute, idle; and to the host: queueing.

    Of further decodes, since events slow short ones down. None where the backend has no events:
    on a CPU, and in ONNX Runtime.
    """
    if not isinstance(backend, TensorRtBackend):
        return None
    rows = []
    for _ in range(_TRACED_DECODES):
        with backend.trace() as times_ms:
            latency_ms = decode()
        busy_ms = sum(time_ms for name, time_ms in times_ms.items() if name != ENQUEUE)
        rows.append({**times_ms, "idle": latency_ms - busy_ms})
    return _medians(rows)


def _cuda_graphs(backend: Backend) -> dict[str, Any] | None:
    """Of all runs so far how many launched a captured graph, and why others were not captured.

    None where that is not ours to say: on a CPU, in ONNX Runtime, and in TensorRT-RTX, which
    captures by itself.
    """
    if not isinstance(backend, TensorRtBackend) or backend.captures is None:
        return None
    return asdict(backend.captures)


def _gpu_state(backend: Backend, watch: GpuWatch) -> dict[str, Any] | None:
    """Clocks, power and temperature during the decodes, and the multiprocessors behind them."""
    state = watch.record()
    if not isinstance(backend, TensorRtBackend):
        return state
    return {"multiprocessors": backend.gpu.multiprocessors, **(state or {})}


def _outside(calls: Sequence[Call], medians: Mapping[str, float], median_ms: float) -> float | None:
    """Share of a decode that no engine works: container, range coder, copies, Python.

    None where calls return before their work is done, so that waiting looks like it.
    """
    if any(call.queued for call in calls):
        return None
    names = ("container", "range coder", "noise", "flow, between steps", "image", "other")
    return round(sum(medians.get(name, 0.0) for name in names) / median_ms, 5)


def _summary(times: Sequence[float]) -> dict[str, float]:
    """Percentiles, mean and standard deviation of milliseconds."""
    quantiles = np.percentile(times, (50, 90, 95, 99))
    values = dict(zip(("p50", "p90", "p95", "p99"), map(float, quantiles), strict=True))
    values |= {"mean": statistics.fmean(times), "sd": statistics.stdev(times) if times[1:] else 0.0}
    return _rounded({**values, "min": min(times), "max": max(times)})


def _medians(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return _rounded({name: statistics.median(row[name] for row in rows) for name in rows[0]})


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}
