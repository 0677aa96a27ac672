"""The backends that work on this GPU, with the engine files that they need; and feeds of graphs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.record import Options, Record, Skipped
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Graph, TensorSpec, split_axis
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.selection import BACKENDS, runs_on_gpu
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.engines.tensorrt.library import LIBRARIES, find_library
from percoedge.engines.tiling import graph_of, tiling_kinds
from percoedge.errors import BackendError, PercoedgeError

__all__ = [
    "BATCHES",
    "differences",
    "engine_files",
    "feeds_for",
    "gpu_backends",
    "percoedge",
    "with_gpu",
]

BATCHES = (1, 4, 16)
_TRIAL_S = 90  # for a first decode, with what is compiled for it
_SHOWN = 2000  # characters of a message


def with_gpu() -> Gpu:
    """The GPU; the part is skipped without one."""
    try:
        return Gpu()
    except BackendError as error:
        raise Skipped(f"needs a GPU: {error}") from error


def engine_files(record: Record, options: Options) -> None:
    """Part "build": engine files of every library that is there, for the parts behind it.

    For pictures up to 1024x1024 in all of BATCHES.
    """
    with_gpu()
    for library in reversed(LIBRARIES):  # the one that takes minutes comes last
        record.attempt(library, _build, library, options)


def _build(library: str, options: Options) -> dict[str, Any]:
    try:
        find_library(library)
    except BackendError as error:
        raise Skipped(f"needs {library}: {error}") from error
    command = ["build", options.bundle, "--backend", library, "--sizes", "512x512,1024x1024"]
    command += ["--batch", ",".join(map(str, BATCHES)), "--json", "--quiet"]
    graphs = percoedge(command, options.limit_s)["graphs"]
    return {
        graph["graph"]: {"seconds": graph["seconds"], "bytes": graph["bytes"]} for graph in graphs
    }


def percoedge(arguments: list[str], limit_s: float) -> Any:
    """Run it in a process of its own; what it prints as JSON. Raises BackendError, TimeoutExpired.

    What is wrong with a GPU's libraries may end that process, and only that.
    """
    command = [sys.executable, "-m", "percoedge", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    print(done.stderr, flush=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip()[-_SHOWN:]
        raise BackendError(
            f"percoedge {arguments[0]} ended with {done.returncode}: {said}"
        ) from None


def gpu_backends(record: Record, bundle: Bundle) -> dict[str, Backend]:
    """All that decode here, in a process of their own; the record says why the others do not.

    Raises Skipped when none does.
    """
    working: dict[str, Backend] = {}
    reasons = {}
    for name in BACKENDS:
        if not runs_on_gpu(name):
            continue
        try:
            working[name] = _tried(name, bundle)
        except (PercoedgeError, subprocess.TimeoutExpired) as error:
            reasons[name] = str(error)
    record.put("backends", {"work": list(working), "do_not": reasons})
    if not working:
        raise Skipped("needs a backend that works on a GPU: " + "; ".join(reasons.values()))
    return working


def _tried(name: str, bundle: Bundle) -> Backend:
    """A backend that has every graph, and has decoded; raises PercoedgeError, TimeoutExpired."""
    backend: Any
    if name in LIBRARIES:
        backend = TensorRtBackend(name)
        for kind in (*bundle.kinds, *tiling_kinds(bundle.codec)):
            backend.find(kind, graph_of(bundle, kind, backend.variant).sha256)
    else:
        backend = OnnxRuntimeBackend(name)
        if (reason := backend.missing()) is not None:
            raise BackendError(reason)
    command = ["bench", "--bundle", str(bundle.path), "--backend", name, "--size", "512x512"]
    command += ["--seconds", "0", "--warmup", "0", "--json", "--quiet"]
    (case,) = percoedge(command, _TRIAL_S)["cases"]
    if "error" in case:
        raise BackendError(case["error"])
    made: Backend = backend
    return made


def feeds_for(bundle: Bundle, graph: Graph, sizes: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Something like what the codec feeds to a graph: bytes, tokens, noise; always the same.

    ``sizes``: of every symbol.
    """
    random = np.random.default_rng(3)
    return {spec.name: _feed(spec, sizes, bundle, random) for spec in graph.inputs}


def _feed(
    spec: TensorSpec, sizes: Mapping[str, int], bundle: Bundle, random: np.random.Generator
) -> NDArray[Any]:
    parts = [(axis, "") if isinstance(axis, int) else split_axis(axis) for axis in spec.shape]
    shape = tuple(factor * sizes.get(symbol, 1) for factor, symbol in parts)
    if spec.dtype == "uint8":
        coarse = random.integers(0, 256, (shape[0], *(-(-n // 16) for n in shape[1:3]), 3))
        return coarse.repeat(16, 1).repeat(16, 2)[:, : shape[1], : shape[2]].astype(np.uint8)
    if spec.name == "positions":
        return random.permutation(sizes["h"] * sizes["w"])[: shape[0]].astype(np.int32)
    if spec.dtype == "int32":
        return random.integers(0, bundle.codec.codebook_size, shape, np.int32)
    if shape == (1,):
        return np.array([{"t": 0.5, "dt": 0.25}.get(spec.name, 2.0)], np.float32)
    return random.standard_normal(shape, np.float32).astype(spec.dtype)


def differences(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """How far outputs are from those wanted: integers by share that differs, floats relatively."""
    table: dict[str, Any] = {}
    for name, want in wanted.items():
        there, here = np.asarray(got[name]), np.asarray(want)
        gap = np.abs(there.astype(np.float64) - here.astype(np.float64))
        table[name] = {"equal": bool((there == here).all()), "largest": float(gap.max())}
        if np.issubdtype(here.dtype, np.integer):
            table[name]["share_that_differs"] = float((there != here).mean())
            table[name]["mean"] = float(gap.mean())
        else:
            norm = float(np.linalg.norm(here.astype(np.float64)))
            table[name]["relative"] = float(np.linalg.norm(gap)) / norm
            table[name]["finite"] = bool(np.isfinite(there).all())
    return table
