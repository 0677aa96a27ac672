"""Which backends there are, which of them work here, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from percoedge.engines.contract import Backend
from percoedge.engines.onnxruntime_backend import OnnxRuntimeBackend
from percoedge.errors import BackendError, UsageError

__all__ = ["BACKENDS", "BackendStatus", "available", "select"]

BACKENDS = (
    "onnxruntime-cuda",
    "onnxruntime-rtx",
    "onnxruntime-tensorrt",
    "onnxruntime-cpu",
)
"""Names in the order in which "auto" tries them.

TensorRT stands behind CUDA although it may run faster: its first engine takes minutes to build, and
that must be asked for.
"""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend works on this machine; ``reason`` says why not, and is empty if it does."""

    name: str
    available: bool
    reason: str


def available() -> list[BackendStatus]:
    """Try every backend, in the order of BACKENDS; providers of a GPU are started to find out."""
    reasons = {name: OnnxRuntimeBackend(name).missing() for name in BACKENDS}
    return [BackendStatus(name, reason is None, reason or "") for name, reason in reasons.items()]


def select(
    name: str = "auto",
    *,
    threads: int | None = None,
    optimization: str = "all",
    provider_options: Mapping[str, str] | None = None,
) -> Backend:
    """Make the backend ``name``, or with "auto" the first of BACKENDS that works here.

    ``threads`` per engine (None: the processors this process may use) and ``optimization`` ("off",
    "basic", "extended", "all") are those of ONNX Runtime; ``provider_options`` are handed to the
    provider, and need a named backend. Raises UsageError for an unknown name or option, and
    BackendError when the backend does not work here.
    """
    if name != "auto" and name not in BACKENDS:
        raise UsageError(f"expected a backend of auto, {', '.join(BACKENDS)}, got {name!r}")
    if name == "auto" and provider_options:
        raise UsageError(
            "expected a named backend with provider_options, got 'auto'; "
            f"name one of {', '.join(BACKENDS)}"
        )
    reasons = []
    for candidate in BACKENDS if name == "auto" else (name,):
        backend = OnnxRuntimeBackend(candidate, threads, optimization, provider_options or {})
        reason = backend.missing()
        if reason is None:
            return backend
        reasons.append(reason)
    raise BackendError("; ".join(dict.fromkeys(reasons)))
