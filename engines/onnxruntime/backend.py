"""Runs graphs with ONNX Runtime: on a CPU, or with its CUDA provider.

Models and their data are given to it as bytes that were checked before; it opens no file of a
bundle.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from percoedge.engines import memory
from percoedge.engines.bundle.graph_scan import check_model
from percoedge.engines.bundle.manifest import VARIANTS
from percoedge.engines.contract import Graph
from percoedge.engines.onnxruntime.engine import OnnxRuntimeEngine
from percoedge.engines.onnxruntime.library import (
    SILENT,
    import_onnxruntime,
    missing_library,
    preload,
    with_data,
)
from percoedge.engines.processors import expect_workers, usable_processors
from percoedge.errors import BackendError, UsageError

__all__ = ["OPTIMIZATIONS", "PROVIDERS", "OnnxRuntimeBackend"]

PROVIDERS: Mapping[str, str] = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
}
"""Backend name -> name of ONNX Runtime's execution provider."""

OPTIMIZATIONS: Mapping[str, str] = {
    "off": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}

# Provider options that a caller's win over. TF32 off: graphs that count on exact sums stay exact.
# Heuristic search: an exhaustive one runs every convolution algorithm at every new image size.
_DEFAULT_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "onnxruntime-cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}

# ModelProto, IR 8, opset 13: y = Identity(x), float32 (1,). Finds out whether a provider works.
_PROBE = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201705a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """One execution provider with its settings.

    ``name``: a key of PROVIDERS. ``threads``: per engine, as `expect_workers` allows; None takes
    the processors that this process may use. ``optimization``: a key of OPTIMIZATIONS.
    ``provider_options`` go to the provider as they are. ``precision``: the variant of graphs to
    read, None for the provider's fastest. Raises UsageError for a value outside these.
    """

    name: str = "onnxruntime-cpu"
    threads: int | None = None
    optimization: str = "all"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.name not in PROVIDERS:
            raise UsageError(f"expected a backend of {', '.join(PROVIDERS)}, got {self.name!r}")
        if self.threads is not None:
            expect_workers("threads", self.threads)
        if self.optimization not in OPTIMIZATIONS:
            raise UsageError(
                f"expected optimization of {', '.join(OPTIMIZATIONS)}, got {self.optimization!r}"
            )
        if "enable_cuda_graph" in self.provider_options:
            raise UsageError(
                "expected provider_options without 'enable_cuda_graph', which needs tensors at "
                f"fixed addresses, got it with {self.name}; the backend tensorrt has them"
            )
        if self.precision not in (None, *VARIANTS):
            raise UsageError(
                f"expected a precision of {', '.join(VARIANTS)}, got {self.precision!r}"
            )

    @property
    def variant(self) -> str:
        """Variant of the graphs to read from a bundle; see the contract of Backend."""
        return self.precision or ("int8" if self.device == "cpu" else "fp16")

    @property
    def device(self) -> str:
        """ONNX Runtime's name for where outputs are left: "cpu" or "cuda"."""
        return "cpu" if self.name == "onnxruntime-cpu" else "cuda"

    @property
    def place(self) -> tuple[str, int]:
        """The same with the number of the device."""
        return self.device, int(self.provider_options.get("device_id", 0))

    def missing(self) -> str | None:
        """Why this backend cannot be used here, or None; runs a tiny graph unless on the CPU."""
        try:
            ort = import_onnxruntime()
            self._check_listed(ort)
            if self.device != "cpu":
                self._session(ort, _PROBE, {})
        except BackendError as error:
            return str(error)
        return None

    def load(self, graph: Graph) -> OnnxRuntimeEngine:
        """Read a graph and build a session; keeps no reference to what was read.

        Raises BackendError when the model is broken, uses an operator that ONNX Runtime does not
        know, differs from its specs, when the provider does not work here, or memory is short, and
        BundleError when a file is missing or altered.
        """
        source = graph.read()
        where = f"graph {source.kind!r} ({source.variant}, {self.name})"
        check_model(source)
        memory.require(memory.load_bytes(source.size_bytes, source.variant), f"loading {where}")
        ort = import_onnxruntime()
        self._check_listed(ort)
        try:
            session = self._session(ort, source.model, source.data)
        except BackendError as error:
            raise BackendError(f"{where}: {error}") from error
        return OnnxRuntimeEngine(session, source, where, self.place)

    def _check_listed(self, ort: Any) -> None:
        listed = ort.get_available_providers()
        if PROVIDERS[self.name] not in listed:
            raise BackendError(
                f"{self.name}: expected {PROVIDERS[self.name]} in this onnxruntime "
                f"{ort.__version__}, got {', '.join(listed)}; install a build that has it "
                "(for CUDA: pip uninstall onnxruntime, then pip install --force-reinstall "
                "'onnxruntime-gpu[cuda,cudnn]') or use onnxruntime-cpu"
            )

    def _session(self, ort: Any, model: bytes, data: Mapping[str, bytes]) -> Any:
        """Build a session and prove that it runs on the provider asked for."""
        provider = PROVIDERS[self.name]
        chosen = {**_DEFAULT_OPTIONS.get(self.name, {}), **self.provider_options}
        providers: list[Any] = [(provider, chosen)]
        if self.device != "cpu":
            preload(ort)
            providers.append(("CPUExecutionProvider", {}))
        options = self._options(ort)
        with with_data(options, data):
            try:
                session = ort.InferenceSession(model, options, providers, enable_fallback=0)
            except Exception as error:  # the library's errors have no common base
                raise BackendError(
                    f"onnxruntime {ort.__version__} cannot load it: {error}"
                ) from error
        if provider not in session.get_providers():
            raise BackendError(
                f"{self.name}: expected {provider} to start, got {session.get_providers()}; "
                f"{missing_library(ort) or 'its driver or libraries are missing or too old'}; "
                "install them with: pip install 'onnxruntime-gpu[cuda,cudnn]', and a driver that "
                "knows that CUDA"
            )
        session._model_bytes = None  # kept by the library for re-creation, which is disabled
        return session

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = SILENT
        options.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, OPTIMIZATIONS[self.optimization]
        )
        threads = self.threads or _default_threads()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A plan of memory for each shape of feeds costs what it holds, and saves a CPU no time.
        options.enable_mem_pattern = self.device != "cpu"
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Idle threads of one engine would otherwise spin while the next engine works.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options


def _default_threads() -> int | None:
    """As many as there are usable processors, or None when this process may use all of them.

    None leaves the number to ONNX Runtime, which takes the physical cores of the whole machine.
    """
    usable = usable_processors()
    return None if usable == os.cpu_count() else usable
