"""The same decode by everything that can do it here, in turns: PyTorch, ONNX Runtime, TensorRT.

    python -m benchmarks.compare [PHOTO] [--steps 1,4] [--rounds 10] [--backends NAME,...]

PyTorch runs the same modules (of the configuration, with random weights: time does not depend on
them) over the same passes, steps and sizes, range coding included, eager and through torch.compile:
FP32 on a CPU, FP16 on a GPU. Every contender decodes once in each round, so that whatever else the
machine does hits all of them; ratios are those of the same round, with their quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.environment import report
from benchmarks.speed import EagerCodec, interleaved, summary
from percoedge import Codec
from percoedge.bundles import shipped_photo
from percoedge.engines.processors import usable_processors
from percoedge.engines.selection import available

PACKAGES = ("tensorrt", "tensorrt-rtx", "cuda-core", "cuda-bindings", "onnxruntime-gpu")
_TORCH = ("eager", "compile")


def working_backends() -> list[str]:
    """Names of all that work here; the CPU also without its int8 graphs."""
    names = [status.name for status in available() if status.available]
    return [*names, "onnxruntime-cpu:fp32"] if "onnxruntime-cpu" in names else names


def torch_codecs(config: str, device: str) -> dict[str, EagerCodec]:
    """PyTorch's two contenders."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    return {name: EagerCodec(config, device, dtype, compiled=name == "compile") for name in _TORCH}


def ratios(times: dict[str, list[float]]) -> dict[str, dict[str, dict[str, float]]]:
    """For every backend: how many times as fast as PyTorch, round by round."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in times.keys() - set(_TORCH):
        for rival in _TORCH:
            rounds = [a / b for a, b in zip(times[rival], times[name], strict=True)]
            low, median, high = statistics.quantiles(rounds, n=4)
            spread = {"median": median, "quartile_1": low, "quartile_3": high}
            values = {key: round(value, 2) for key, value in spread.items()}
            table.setdefault(name, {})[f"over_{rival}"] = values
    return dict(sorted(table.items()))


def main() -> None:
    """Command line of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path, nargs="?", default=shipped_photo())
    parser.add_argument("--size", type=int, default=512, help="the photo is resized to a square")
    parser.add_argument("--steps", default="1,4", help="step counts, separated by commas")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--backends", help="separated by commas (default: all that work here)")
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--config", default="tiny", help="configuration of PyTorch's side")
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch._dynamo.config.capture_scalar_outputs = True  # one graph for each pass: its best
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = args.backends.split(",") if args.backends else working_backends()
    photo = Image.open(args.photo).convert("RGB").resize((args.size, args.size))
    results: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        codecs = {
            name: stack.enter_context(Codec.load(args.bundle, name, threads=args.threads))
            for name in names
        }
        data = next(iter(codecs.values())).encode(photo)
        stride = next(iter(codecs.values())).bundle.codec.stride
        grid = (-(-args.size // stride), -(-args.size // stride))
        rivals = torch_codecs(args.config, device)
        stream = rivals["eager"].stream(grid)
        for steps in map(int, args.steps.split(",")):
            contenders: dict[str, Callable[[], object]] = {}
            for name, rival in rivals.items():
                contenders[name] = lambda rival=rival, n=steps: rival.decode(stream, grid, n)
            for name, codec in codecs.items():
                contenders[name] = lambda codec=codec, n=steps: codec.decode(data, steps=n)
            first = {}
            for name, run in contenders.items():  # loads engines, compiles
                began = time.perf_counter()
                run()
                first[name] = round((time.perf_counter() - began) * 1000, 1)
            times = interleaved(contenders, args.rounds)
            results[f"{steps} steps"] = {
                "first_decode_ms": first,
                "times": {name: summary(values) for name, values in times.items()},
                "times_as_fast": ratios(times),
            }
    settings = {"size": args.size, "threads": args.threads, "rounds": args.rounds}
    report(
        args.save or "compare",
        {**settings, "torch_device": device, **results},
        save=args.save is not None,
        packages=PACKAGES,
    )


if __name__ == "__main__":
    main()
