"""Which backends there are, which of them work here, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.library import LIBRARIES
from percoedge.engines.tiling import graph_of, tiling_kinds
from percoedge.errors import BackendError, UsageError

__all__ = ["BACKENDS", "BackendStatus", "available", "runs_on_gpu", "select"]

BACKENDS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu")
"""Names in the order in which "auto" tries them.

TensorRT is taken where every graph of the bundle has a plan that ``percoedge build`` made, and is
passed over elsewhere.
"""


def runs_on_gpu(name: str) -> bool:
    """Whether a backend of this name, "auto" excepted, runs graphs on a GPU."""
    return name.partition(":")[0] != "onnxruntime-cpu"


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend works on this machine; ``reason`` says why not, and is empty if it does."""

    name: str
    available: bool
    reason: str


def available() -> list[BackendStatus]:
    """Try every backend, in the order of BACKENDS; what needs a GPU is started to find out.

    TensorRT without a single plan counts as missing.
    """
    reasons = {name: _make(name).missing() for name in BACKENDS}
    return [BackendStatus(name, reason is None, reason or "") for name, reason in reasons.items()]


def select(
    name: str = "auto",
    *,
    bundle: Bundle | None = None,
    threads: int | None = None,
    optimization: str = "all",
    provider_options: Mapping[str, str] | None = None,
) -> Backend:
    """Make the backend ``name``, or with "auto" the first of BACKENDS that works here.

    One of ONNX Runtime may be followed by a colon and a variant of graphs: "onnxruntime-cpu:fp32"
    runs in floating point what "onnxruntime-cpu" computes in integers where a bundle has that.

    ``bundle``: what will be run; without it "auto" passes over TensorRT. ``threads`` per engine
    (None: the processors this process may use) and ``optimization`` ("off", "basic", "extended",
    "all") are those of ONNX Runtime; ``provider_options`` are handed to its provider, and need a
    named backend. Raises UsageError for an unknown name or option, and BackendError when the
    backend does not work here.
    """
    name, _, precision = name.partition(":")
    if name != "auto" and name not in BACKENDS:
        raise UsageError(
            f"expected a backend of auto, {', '.join(BACKENDS)}, got {name!r}; percoedge doctor "
            "says which of them work here"
        )
    if (provider_options or precision) and name in ("auto", *LIBRARIES):
        providers = [backend for backend in BACKENDS if backend not in LIBRARIES]
        raise UsageError(
            f"expected a named backend with {'a variant' if precision else 'provider_options'}, "
            f"got {name!r}; "
            f"name one of {', '.join(providers)}"
        )
    reasons = []
    for candidate in BACKENDS if name == "auto" else (name,):
        backend = _make(candidate, threads, optimization, provider_options or {}, precision)
        if name == "auto" and isinstance(backend, TensorRtBackend):
            reason = _without_plans(backend, bundle)
        else:
            reason = backend.missing()
        if reason is None:
            return backend
        reasons.append(reason)
    raise BackendError("; ".join(dict.fromkeys(reasons)))


def _make(
    name: str,
    threads: int | None = None,
    optimization: str = "all",
    provider_options: Mapping[str, str] | None = None,
    precision: str = "",
) -> OnnxRuntimeBackend | TensorRtBackend:
    if name in LIBRARIES:
        return TensorRtBackend(name)
    options = provider_options or {}
    return OnnxRuntimeBackend(name, threads, optimization, options, precision or None)


def _without_plans(backend: TensorRtBackend, bundle: Bundle | None) -> str | None:
    """Why "auto" passes over TensorRT, or None when every graph has a plan that fits.

    Neither library nor GPU are touched where there is no plan at all.
    """
    if bundle is None or not backend.cache.records(backend.name):
        return f"{backend.name}: found no engine files"
    try:
        for kind, graph in bundle.manifest.graphs.items():
            if backend.variant not in graph.variants:
                return f"{backend.name}: graph {kind!r} has no variant {backend.variant!r}"
        for kind in (*bundle.kinds, *tiling_kinds(bundle.codec)):
            backend.find(kind, graph_of(bundle, kind, backend.variant).sha256)
    except BackendError as error:
        return str(error)
    return None
