"""Part "torch": every backend that works here against PyTorch in FP16, taking turns.

Sides are the backends, PyTorch in eager mode, and torch.compile in three modes; all convolutions
are channels last. One picture is raced through the whole decode, and through flow and decoder alone
("render"), at 1, 2 and 4 steps; then batches through "render", in images a second, and the flow
alone, in operations a second, beside the rate of one large matrix product.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.gpu.backends import BATCHES, gpu_backends
from benchmarks.gpu.record import Options, Record, Skipped
from benchmarks.timing import interleaved, race
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.runtime.tiling.tiles import overlapping_tiles

_STEPS = (1, 2, 4)
_EAGER, _COMPILED, _GRAPHS = "eager", "compile", "compile: reduce-overhead"
_TUNED = "compile: max-autotune"
_MODES = {
    _EAGER: None,
    _COMPILED: "default",
    _GRAPHS: "reduce-overhead",
    _TUNED: "max-autotune-no-cudagraphs",
}
_DEVICE = "cuda"
_SIDE = 512
_ROUNDS, _BATCH_ROUNDS = 20, 8
_FLOW_RUNS = 20


def torch(record: Record, options: Options) -> None:
    """Skipped without a GPU for PyTorch; a side that fails is left out, and the record says why."""
    try:
        import torch as pytorch

        from benchmarks.speed import EngineSide, Scene, TorchSide
        from benchmarks.torch_codec import TorchCodec
    except ImportError as error:
        raise Skipped(f"needs torch and what export needs: {error}") from error
    if not pytorch.cuda.is_available():
        raise Skipped(f"needs torch with a GPU, got torch {pytorch.__version__} without one")
    pytorch.backends.cudnn.benchmark = True
    record.attempt("matmul_tflop_per_s", _ceilings, pytorch)
    bundle = Bundle.open(options.bundle)
    try:
        names = list(gpu_backends(record, bundle))
    except Skipped as reason:
        record.put("backends", str(reason))
        names = []
    photo = Image.open(shipped_photo()).convert("RGB").resize((_SIDE, _SIDE))
    inputs = bundle.manifest.graphs["flow"].input_specs
    scenes = {count: Scene(bundle, photo, inputs, count) for count in BATCHES}
    codecs: dict[str, Any] = {}
    sides: dict[int, dict[str, Any]] = {count: {} for count in BATCHES}
    with contextlib.ExitStack() as stack:

        def add(name: str, count: int) -> str:
            began = time.perf_counter()
            side: Any
            if name in _MODES:
                if name not in codecs:
                    codecs[name] = TorchCodec(
                        bundle.manifest.family, _DEVICE, compiled=_MODES[name]
                    )
                side = TorchSide(codecs[name], scenes[count])
            else:
                side = EngineSide(name, bundle, scenes[count], None)
            stack.callback(side.close)
            side.render(_STEPS[0])
            sides[count][name] = side
            return f"ready after {time.perf_counter() - began:.1f} s"

        def measure(label: str, counts: tuple[int, ...]) -> None:
            for steps in _STEPS:
                for what in ("decode", "render"):
                    record.attempt(
                        f"{label}/{what} at {steps} steps",
                        _race,
                        sides[1],
                        what,
                        steps,
                    )
            for count in counts:
                for steps in _STEPS:
                    record.attempt(
                        f"{label}/batch {count}/images per s, render at {steps} steps",
                        _images_per_s,
                        sides[count],
                        count,
                        steps,
                    )
                record.attempt(
                    f"{label}/batch {count}/flow",
                    _flow_rates,
                    sides[count],
                    scenes[count],
                    bundle,
                    pytorch,
                )

        # One after the other, as compiling and tuning may take longer than there is.
        for label, more, counts in (
            ("uncompiled", (*names, _EAGER), BATCHES),
            ("compiled", (_COMPILED,), (1, 16)),
            ("captured", (_GRAPHS,), BATCHES),
            ("tuned", (_TUNED,), (1,)),
        ):
            for name in more:
                for count in counts:
                    record.attempt(f"sides/{name}/{count}", partial(add, name, count))
            if label == "uncompiled" and _EAGER in sides[1]:
                record.attempt("gflop", _gflop, sides[1][_EAGER])
            if any(name in sides[1] for name in more):
                measure(label, counts)
        record.put("memory_mib", pytorch.cuda.max_memory_allocated() >> 20)


def _ceilings(pytorch: Any) -> dict[str, float]:
    """Best rate of a product of two 8192x8192 matrices, in FP16 and BF16."""
    side, found = 8192, {}
    for name in ("float16", "bfloat16"):
        a, b = (
            pytorch.randn(side, side, device="cuda", dtype=getattr(pytorch, name)) for _ in range(2)
        )
        times_ms = []
        for _ in range(20):
            began, ended = (pytorch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            a @ b
            ended.record()
            pytorch.cuda.synchronize()
            times_ms.append(began.elapsed_time(ended))
        found[name] = 2 * side**3 / min(times_ms) / 1e9
    return found


def _race(sides: dict[str, Any], what: str, steps: int) -> dict[str, Any]:
    """One race; a side that fails at it leaves it."""
    functions: dict[str, Callable[[], object]] = {}
    failed = {}
    for name, side in sides.items():
        function = partial(getattr(side, what), steps)
        try:
            function()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            functions[name] = function
    found: dict[str, Any] = race(functions, _ROUNDS, _MODES) if functions else {}
    return {**found, "failed": failed}


def _gflop(eager: Any) -> dict[str, float]:
    """Operations of flow and decoder of one picture, as PyTorch counts them."""
    return {
        f"render at {steps} steps": eager.codec.render_flops(*eager.arguments(steps)) / 1e9
        for steps in _STEPS
    }


def _images_per_s(sides: dict[str, Any], count: int, steps: int) -> dict[str, Any]:
    functions = {name: partial(side.render, steps) for name, side in sides.items()}
    times = interleaved(functions, _BATCH_ROUNDS)
    return {name: count / statistics.median(ms) * 1000 for name, ms in times.items()}


def _flow_rates(sides: dict[str, Any], scene: Any, bundle: Bundle, pytorch: Any) -> dict[str, Any]:
    """The flow alone, on tiles as a decode cuts them, run after run without looking at results.

    Operations are those that PyTorch counts of its flow in eager mode.
    """
    from torch.utils.flop_counter import FlopCounterMode

    feeds = _tiled(scene, bundle)

    def chain(engine: Any) -> None:
        x: Any = feeds["x"]
        with pytorch.inference_mode():
            for _ in range(_FLOW_RUNS):
                x = engine.run({**feeds, "x": x}, on_device=True)["x_next"]
        np.asarray(x)

    functions = {name: partial(chain, side.flow()) for name, side in sides.items()}
    times = interleaved(functions, _BATCH_ROUNDS)
    flop = None
    if _EAGER in sides:
        with FlopCounterMode(display=False) as counter, pytorch.inference_mode():
            sides[_EAGER].flow().run(feeds, on_device=True)
        flop = int(counter.get_total_flops())
    found: dict[str, Any] = {"x": feeds["x"].shape, "gflop": flop and flop / 1e9}
    for name, values in times.items():
        each_ms = statistics.median(values) / _FLOW_RUNS
        rate = None if flop is None else flop / each_ms / 1e9
        found[name] = {"run_ms": each_ms, "tflop_per_s": rate}
    return found


def _tiled(scene: Any, bundle: Bundle) -> dict[str, Any]:
    """Feeds of the flow for all tiles of all pictures of a scene."""
    codec = bundle.codec
    (rows, tops), (columns, lefts) = (
        overlapping_tiles(side, codec.flow_tile, codec.flow_overlap) for side in scene.grid
    )
    tiles = len(tops) * len(lefts)
    cells = codec.stride // codec.latent_stride
    random = np.random.default_rng(1)
    grid = (len(scene.tokens) * tiles, rows, columns)
    shape = (grid[0], codec.latent_channels, rows * cells, columns * cells)
    return {
        "x": random.standard_normal(shape, np.float32),
        "tokens": random.integers(0, codec.codebook_size, grid, np.int32),
        "t": np.array([1.0], np.float32),
        "dt": np.array([0.01], np.float32),
        **{name: np.repeat(value, tiles, axis=0) for name, value in scene.condition.items()},
    }
