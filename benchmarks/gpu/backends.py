"""The backends that work on this GPU, with the engine files that they need; and feeds of graphs."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.record import Record, Skipped
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Graph, TensorSpec, split_axis
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.selection import BACKENDS
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.engines.tensorrt.library import LIBRARIES, find_library
from percoedge.errors import BackendError, PercoedgeError
from percoedge.runtime.cli.main import main as percoedge

__all__ = ["BATCHES", "build", "differences", "feeds_for", "gpu_backends", "with_gpu"]

BATCHES = (1, 4, 16)


def with_gpu() -> Gpu:
    """The GPU; the part is skipped without one."""
    try:
        return Gpu()
    except BackendError as error:
        raise Skipped(f"needs a GPU: {error}") from error


def build(library: str, bundle: Bundle, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
    """Build engine files for pictures up to 1024x1024 in all of BATCHES; raises BackendError."""
    command = ["build", str(bundle.path), "--backend", library, "--sizes", "512x512,1024x1024"]
    command += ["--batch", ",".join(map(str, BATCHES)), "--json", "--quiet"]
    for kind in kinds:
        command += ["--graph", kind]
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        code = percoedge(command)
    print(said.getvalue(), wrong.getvalue())
    if code:
        raise BackendError(f"percoedge build ended with {code}: {wrong.getvalue().strip()[-2000:]}")
    return {
        graph["graph"]: {"seconds": graph["seconds"], "bytes": graph["bytes"]}
        for graph in json.loads(said.getvalue())["graphs"]
    }


def gpu_backends(record: Record, bundle: Bundle) -> dict[str, Backend]:
    """All that load every graph of the bundle here; the record says why the others do not.

    Raises Skipped when none does.
    """
    working: dict[str, Backend] = {}
    reasons = {}
    for name in BACKENDS:
        if name == "onnxruntime-cpu":
            continue
        try:
            working[name] = _opened(name, bundle)
        except PercoedgeError as error:
            reasons[name] = str(error)
    record.put("backends", {"work": list(working), "do_not": reasons})
    if not working:
        raise Skipped("needs a backend that works on a GPU: " + "; ".join(reasons.values()))
    return working


def _opened(name: str, bundle: Bundle) -> Backend:
    """A backend that has loaded every graph; raises PercoedgeError."""
    if name not in LIBRARIES:
        backend: Any = OnnxRuntimeBackend(name)
        if (reason := backend.missing()) is not None:
            raise BackendError(reason)
    else:
        find_library(name)
        Gpu()
        backend = TensorRtBackend(name)
        try:
            for kind in bundle.kinds:
                backend.find(kind, bundle.graph(kind, backend.variant).sha256)
        except BackendError:
            build(name, bundle)
    for kind in bundle.kinds:
        backend.load(bundle.graph(kind, backend.variant)).close()
    opened: Backend = backend
    return opened


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
