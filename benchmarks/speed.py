"""Encode and decode against PyTorch, everything that can do it taking turns in one run.

    python -m benchmarks.speed [PHOTO] [--device cuda] [--sides NAME,...] [--save NAME]

Sides are backends, "eager" and "compile": PyTorch's modules with random weights (time does not
depend on them) in FP32 on a CPU, in FP16 on a GPU, over the same passes, steps, tiles and sizes,
range coding included. Four things are raced: encode, "tokens", which is the encoder alone, a whole
decode, and "render", which is flow and decoder alone, from noise and tokens to pixels on the host;
of bundles with text only the last.
Ratios are those of the same round, with their quartiles. Besides:

    stages          of a decode, by backend, at the last number of steps
    engines         times of single calls, and what is left of a decode for Python
    gflop           of "render", counted by PyTorch, and which share of the device's rate in one
                    large matrix product each side reaches with it
    commands        ``percoedge encode`` and ``decode`` from the start of a process to its end, with
                    its peak memory, at the sizes of --command-sizes (--cold 0: left out)

Engine files of TensorRT that are missing are built first.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.engine_calls import engine_times
from benchmarks.environment import report
from benchmarks.timing import ProcessCost, process_cost, race, summary
from benchmarks.torch_codec import TorchCodec
from percoedge import Codec
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Engine, TensorSpec
from percoedge.engines.processors import usable_processors
from percoedge.engines.selection import available, select
from percoedge.engines.tensorrt.library import LIBRARIES
from percoedge.errors import BackendError
from percoedge.runtime.cli.main import main as percoedge
from percoedge.runtime.flow import decode_latent, noise, sample

PACKAGES = ("tensorrt", "tensorrt-rtx", "cuda-core", "cuda-bindings", "onnxruntime-gpu")
TORCH = ("eager", "compile")
_CPU = "onnxruntime-cpu"
_STEP_INPUTS = ("x", "tokens", "t", "dt")


def default_sides(device: str) -> list[str]:
    """All backends that work on the device, on a CPU also without int8, and PyTorch's two."""
    names = [status.name for status in available() if status.available]
    if device == "cpu":
        return [_CPU, f"{_CPU}:fp32", *TORCH]
    return [*(name for name in names if name != _CPU), *TORCH]


def ensure_plans(name: str, bundle: Bundle, size: int) -> None:
    """Build what a backend of TensorRT lacks for this bundle."""
    if name not in LIBRARIES:
        return
    backend = select(name, bundle=bundle)
    try:
        for kind in bundle.kinds:
            backend.load(bundle.graph(kind, backend.variant)).close()
    except BackendError as error:
        print(f"building engines, because: {error}", file=sys.stderr)
        sizes = ["--sizes", f"{size}x{size}"]
        if percoedge(["build", str(bundle.path), "--backend", name, *sizes, "--quiet"]):
            raise SystemExit("the engines cannot be built") from error


def matmul_rate(device: str, rounds: int = 10) -> float:
    """Best rate of one large matrix product in operations a second: the ceiling of "render"."""
    side, dtype = (8192, torch.float16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times)


class Scene:
    """What all sides are given: a photo, random tokens and noise of its grid, and a condition.

    ``count``: of how many pictures tokens, noise and condition are.
    """

    def __init__(
        self,
        bundle: Bundle,
        photo: Image.Image,
        inputs: tuple[TensorSpec, ...],
        count: int = 1,
    ) -> None:
        codec = bundle.codec
        self.pixels: NDArray[np.uint8] = np.array(photo)
        self.grid = tuple(-(-side // codec.stride) for side in self.pixels.shape[:2])
        cells = codec.stride // codec.latent_stride
        rng = np.random.default_rng(0)
        self.tokens = rng.integers(0, codec.codebook_size, (count, *self.grid), np.int32)
        height, width = (cells * side for side in self.grid)
        self.start = np.stack(
            [noise(seed, codec.latent_channels, height, width) for seed in range(count)]
        )
        self.condition: dict[str, Any] = {
            spec.name: np.ones([count if a == "n" else int(a) for a in spec.shape], np.float32)
            for spec in inputs
            if spec.name not in _STEP_INPUTS
        }


class EngineSide:
    """A backend in the races; a context manager that frees its engines."""

    def __init__(self, name: str, bundle: Bundle, scene: Scene, threads: int | None) -> None:
        self.backend = select(name, bundle=bundle, threads=threads)
        self.bundle, self._scene = bundle, scene
        self._stack = contextlib.ExitStack()
        self._codec = self._stack.enter_context(Codec(bundle, self.backend))
        self.data = b"" if scene.condition else self.encode()
        self.stages: dict[str, list[float]] = {}
        self._engines: tuple[Any, ...] = ()

    def encode(self) -> bytes:
        """The photo as a stream."""
        return self._codec.encode(self._scene.pixels)

    def tokens(self) -> object:
        """The photo as tokens."""
        return self._codec.tokens(self._scene.pixels)

    def decode(self, steps: int) -> None:
        """The stream as an image; the times of its stages are kept."""
        self._codec.decode(self.data, steps=steps)
        for stage, time_ms in self._codec.timings_ms.items():
            self.stages.setdefault(stage, []).append(time_ms)

    def render(self, steps: int) -> object:
        """Tokens and noise as pixels."""
        flow, decoder = self._loaded()
        scene, codec = self._scene, self.bundle.codec
        latent = sample(flow, scene.tokens, scene.start, steps, None, codec, scene.condition)
        return decode_latent(decoder, latent, codec)

    def flow(self) -> Engine:
        """The flow's engine."""
        flow: Engine = self._loaded()[0]
        return flow

    def _loaded(self) -> tuple[Any, ...]:
        if not self._engines:
            graphs = (self.bundle.graph(k, self.backend.variant) for k in ("flow", "decoder"))
            self._engines = tuple(
                self._stack.enter_context(self.backend.load(graph)) for graph in graphs
            )
        return self._engines

    def close(self) -> None:
        self._stack.close()


class TorchSide:
    """PyTorch in the races."""

    def __init__(self, codec: TorchCodec, scene: Scene) -> None:
        self.codec, self._scene = codec, scene
        self.data = b"" if scene.condition else self.encode()

    def encode(self) -> bytes:
        """The photo as a stream."""
        return self.codec.encode(self._scene.pixels)

    def tokens(self) -> object:
        """The photo as tokens, on the host."""
        return self.codec.tokens_from_pixels(self._scene.pixels).cpu()

    def decode(self, steps: int) -> object:
        """The stream as an image."""
        return self.codec.decode(self.data, self._scene.grid, steps)

    def render(self, steps: int) -> object:
        """Tokens and noise as pixels."""
        return self.codec.render(*self.arguments(steps))

    def flow(self) -> Engine:
        """The flow as an engine."""
        flow: Engine = self.codec.flow()
        return flow

    def arguments(self, steps: int) -> tuple[Any, ...]:
        """What ``render`` is called with."""
        return self._scene.tokens, self._scene.start, steps, self._scene.condition

    def close(self) -> None:
        pass


def commands(
    photo: Image.Image, sizes: list[tuple[int, int]], bundle: str, backend: str, rounds: int
) -> list[dict[str, Any]]:
    """``percoedge encode`` and ``decode``, each a process for one file, at each size in pixels.

    Medians of wall and processor time from start to end, and the largest peak of memory. The photo
    is read from a JPEG file, and decoded to a PNG file in the bundle's number of steps.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder, name)) for name in ("photo.jpg", "photo.pco", "photo.png")]
        common = ["--bundle", bundle, "--backend", backend, "-q"]
        program = [sys.executable, "-m", "percoedge"]
        for width, height in sizes:
            photo.resize((width, height)).save(names[0], quality=90)
            turns = {"encode": names[:2], "decode": names[1:]}
            costs: dict[str, list[ProcessCost]] = {name: [] for name in turns}
            for _ in range(rounds):
                for name, files in turns.items():
                    costs[name].append(process_cost([*program, name, *files, *common]))
            rows += [
                {
                    "command": name,
                    "backend": backend,
                    "width": width,
                    "height": height,
                    "seconds": round(statistics.median(c.wall_s for c in found), 2),
                    "processor_seconds": round(statistics.median(c.processor_s for c in found), 2),
                    "peak_memory_mib": round(max(c.peak_mib for c in found)),
                }
                for name, found in costs.items()
            ]
    return rows


def measure(
    sides: dict[str, EngineSide | TorchSide], steps: list[int], rounds: int, text: bool
) -> dict[str, Any]:
    """All races, and the stages and engine calls of the backends."""

    def run(method: str, *arguments: int) -> dict[str, Any]:
        functions = {
            name: partial(getattr(side, method), *arguments) for name, side in sides.items()
        }
        return race(functions, rounds, TORCH)

    results: dict[str, Any] = {}
    if not text:
        results["encode"] = run("encode")
        results["tokens"] = run("tokens")
        for number in steps:
            results[f"decode, {number} steps"] = run("decode", number)
    for number in steps:
        results[f"render, {number} steps"] = run("render", number)
    if not text:
        engines = {name: side for name, side in sides.items() if isinstance(side, EngineSide)}
        results["stages"] = {
            name: {
                stage: summary(times[-rounds:])
                for stage, times in side.stages.items()
                if stage != "load"
            }
            for name, side in engines.items()
        }
        last = results[f"decode, {steps[-1]} steps"]["times"]
        results["engines"] = {
            name: engine_times(
                side.backend, side.bundle, side.data, steps[-1], last[name]["median_ms"], rounds
            )
            for name, side in engines.items()
        }
    return results


def rates(
    results: dict[str, Any], torch_side: TorchSide, steps: list[int], ceiling: float
) -> dict[str, Any]:
    """Operations of "render" by number of steps, and the share of the ceiling by side."""
    table = {}
    for number in steps:
        flops = torch_side.codec.render_flops(*torch_side.arguments(number))
        times = results[f"render, {number} steps"]["times"]
        table[f"{number} steps"] = {
            "gflop": round(flops / 1e9, 1),
            "share_of_ceiling": {
                name: round(flops / (row["median_ms"] / 1000) / ceiling, 4)
                for name, row in times.items()
            },
        }
    return table


def gpu() -> dict[str, Any]:
    """The GPU and its driver."""
    properties = torch.cuda.get_device_properties(0)
    kernel = Path("/proc/driver/nvidia/version")
    return {
        "name": properties.name,
        "sm": 10 * properties.major + properties.minor,
        "memory_mib": properties.total_memory >> 20,
        "driver": kernel.read_text().splitlines()[0] if kernel.exists() else "missing",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", default=shipped_photo())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--sides", help="separated by commas (default: all that work there)")
    parser.add_argument("--size", type=int, default=512, help="the photo is resized to a square")
    parser.add_argument("--steps", default="1,4", help="step counts, separated by commas")
    parser.add_argument("--rounds", type=int, default=10, help="2 at least")
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--cold", type=int, default=5, help="processes to start for each command")
    parser.add_argument("--command-sizes", default="512x512", help="WIDTHxHEIGHT,... of commands")
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--config", help="of PyTorch's side (default: the bundle's family)")
    parser.add_argument("--save", help="also write results/NAME.json")
    return parser


def main() -> None:
    """Command line of the benchmark."""
    args = _parser().parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"expected a GPU for PyTorch too; torch {torch.__version__} finds none")
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    bundle = Bundle.open(args.bundle)
    if args.size % bundle.codec.stride:
        raise SystemExit(f"expected a size in multiples of {bundle.codec.stride}, got {args.size}")
    photo = Image.open(args.photo).convert("RGB").resize((args.size, args.size))
    scene = Scene(bundle, photo, bundle.manifest.graphs["flow"].input_specs)
    names = args.sides.split(",") if args.sides else default_sides(args.device)
    steps = [int(number) for number in args.steps.split(",")]
    config = args.config or bundle.manifest.family
    with contextlib.ExitStack() as stack:
        sides: dict[str, EngineSide | TorchSide] = {}
        for name in names:
            if name in TORCH:
                mode = "default" if name == "compile" else None
                sides[name] = TorchSide(TorchCodec(config, args.device, compiled=mode), scene)
            else:
                ensure_plans(name, bundle, args.size)
                sides[name] = EngineSide(name, bundle, scene, args.threads)
            stack.callback(sides[name].close)
        results = measure(sides, steps, args.rounds, text=bool(scene.condition))
        eager = sides.get("eager")
        if isinstance(eager, TorchSide):
            ceiling = matmul_rate(args.device)
            results["matmul_gflop_per_s"] = round(ceiling / 1e9, 1)
            results["rates"] = rates(results, eager, steps, ceiling)
        ours = next((side for side in sides.values() if isinstance(side, EngineSide)), None)
    if ours and ours.data and args.cold:
        backend = next(name for name in names if name not in TORCH)
        sizes = [size.split("x") for size in args.command_sizes.split(",")]
        pixels = [(int(width), int(height)) for width, height in sizes]
        results["commands"] = commands(photo, pixels, args.bundle, backend, args.cold)
    settings = {name: getattr(args, name) for name in ("size", "threads", "rounds", "bundle")}
    if args.device == "cuda":
        settings["gpu"] = gpu()
    report(
        args.save or "speed",
        {**settings, "device": args.device, **results},
        save=args.save is not None,
        packages=PACKAGES,
    )


if __name__ == "__main__":
    main()
