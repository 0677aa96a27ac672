"""Runs graphs with ONNX Runtime: on a CPU, or with its CUDA provider.

The only module that imports onnxruntime, and only at use. Models and their data are given to it as
bytes that were checked before; it opens no file of a bundle.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from percoedge.engines import memory
from percoedge.engines.bundle.graph_scan import check_model
from percoedge.engines.bundle.manifest import VARIANTS
from percoedge.engines.contract import Buffer, Graph, GraphSource, TensorSpec, check_tensors
from percoedge.engines.onnxruntime.captured import CapturedRuns
from percoedge.engines.processors import usable_processors
from percoedge.errors import BackendError, UsageError

__all__ = ["OPTIMIZATIONS", "PROVIDERS", "OnnxRuntimeBackend", "OnnxRuntimeEngine", "OrtBuffer"]

PROVIDERS: Mapping[str, str] = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-cuda-graphs": "CUDAExecutionProvider",
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
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_DEFAULT_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "onnxruntime-cuda": _CUDA_OPTIONS,
    "onnxruntime-cuda-graphs": {**_CUDA_OPTIONS, "enable_cuda_graph": "1"},
}

_DTYPE_FROM_ORT = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}

_GPU_BATCH = 16  # grids at a time that keep a GPU busy; more would only take more memory

_SILENT = 4  # ONNX Runtime's severity "fatal"; what goes wrong is raised, not printed

# ModelProto, IR 8, opset 13: y = Identity(x), float32 (1,). Finds out whether a provider works.
_PROBE = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201705a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)


class OrtBuffer:
    """An OrtValue that stays where ONNX Runtime put it; on a CPU ``np.asarray`` makes no copy."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._shape = tuple(value.shape())
        self._dtype = np.dtype(_DTYPE_FROM_ORT[value.data_type()])

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return self._dtype

    def begin_fetch(self) -> None:
        """Do nothing: ONNX Runtime has no queue to put it into."""

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        array: NDArray[Any] = self.value.numpy()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array


class OnnxRuntimeEngine:
    """One session of ONNX Runtime; see the contract of Engine. Threads may share it."""

    def __init__(
        self, ort: Any, session: Any, source: GraphSource, backend: OnnxRuntimeBackend
    ) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self.max_batch = None if backend.device == "cpu" else _GPU_BATCH
        self._where = f"graph {source.kind!r} ({source.variant}, {backend.name})"
        self._place = (backend.device, int(backend.provider_options.get("device_id", 0)))
        self._session = session
        self._captured: CapturedRuns | None = None
        self._options = None
        if backend.cuda_graphs:
            self._captured = CapturedRuns(ort, session, self.inputs, self.outputs, self._place)
            self._options = ort.RunOptions()
            self._options.add_run_config_entry("gpu_graph_id", "-1")  # not to be captured
        _check_interface(self._where + ": input", self.inputs, session.get_inputs())
        _check_interface(self._where + ": output", self.outputs, session.get_outputs())

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        """Run the session; see the contract of Engine."""
        session = self._session
        if session is None:
            raise BackendError(f"{self._where} is closed; load it again")
        sizes = check_tensors(self._where + ": input", self.inputs, feeds)
        if self._captured is not None:
            given = {
                name: feed.value if isinstance(feed, OrtBuffer) else np.asarray(feed)
                for name, feed in feeds.items()
            }
            try:
                results = self._captured.run(given, sizes, on_device)
            except Exception as error:  # the library's errors have no common base
                raise self._failure(error, feeds) from error
            if results is not None:
                return {n: OrtBuffer(v) if on_device else v for n, v in results.items()}
        hosts = []  # ONNX Runtime borrows these arrays until the run is over
        binding = session.io_binding()
        try:
            for spec in self.inputs:
                feed = feeds[spec.name]
                if isinstance(feed, OrtBuffer):
                    binding.bind_ortvalue_input(spec.name, feed.value)
                else:
                    hosts.append(np.asarray(feed, order="C"))
                    binding.bind_cpu_input(spec.name, hosts[-1])
            for spec in self.outputs:
                binding.bind_output(spec.name, *(self._place if on_device else ("cpu", 0)))
            session.run_with_iobinding(binding, self._options)
            values = [OrtBuffer(value) for value in binding.get_outputs()]
        except Exception as error:  # the library's errors have no common base
            raise self._failure(error, feeds) from error
        outputs: dict[str, Buffer] = {
            spec.name: value if on_device else np.asarray(value)
            for spec, value in zip(self.outputs, values, strict=True)
        }
        check_tensors(self._where + ": output", self.outputs, outputs, sizes)
        return outputs

    def end_profiling(self) -> str:
        """Path of the profile of a session that writes one; no more is written to it."""
        return str(self._session.end_profiling())

    def close(self) -> None:
        """Free the session; see the contract of Engine."""
        self._session = self._captured = None

    def _failure(self, error: Exception, feeds: Mapping[str, Buffer]) -> BackendError:
        shapes = ", ".join(f"{s.name} {tuple(feeds[s.name].shape)}" for s in self.inputs)
        return BackendError(f"{self._where} failed: {error}; feeds were {shapes}")

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """One execution provider with its settings.

    ``name``: a key of PROVIDERS. ``threads``: per engine, at least 1; None takes the processors
    that this process may use. ``optimization``: a key of OPTIMIZATIONS. ``provider_options`` go to
    the provider as they are. ``precision``: the variant of graphs to read, None for the provider's
    fastest. Raises UsageError for a value outside these. With "onnxruntime-cuda-graphs" every run
    is a CUDA graph.
    """

    name: str = "onnxruntime-cpu"
    threads: int | None = None
    optimization: str = "all"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.name not in PROVIDERS:
            raise UsageError(f"expected a backend of {', '.join(PROVIDERS)}, got {self.name!r}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"expected threads of at least 1, got {self.threads}")
        if self.optimization not in OPTIMIZATIONS:
            raise UsageError(
                f"expected optimization of {', '.join(OPTIMIZATIONS)}, got {self.optimization!r}"
            )
        if "enable_cuda_graph" in self.provider_options:
            raise UsageError(
                "expected provider_options without 'enable_cuda_graph', which needs tensors at "
                f"fixed addresses, got it with {self.name}; onnxruntime-cuda-graphs sets it itself"
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
    def cuda_graphs(self) -> bool:
        """Whether runs are captured as CUDA graphs."""
        return self.name == "onnxruntime-cuda-graphs"

    def missing(self) -> str | None:
        """Why this backend cannot be used here, or None; runs a tiny graph unless on the CPU."""
        try:
            ort = _import_onnxruntime()
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
        ort = _import_onnxruntime()
        self._check_listed(ort)
        try:
            session = self._session(ort, source.model, source.data)
        except BackendError as error:
            raise BackendError(f"{where}: {error}") from error
        return OnnxRuntimeEngine(ort, session, source, self)

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
            _preload(ort)
            providers.append(("CPUExecutionProvider", {}))
        options = self._options(ort)
        with _with_data(options, data):
            try:
                session = ort.InferenceSession(model, options, providers, enable_fallback=0)
            except Exception as error:  # the library's errors have no common base
                raise BackendError(
                    f"onnxruntime {ort.__version__} cannot load it: {error}"
                ) from error
        if provider not in session.get_providers():
            raise BackendError(
                f"{self.name}: expected {provider} to start, got {session.get_providers()}; "
                f"{_missing_library(ort) or 'its driver or libraries are missing or too old'}; "
                "install them with: pip install 'onnxruntime-gpu[cuda,cudnn]', and a driver that "
                "knows that CUDA"
            )
        session._model_bytes = None  # kept by the library for re-creation, which is disabled
        return session

    def _options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.graph_optimization_level = getattr(
            ort.GraphOptimizationLevel, OPTIMIZATIONS[self.optimization]
        )
        threads = self.threads or _default_threads()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.load_model_format", "ONNX")
        # Idle threads of one engine would otherwise spin while the next engine works.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(
            f"expected the package onnxruntime, cannot import it ({error}); "
            "install it with: pip install onnxruntime"
        ) from error
    ort.set_default_logger_severity(_SILENT)  # its start-up warnings go past session options
    return ort


def _preload(ort: Any) -> None:
    """Let ONNX Runtime find CUDA libraries that were installed as Python packages.

    By itself it looks beside its own package only, and they may lie elsewhere on the path.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            for folder in _library_folders():
                ort.preload_dlls(directory=folder)
            ort.preload_dlls()


def _missing_library(ort: Any) -> str:
    """Which library the CUDA provider does not find, as the system's loader says; empty if none."""
    folder = Path(getattr(ort, "__file__", "")).parent / "capi"
    for path in sorted(folder.glob("*onnxruntime_providers_cuda.*")):
        try:
            ctypes.CDLL(str(path))
        except OSError as error:
            # without ONNX Runtime around it, it fails in any case, but last at its own symbols
            return "" if "undefined symbol" in str(error) else str(error)
    return ""


def _library_folders() -> list[str]:
    """Where NVIDIA's packages have libraries of CUDA and cuDNN: nvidia/cu13/lib and its like."""
    found = importlib.util.find_spec("nvidia")
    places = found.submodule_search_locations if found is not None else None
    libraries = ("libcudart*", "libcublas*", "libcudnn.*")
    folders = [lib for place in places or () for lib in sorted(Path(place).glob("*/lib"))]
    return [str(lib) for lib in folders if any(list(lib.glob(name)) for name in libraries)]


@contextlib.contextmanager
def _with_data(options: Any, data: Mapping[str, bytes]) -> Iterator[None]:
    """Give external data to the session that is built inside the ``with``.

    Releases without the call for it in Python (1.23, the last for Python 3.10) read the bytes back
    from a private temporary folder that is gone afterwards.
    """
    if not data:
        yield
    elif hasattr(options, "add_external_initializers_from_files_in_memory"):
        options.add_external_initializers_from_files_in_memory(
            list(data), list(data.values()), [len(content) for content in data.values()]
        )
        yield
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            for name, content in data.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", folder
            )
            yield


def _check_interface(where: str, specs: tuple[TensorSpec, ...], nodes: list[Any]) -> None:
    """Check the tensors of a loaded graph against the specs; sizes only where both are fixed."""
    found = {node.name: node for node in nodes}
    if found.keys() != {spec.name for spec in specs}:
        raise BackendError(
            f"{where}: expected {[spec.name for spec in specs]} as in the manifest, got "
            f"{list(found)}; export the bundle again"
        )
    for spec in specs:
        node = found[spec.name]
        dtype = _DTYPE_FROM_ORT.get(node.type, node.type)
        same_rank = len(node.shape) == len(spec.shape)
        if (
            dtype != spec.dtype
            or not same_rank
            or any(
                isinstance(size, int) and size != axis
                for size, axis in zip(node.shape, spec.shape, strict=True)
            )
        ):
            raise BackendError(
                f"{where} {spec.name!r}: expected {spec} as in the manifest, got {dtype} "
                f"{tuple(node.shape)}; export the bundle again"
            )


def _default_threads() -> int | None:
    """As many as there are usable processors, or None when this process may use all of them.

    None leaves the number to ONNX Runtime, which takes the physical cores of the whole machine.
    """
    usable = usable_processors()
    return None if usable == os.cpu_count() else usable
