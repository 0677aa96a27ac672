"""From a graph to an engine file: the one way to build for every form of TensorRT.

Networks are strongly typed, so the precision is that of the graph. TF32 is off: graphs that count
on exact sums stay exact. The graph's data is mapped from files in a private folder and the engine
file is written as it is made, where the library can do that, so that a build needs little more
memory than the weights.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from percoedge.engines.bundle.graph_scan import check_model
from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.engines.plans.profiles import Profile
from percoedge.engines.tensorrt.library import DTYPES, Library, log_to, supported_targets
from percoedge.errors import BackendError, OutputError, UsageError

__all__ = [
    "BuiltPlan",
    "Progress",
    "StagedGraph",
    "build_plan",
    "check_targets",
    "stage_graph",
    "writes_streams",
]

Progress = Callable[[float, str], None]
"""Takes the share that is done (0..1) and the name of the builder's phase."""

# What the builder only warns of when a graph cannot run at one end of the profile.
_CONTRADICTION = "not self-consistent"

# What it says of every build on a machine without a GPU, where that is no fault.
_NO_GPU = re.compile(r"\s*\[checkMacros[^]]*\].{0,160}?\(cudaError (?:35|100): .*")

# What the builder says of memory on the GPU, at the largest sizes of the profile.
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")


@dataclass(frozen=True)
class StagedGraph:
    """A graph whose bytes lie in a folder: ``model`` is its ONNX file, beside it lies its data."""

    kind: str
    precision: str
    sha256: str
    model: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class BuiltPlan:
    """What a build tells: names of the flags that were set, and bytes on the GPU that it announced.

    ``activation_bytes`` is what the largest sizes of the profile need; None where it does not say.
    ``timing``: for the next build on this GPU, empty where the library times nothing.
    """

    flags: tuple[str, ...]
    activation_bytes: int | None
    weight_bytes: int | None
    timing: bytes


def stage_graph(source: GraphSource, folder: Path) -> StagedGraph:
    """Write a graph to a folder that must be private; afterwards the source can be dropped.

    Raises BackendError for a model that names other files or holds a compiled engine, and
    OutputError when the disk is full.
    """
    check_model(source)
    model = folder / "model.onnx"
    try:
        for name, content in {"model.onnx": source.model, **source.data}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{folder}: the graph cannot be written: {error}") from error
    return StagedGraph(
        kind=source.kind,
        precision=source.variant,
        sha256=source.sha256,
        model=model,
        inputs=source.inputs,
        outputs=source.outputs,
    )


def check_targets(library: Library, targets: Sequence[int]) -> None:
    """Raise UsageError for compute capabilities that the library cannot build for in advance."""
    supported = supported_targets(library)
    unsupported = sorted(set(targets) - set(supported))
    if unsupported:
        raise UsageError(
            f"expected SM of {', '.join(map(str, supported)) or 'the GPU at hand only'} for "
            f"{library.name} {library.version}, got {', '.join(map(str, unsupported))}"
        )


def build_plan(
    graph: StagedGraph,
    profile: Profile,
    library: Library,
    plan: Path,
    log: TextIO,
    *,
    targets: Sequence[int] = (),
    workspace_mib: int | None = None,
    level: int | None = None,
    each_batch: bool = False,
    timing: bytes = b"",
    progress: Progress | None = None,
) -> BuiltPlan:
    """Build one graph into the file ``plan``.

    ``targets``: compute capabilities to build for, none for the GPU at hand. ``workspace_mib``: the
    most that one layer may use for itself. ``level``: of optimisation, 0 to 5. ``each_batch``: see
    ``Profile.tuned``. ``timing``: what an earlier build left of the times of kernels. The builder's
    words go to ``log``. Ctrl-C stops the build. Raises BackendError when the library refuses the
    graph, UsageError for targets it does not know, and OutputError when the engine file cannot be
    written.
    """
    check_targets(library, targets)
    messages = _Messages(log)
    with log_to(library, messages.add) as logger:
        builder = library.module.Builder(logger)
        network, flags, parser = _parse(graph, library, builder, logger, messages)
        config = builder.create_builder_config()
        flags += _configure(library, config, targets, workspace_mib)
        if level is not None:
            config.builder_optimization_level = level
        times = _timing_cache(library, config, timing)
        for tuned in profile.tuned(each_batch):
            shapes = builder.create_optimization_profile()
            for spec in graph.inputs:
                if any(isinstance(axis, str) for axis in spec.shape):
                    shapes.set_shape(spec.name, *tuned.shapes(spec))
            config.add_optimization_profile(shapes)
        with _interruptible() as interrupted:
            monitor = _monitor(library, progress, interrupted)
            if monitor is not None:
                config.progress_monitor = monitor
            built = _write_plan(library, builder, network, config, plan)
        timed = b"" if times is None else bytes(times.serialize())
    del parser  # the network maps the data through it
    if not built:
        raise BackendError(
            f"graph {graph.kind!r}: {library.name} {library.version} could not build it: "
            f"{messages.last_error}; see {log.name}"
        )
    if messages.contradiction:
        raise BackendError(
            f"graph {graph.kind!r}: expected it to run at every size of {profile}, got: "
            f"{messages.contradiction}; ask for smaller sizes, or export it with larger limits"
        )
    memory = messages.memory
    return BuiltPlan(flags, memory.get("Activation"), memory.get("Weights"), timed)


def writes_streams(library: Library) -> bool:
    """Whether the library writes a plan as it makes it; 10.3 holds all of it in memory first."""
    return hasattr(library.module.Builder, "build_serialized_network_to_stream")


class _Messages:
    """Writes the builder's messages down, and keeps what a caller must hear of."""

    def __init__(self, log: TextIO) -> None:
        self.last_error = "it does not say why"
        self.contradiction = ""
        self.memory: dict[str, int] = {}
        self._log = log
        self._began = time.perf_counter()

    def add(self, severity: str, text: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.last_error = _NO_GPU.sub("", text) or self.last_error
        elif _CONTRADICTION in text:
            self.contradiction = text
        elif match := _MEMORY.match(text):
            self.memory[match[1]] = max(int(match[2]), self.memory.get(match[1], 0))
        with contextlib.suppress(OSError, ValueError):  # a full disk ends the build elsewhere
            self._log.write(f"{time.perf_counter() - self._began:9.3f} {severity:7} {text}\n")


def _parse(
    graph: StagedGraph, library: Library, builder: Any, logger: Any, messages: _Messages
) -> tuple[Any, tuple[str, ...], Any]:
    """Read the ONNX file into a strongly typed network: the network, its flags, the parser."""
    trt = library.module
    typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = builder.create_network(1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph.model)):
        errors = (str(parser.get_error(index)) for index in range(parser.num_errors))
        reasons = [_NO_GPU.sub("", error) for error in errors]
        raise BackendError(
            f"graph {graph.kind!r}: {library.name} {library.version} cannot read it: "
            f"{'; '.join(reasons) or messages.last_error}; export it again for this version, or "
            "run it on another backend"
        )
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    _check_interface(f"graph {graph.kind!r}: inputs", graph.inputs, inputs)
    _check_interface(f"graph {graph.kind!r}: outputs", graph.outputs, outputs)
    return network, ("STRONGLY_TYPED",), parser


def _check_interface(where: str, specs: tuple[TensorSpec, ...], tensors: list[Any]) -> None:
    """Check names, dtypes and fixed sizes of a parsed network against the specs."""

    def described(name: str, dtype: str, shape: Sequence[int | str]) -> str:
        sizes = ", ".join(
            str(size) if isinstance(size, int) and size > 0 else "?" for size in shape
        )
        return f"{name} {dtype} ({sizes})"

    expected = sorted(described(spec.name, spec.dtype, spec.shape) for spec in specs)
    got = []
    for tensor in tensors:
        dtype = str(tensor.dtype).rpartition(".")[2]
        got.append(described(tensor.name, DTYPES.get(dtype, dtype), tuple(tensor.shape)))
    if expected != sorted(got):
        raise BackendError(
            f"{where}: expected {', '.join(expected)} as in the manifest, got "
            f"{', '.join(sorted(got))}; export the bundle again"
        )


def _configure(
    library: Library, config: Any, targets: Sequence[int], workspace_mib: int | None
) -> tuple[str, ...]:
    """Set flags, memory and targets; returns the names of the flags that are set."""
    trt = library.module
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # percoedge bench --layers
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: as contexts are made
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, sm in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    elif supported_targets(library):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    return tuple(
        name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)
    )


def _timing_cache(library: Library, config: Any, timing: bytes) -> Any:
    """The library's times of kernels, from those of an earlier build; None for TensorRT-RTX."""
    if supported_targets(library):
        return None
    for known in (timing, b""):  # those of another GPU are refused
        times = config.create_timing_cache(known)
        if config.set_timing_cache(times, False):
            return times
    return None


def _write_plan(library: Library, builder: Any, network: Any, config: Any, path: Path) -> bool:
    """Build into a file; False when the library refuses. Raises OutputError."""
    try:
        with path.open("wb") as file:
            if not writes_streams(library):  # 10.3
                plan = builder.build_serialized_network(network, config)
                if plan is not None:
                    file.write(plan)
                return plan is not None
            writer = _writer(library, file)
            built = builder.build_serialized_network_to_stream(network, config, writer)
            if writer.error is not None:
                raise writer.error
            return bool(built)
    except OSError as error:
        raise OutputError(
            f"{path}: the engine file cannot be written: {error}; make room, or choose another "
            "folder with --cache"
        ) from error


def _writer(library: Library, file: BinaryIO) -> Any:
    """A writer for the library that keeps an error instead of raising it into C++."""
    base = library.module.IStreamWriter

    def create(self: Any) -> None:
        base.__init__(self)
        self.error = None

    def write(self: Any, data: Any) -> int:
        try:
            return file.write(data)
        except OSError as error:
            self.error = error
            return 0

    return type("Writer", (base,), {"__init__": create, "write": write})()


def _monitor(library: Library, progress: Progress | None, interrupted: threading.Event) -> Any:
    """A monitor of the library that reports progress and stops a build; None where it has none."""
    base = getattr(library.module, "IProgressMonitor", None)
    if base is None:
        return None
    phases: list[list[Any]] = []  # name, steps, steps done: outermost first
    most = 0.0  # a phase may turn out to have more parts than it said

    def report() -> None:
        nonlocal most
        done = 0.0
        for _, steps, finished in reversed(phases):
            done = min(1.0, (finished + done) / max(1, steps))
        most = max(most, done)
        if progress is not None and phases:
            progress(most, phases[-1][0])

    def phase_start(self: Any, name: str, parent: str | None, steps: int) -> None:
        phases.append([name, steps, 0])
        report()

    def step_complete(self: Any, name: str, step: int) -> bool:
        for phase in phases:
            if phase[0] == name:
                phase[2] = step + 1
        report()
        return not interrupted.is_set()

    def phase_finish(self: Any, name: str) -> None:
        phases[:] = [phase for phase in phases if phase[0] != name]

    def create(self: Any) -> None:
        base.__init__(self)

    calls = (create, phase_start, step_complete, phase_finish)
    names = ("__init__", "phase_start", "step_complete", "phase_finish")
    return type("Monitor", (base,), dict(zip(names, calls, strict=True)))()


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C into an event inside the ``with`` and into KeyboardInterrupt behind it.

    The library swallows exceptions that are raised in its calls of Python.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if interrupted.is_set():
        raise KeyboardInterrupt
