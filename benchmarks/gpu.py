"""Decode time on an NVIDIA GPU against PyTorch eager FP16 and torch.compile, in the same run.

    python -m benchmarks.gpu [--backend tensorrt-rtx] [--sd3 BUNDLE] [--rounds 20] [--save NAME]

Measured for every bundle: flow and decoder together, from noise and tokens to pixels on the host,
at 1 and 4 steps of a 512x512 picture; for ``tiny`` also a whole decode with its entropy coding. All
contenders take turns. Their FLOPs (of matrix products and convolutions, counted by PyTorch) over
time are given as a share of what the device reaches in one large FP16 matrix product. What is left
of a whole decode besides its engines and the range coder is Python: its share is given too. BUNDLE
has random weights or trained ones: time does not depend on them. Missing plans are built first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import report
from benchmarks.speed import EagerCodec, interleaved, summary
from percoedge import Codec
from percoedge.bitstream.container import unpack
from percoedge.bitstream.rangecoder import TokenDecoder
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine, Graph
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.selection import BACKENDS
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.engines.tensorrt.library import LIBRARIES
from percoedge.errors import BackendError
from percoedge.runtime.cli.main import main as percoedge
from percoedge.runtime.flow import decode_latent, noise, sample

PACKAGES = ("tensorrt", "tensorrt-rtx", "cuda-core", "cuda-bindings", "onnxruntime-gpu")
STEPS = (1, 4)


def matmul_tflops(side: int = 8192, rounds: int = 20) -> float:
    """Best rate of an FP16 matrix product: the ceiling for everything below."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.float16) for _ in range(2))
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return float(2 * side**3 / min(times) / 1e9)


def backend_for(name: str, bundle: Bundle, size: int) -> Backend:
    """The backend, with plans for this bundle."""
    if name not in LIBRARIES:
        return OnnxRuntimeBackend(name)
    backend = TensorRtBackend(name)
    try:
        for kind in bundle.kinds:
            backend.load(bundle.read(kind, backend.variant)).close()
    except BackendError as error:
        print(f"building plans, because: {error}", file=sys.stderr)
        sizes = ["--sizes", f"{size}x{size}"]
        if percoedge(["build", str(bundle.path), "--backend", name, *sizes, "--quiet"]):
            raise SystemExit("the plans cannot be built") from error
    return backend


class Recorder:
    """A backend that notes every call of its engines: engine, feeds and outputs."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.variant = backend.name, backend.variant
        self.calls: list[tuple[Engine, dict[str, Any], dict[str, Any]]] = []
        self._backend = backend

    def load(self, graph: Graph) -> Any:
        engine = self._backend.load(graph)

        def run(feeds: dict[str, Any], *, on_device: bool = False) -> dict[str, Any]:
            outputs = engine.run(feeds, on_device=on_device)
            self.calls.append((engine, dict(feeds), outputs))
            return outputs

        ends = {"inputs": engine.inputs, "outputs": engine.outputs}
        return SimpleNamespace(run=run, close=engine.close, **ends)


def python_share(name: str, bundle: Bundle, data: bytes, size: int, decode_ms: float) -> float:
    """Share of a decode at 4 steps that is neither engines nor range coder.

    The calls of one decode are made again, each in a row of many, so that nothing waits for Python.
    """
    recorder = Recorder(backend_for(name, bundle, size))
    with Codec(bundle, recorder) as codec:
        codec.decode(data, steps=4)
        spent_ms = sum(call_times(e, feeds, 20)["run_us"] for e, feeds, _ in recorder.calls) / 1000
    coder = TokenDecoder(unpack(data).tokens)
    tables = [outputs["weights"] for _, _, outputs in recorder.calls if "weights" in outputs]
    began = time.perf_counter()
    for table in tables:
        coder.decode(np.asarray(table)[0])
    spent_ms += (time.perf_counter() - began) * 1000
    return round(1 - spent_ms / decode_ms, 4)


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


def corner(array: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """The first rows and columns, as many as a graph takes at once."""
    return np.ascontiguousarray(array[..., :side, :side])


def measure(name: str, bundle: Bundle, size: int, rounds: int, ceiling: float) -> dict[str, Any]:
    """All contenders on one bundle."""
    backend = backend_for(name, bundle, size)
    constants = bundle.codec
    side = size // constants.stride
    cells = side * constants.stride // constants.latent_stride
    tokens = np.random.default_rng(0).integers(
        0, constants.codebook_size, (1, side, side), np.int32
    )
    start = noise(0, constants.latent_channels, cells, cells)[None]
    family = bundle.manifest.family
    eager = EagerCodec(family, "cuda", torch.float16)
    compiled = EagerCodec(family, "cuda", torch.float16, compiled=True)
    there = torch.from_numpy(tokens).cuda()
    with (
        backend.load(bundle.read("flow", backend.variant)) as flow,
        backend.load(bundle.read("decoder", backend.variant)) as decoder,
    ):
        fixed = ("x", "tokens", "t", "dt")
        condition = {
            spec.name: np.ones([1 if side == "n" else int(side) for side in spec.shape], spec.dtype)
            for spec in flow.inputs
            if spec.name not in fixed
        }
        text = [torch.from_numpy(array).cuda() for array in condition.values()]
        contenders: dict[str, Callable[[], object]] = {}
        flops = {}
        for steps in STEPS:

            def ours(steps: int = steps) -> object:
                latent = sample(flow, tokens, start, steps, None, constants, condition)
                return decode_latent(decoder, latent, constants)

            def theirs(codec: EagerCodec, steps: int = steps) -> object:
                return codec.render(there, torch.from_numpy(start), steps, *text)

            with FlopCounterMode(display=False) as counter:
                theirs(eager)
            flops[steps] = counter.get_total_flops()
            contenders[f"steps {steps}"] = ours
            contenders[f"steps {steps}, eager"] = lambda run=theirs: run(eager)
            contenders[f"steps {steps}, compile"] = lambda run=theirs: run(compiled)
        for run in contenders.values():  # compiles, captures
            for _ in range(3):
                run()
        times = interleaved(contenders, rounds)
        one = np.ones(1, np.float32)
        tile = min(side, constants.flow_tile)
        together = constants.flow_batch if side > tile else 1
        pictures = {
            "x": corner(start, tile * cells // side),
            "tokens": corner(tokens, tile),
            **condition,
        }
        feeds = {name: np.repeat(array, together, axis=0) for name, array in pictures.items()}
        most = min(side, constants.decoder_tile + 2 * constants.decoder_margin)
        calls = {
            "flow": call_times(flow, {**feeds, "t": one, "dt": one}, rounds),
            "decoder": call_times(decoder, {"x": corner(start, most * cells // side)}, rounds),
        }
    results: dict[str, Any] = {"backend": backend.name, "size": size}
    for steps in STEPS:
        labels = {"percoedge": "", "eager": ", eager", "compile": ", compile"}
        median = {who: statistics.median(times[f"steps {steps}{x}"]) for who, x in labels.items()}
        results[f"steps {steps}"] = {
            **{who: summary(times[f"steps {steps}{x}"]) for who, x in labels.items()},
            "speedup_over_eager": round(median["eager"] / median["percoedge"], 2),
            "speedup_over_compile": round(median["compile"] / median["percoedge"], 2),
            "gflop": round(flops[steps] / 1e9, 1),
            "share_of_ceiling": {
                who: round(flops[steps] / time_ms / 1e9 / ceiling, 4)
                for who, time_ms in median.items()
            },
        }
    return {**results, "calls": calls}


def whole_decode(name: str, bundle: Bundle, size: int, rounds: int) -> dict[str, Any]:
    """From a stream to a picture, entropy coding and all, at 4 steps."""
    grid = (size // bundle.codec.stride, size // bundle.codec.stride)
    photo = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    eager = EagerCodec(bundle.manifest.family, "cuda", torch.float16)
    compiled = EagerCodec(bundle.manifest.family, "cuda", torch.float16, compiled=True)
    stream = eager.stream(grid)
    stages: dict[str, list[float]] = {}
    with Codec(bundle, backend_for(name, bundle, size)) as codec:
        data = codec.encode(photo)

        def ours() -> None:
            codec.decode(data, steps=4)
            for stage, time_ms in codec.timings_ms.items():
                stages.setdefault(stage, []).append(time_ms)

        contenders: dict[str, Callable[[], object]] = {
            "percoedge": ours,
            "eager": lambda: eager.decode(stream, grid, 4),
            "compile": lambda: compiled.decode(stream, grid, 4),
        }
        for run in contenders.values():
            for _ in range(3):
                run()
        stages.clear()
        times = interleaved(contenders, rounds)
    medians = {who: statistics.median(values) for who, values in times.items()}
    return {
        **{who: summary(values) for who, values in times.items()},
        "stages": {stage: summary(values) for stage, values in stages.items()},
        "speedup_over_eager": round(medians["eager"] / medians["percoedge"], 2),
        "speedup_over_compile": round(medians["compile"] / medians["percoedge"], 2),
        "python_share": python_share(name, bundle, data, size, medians["percoedge"]),
    }


def device() -> dict[str, Any]:
    """The GPU and its driver."""
    gpu = Gpu()
    kernel = Path("/proc/driver/nvidia/version")
    return {
        "name": gpu.name,
        "sm": gpu.sm,
        "memory_mib": gpu.memory_bytes()[1] >> 20,
        "cuda": gpu.cuda_version,
        "driver": kernel.read_text().splitlines()[0] if kernel.exists() else "missing",
    }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backend", default="tensorrt-rtx", choices=[b for b in BACKENDS if b != "onnxruntime-cpu"]
    )
    parser.add_argument("--sd3", help="a bundle of the family sd3-medium")
    parser.add_argument("--size", type=int, default=512, help="of the picture, a square")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"expected a GPU for PyTorch too; torch {torch.__version__} finds none")
    torch.backends.cudnn.benchmark = True
    ceiling = matmul_tflops()
    tiny = Bundle.open("tiny")
    results: dict[str, Any] = {"device": device(), "matmul_fp16_tflops": round(ceiling, 1)}
    results["tiny, whole decode, steps 4"] = whole_decode(
        args.backend, tiny, args.size, args.rounds
    )
    results["tiny"] = measure(args.backend, tiny, args.size, args.rounds, ceiling)
    if args.sd3:
        sd3 = Bundle.open(args.sd3)
        results["sd3-medium"] = measure(args.backend, sd3, args.size, args.rounds, ceiling)
    report(args.save or "gpu", results, save=args.save is not None, packages=PACKAGES)


if __name__ == "__main__":
    main()
