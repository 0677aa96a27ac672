"""One part in a process of its own: ``python -m benchmarks.gpu.worker PART``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Options, Record, Skipped

PARTS = {
    "device": ("hardware", "device"),
    "cuda": ("driver", "cuda"),
    "rtx": ("rtx", "rtx"),
    "build": ("backends", "engine_files"),
    "onnxruntime": ("cuda_provider", "onnxruntime"),
    "torch": ("rivals", "torch"),
    "entropy": ("tiles", "entropy"),
    "tests": ("programs", "tests"),
    "throughput": ("programs", "throughput"),
}
"""Name of a part -> module and function; ``--all`` runs them in this order."""

_PACKAGES = (
    *("onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-core", "cuda-bindings", "msgspec"),
    *("nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cublas"),
    *("nvidia-ml-py", "triton"),
)


def head(part: str, commit: str | None, bundle: str) -> dict[str, Any]:
    """What a part was measured on, and how it was called; raises ImportError."""
    from benchmarks.environment import describe
    from percoedge.runtime.bench.machine import describe as describe_machine

    environment = describe(_PACKAGES)
    environment["command"] = f"python -m benchmarks.gpu {part} --bundle {Path(bundle).name}"
    if commit:
        environment["commit"] = commit
    environment["gpu"] = describe_machine()["gpu"] or "missing"
    environment["cuda_of_the_driver"] = "missing"
    with contextlib.suppress(Exception):
        from cuda.bindings import driver

        code, version = driver.cuDriverGetVersion()
        if not code:
            environment["cuda_of_the_driver"] = f"{version // 1000}.{version % 1000 // 10}"
    return {"part": part, "environment": environment}


def main() -> int:
    """Command line; exits with 0 also when the part is skipped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--limit", type=float, default=600)
    parser.add_argument("--commit")
    args = parser.parse_args()
    os.environ.setdefault("PERCOEDGE_CACHE", str(args.out / "plans"))
    began = time.perf_counter()
    path = args.out / f"{args.part}.json"
    record = Record(path, {"part": args.part})
    module, function = PARTS[args.part]
    try:
        record = Record(path, head(args.part, args.commit, args.bundle))
        run = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        run(record, Options(args.out, args.bundle, args.limit))
        status, code = "done", 0
    except Skipped as reason:
        status, code = f"skipped: {reason}", 0
    except ImportError as error:
        traceback.print_exc()
        status, code = f"skipped: needs a package: {error}", 0
    except Exception as error:
        traceback.print_exc()
        status, code = f"failed: {type(error).__name__}: {error}", 1
    record.end(status, time.perf_counter() - began)
    return code


if __name__ == "__main__":
    sys.exit(main())
