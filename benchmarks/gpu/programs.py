"""Parts "tests" and "throughput": the tests that need a GPU, and ``percoedge bench``."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from benchmarks.gpu.backends import BATCHES, gpu_backends, percoedge, with_gpu
from benchmarks.gpu.record import Options, Record
from percoedge.engines.bundle import Bundle

_ROOT = Path(__file__).parent.parent.parent
_TESTS = ("tests/gpu", "tests/exactness/test_cuda.py")
_NOT_PASSED = ("failure", "error", "skipped")
_SHOWN = 2000  # characters of a message
_BENCH_S = 150


def tests(record: Record, options: Options) -> None:
    """``pytest -m gpu``; tests.xml beside the results tells all of it."""
    with_gpu()
    xml = options.out / "tests.xml"
    # "-v": where time runs out, the log says how far it came
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-n0", "-rs", *_TESTS]
    command += ["--junitxml", str(xml), "-p", "no:cacheprovider"]
    environment = {**os.environ, "PERCOEDGE_BUNDLE": options.bundle}
    code = subprocess.run(command, cwd=_ROOT, env=environment).returncode
    record.put("code", code)
    if not xml.exists():
        raise RuntimeError(f"pytest ended with {code} and wrote no results: see the log")
    record.put("tests", read_junit(xml))
    if code:
        raise RuntimeError(f"pytest ended with {code}")


def read_junit(path: Path) -> dict[str, Any]:
    """How many tests went how, with the messages of those that did not pass."""
    counts = dict.fromkeys(("passed", "failed", "error", "skipped"), 0)
    messages: dict[str, str] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        outcome = next(
            (child for child in case if child.tag in ("failure", "error", "skipped")), None
        )
        if outcome is None:
            counts["passed"] += 1
            continue
        counts["failed" if outcome.tag == "failure" else outcome.tag] += 1
        messages[name] = f"{outcome.tag}: {outcome.get('message', '')}"[:_SHOWN]
    return {**counts, "not_passed": messages}


def throughput(record: Record, options: Options) -> None:
    """``percoedge bench`` of every backend that works, over batches, steps and streams."""
    bundle = Bundle.open(options.bundle)
    batches = ",".join(map(str, BATCHES))
    matrices = {
        "512x512": ["--size", "512x512", "--batch", batches, "--steps", "1,2,4"],
        "1024x1024": ["--size", "1024x1024", "--batch", batches],
        "graphs": ["--size", "512x512", "--batch", "1,16", "--layers"],
        "streams": ["--size", "512x512", "--streams", "2,4,8", "--batch", "1,4"],
    }
    for backend in gpu_backends(record, bundle):
        for name, matrix in matrices.items():
            arguments = ["--bundle", options.bundle, "--backend", backend, *matrix]
            record.attempt(f"{backend}/{name}", _bench, arguments)


def _bench(arguments: list[str]) -> Any:
    """A call that takes too long is ended, and the next one has its turn."""
    command = ["bench", *arguments, "--json", "--quiet", "--seconds", "1", "--warmup", "0.5"]
    cases = percoedge(command, _BENCH_S)["cases"]
    return [{key: part for key, part in case.items() if key != "latencies_ms"} for case in cases]
