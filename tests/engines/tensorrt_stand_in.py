"""Stands in for tensorrt and tensorrt_rtx where plans are run; graphs are run for real, on the CPU.

A plan is any bytes that were entered in ``plans``. Execution contexts read their inputs and write
their outputs at the addresses they were given, when the stand-in of the GPU gets to it.
"""

from __future__ import annotations

import enum
import json
import mmap
import time
import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from gpu_stand_in import StandInGpu

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Engine, GraphSource, TensorSpec, check_tensors, split_axis
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.plans.cache import PlanCache
from percoedge.engines.plans.profiles import Profile, profile_for
from percoedge.engines.plans.record import BuildRequest
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.library import Library
from percoedge.engines.tiling import TILING, tiling_graph, tiling_kinds

DataType = enum.Enum("DataType", "BOOL UINT8 INT8 INT32 INT64 HALF FLOAT")
ComputeCapability = enum.Enum("ComputeCapability", "CURRENT SM75 SM80 SM86 SM89 SM120")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
_TYPES = dict(
    zip(("bool", "uint8", "int8", "int32", "int64", "float16", "float32"), DataType, strict=True)
)


class ILogger:
    """What loggers derive from."""


class IProfiler:
    """What profilers derive from."""


@dataclass
class StandInTensorRt:
    """``library`` takes the place of one that was imported.

    ``runs`` counts what was enqueued or captured, ``contexts`` those made, ``loaded`` the plans
    that were, ``compiled`` the shapes that kernels were compiled for; ``scratches`` are addresses
    that contexts worked at, ``batches`` the first axis of what each graph was run on, by kind, and
    ``used_profiles`` the number of the profile of each run. A plan is refused on a GPU that is not
    among its ``targets``. What is made or freed, and a context's first run, wait for the whole GPU;
    ``faults`` says what outlived what it works with.
    """

    name: str
    gpu: StandInGpu
    sm: int = 89
    runs: int = 0
    contexts: int = 0
    loaded: int = 0
    compiled: int = 0
    scratches: set[int] = field(default_factory=set)
    batches: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    plans: dict[bytes, tuple[GraphSource, tuple[Profile, ...], tuple[int, ...]]] = field(
        default_factory=dict
    )
    used_profiles: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    config: Any = None
    logger: Any = None
    broken: bool = False

    @property
    def library(self) -> Library:
        module = SimpleNamespace(
            ILogger=ILogger,
            IProfiler=IProfiler,
            LayerInformationFormat=SimpleNamespace(JSON="json"),
            ProfilingVerbosity=SimpleNamespace(LAYER_NAMES_ONLY="names"),
            Runtime=self._runtime,
            TensorIOMode=TensorIOMode,
            ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
            CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="none"),
            DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        )
        if "rtx" in self.name:
            module.ComputeCapability = ComputeCapability
        return Library(self.name, "1.7.1", module)

    def complain(self, text: str) -> None:
        self.logger.log("Severity.ERROR", text)

    def _runtime(self, logger: Any) -> Any:
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, plan: bytes | mmap.mmap) -> Any:
        source, profiles, targets = self.plans[bytes(plan)]
        if self.sm not in targets:
            self.complain("the engine plan file is generated on an incompatible device")
            return None
        self.loaded += 1
        self.gpu.disturb()
        made = RtxPlanEngine if "rtx" in self.name else PlanEngine
        return made(self, source, profiles)


class PlanEngine:
    """An engine of tensorrt 10.3."""

    def __init__(
        self, owner: StandInTensorRt, source: GraphSource, profiles: tuple[Profile, ...]
    ) -> None:
        self.owner, self.source, self.profiles = owner, source, profiles
        self.run = OnnxRuntimeBackend(threads=1).load(source).run
        self.specs = {spec.name: spec for spec in (*source.inputs, *source.outputs)}
        self.num_io_tensors = len(self.specs)

    def get_tensor_name(self, index: int) -> str:
        return list(self.specs)[index]

    def get_tensor_mode(self, name: str) -> Any:
        is_input = name in [spec.name for spec in self.source.inputs]
        return TensorIOMode.INPUT if is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return _TYPES[self.specs[name].dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(axis, str) else axis for axis in self.specs[name].shape)

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy == "user"
        self.owner.contexts += 1
        return Context(self)

    def __del__(self) -> None:
        self.owner.gpu.disturb()

    def create_engine_inspector(self) -> Any:
        layers = {"Layers": ["first", "second"], "Bindings": list(self.specs)}
        return SimpleNamespace(
            execution_context=None, get_engine_information=lambda form: json.dumps(layers)
        )


class RtxPlanEngine(PlanEngine):
    """An engine of tensorrt_rtx 1.7."""

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(
            cuda_graph_strategy="none", dynamic_shapes_kernel_specialization_strategy="lazy"
        )
        config.set_execution_context_allocation_strategy = lambda s: setattr(config, "memory", s)
        config.create_runtime_cache = RuntimeCache
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config: Any) -> Context:
        assert config.memory == "user"
        self.owner.config = config
        self.owner.contexts += 1
        context = Context(self)
        context.captures = config.cuda_graph_strategy == "whole"
        context.cache = weakref.ref(config.cache)
        return context


class RuntimeCache:
    """What was compiled, as text: a shape a line."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return "\n".join(["kernels", *sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        head, *kernels = blob.decode().split("\n")
        self.kernels = set(kernels)
        return head == "kernels"


class Context:
    """An execution context whose memory is given to it.

    Two layers, of 4 and 6 of the GPU's milliseconds, are what a profiler hears of.
    """

    def __init__(self, engine: PlanEngine) -> None:
        self.engine, self.gpu = engine, engine.owner.gpu
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.needed = 0
        self.profiler: Any = None
        self.captures = False
        self.nvtx_verbosity = "details"
        self.cache: Any = None
        self.runs = 0
        self.profile = 0
        self.gpu.disturb()

    def __del__(self) -> None:
        self.gpu.disturb()
        if self.cache is not None and self.cache() is None:
            self.engine.owner.faults.append("a context outlived the cache of its kernels")

    def set_optimization_profile_async(self, number: int, stream: int) -> bool:
        assert not self.shapes and stream in self.gpu._queues
        self.profile = number
        return number < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = self.engine.profiles[self.profile]
        low, _, high = profile.shapes(self.engine.specs[name])
        fits = all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))
        self.shapes[name] = shape
        if not fits:
            self.engine.owner.complain(f"{name} is out of its range")
        return fits

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        views = {key: np.broadcast_to(np.zeros((), self._type(key)), shape)
                 for key, shape in self.shapes.items()}  # fmt: skip
        sizes = check_tensors("stand-in", self.engine.source.inputs, views)

        def side(axis: int | str) -> int:
            factor, symbol = split_axis(axis) if isinstance(axis, str) else (axis, "")
            return factor * sizes.get(symbol, 1)

        return tuple(map(side, self.engine.specs[name].shape))

    def update_device_memory_size_for_shapes(self) -> int:
        self.needed = 64 * max(prod(shape) for shape in self.shapes.values())
        return self.needed

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % 256 == 0
        assert size >= self.needed
        self.scratch = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        owner, source = self.engine.owner, self.engine.source
        if owner.broken or len(self.addresses) != len(self.engine.specs):
            owner.complain("enqueue failed")
            return False
        assert self.nvtx_verbosity == "names"
        owner.runs += 1
        self.runs += 1
        if self.runs == 1:
            self.gpu.disturb()
        elif self.runs == 2 and self.captures:
            self.gpu.begin_capture(id(self))
            time.sleep(0.001)
            if not self.gpu.end_capture(id(self))[1]:
                owner.complain("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
                return False
        owner.scratches.add(self.scratch[0])
        if owner.config is not None:
            kernels, compiling = owner.config.cache.kernels, str(sorted(self.shapes.items()))
            owner.compiled += compiling not in kernels
            kernels.add(compiling)
        alive, addresses, shapes = weakref.ref(self), dict(self.addresses), dict(self.shapes)
        shapes |= {spec.name: self.get_tensor_shape(spec.name) for spec in source.outputs}
        scratch, run, gpu = self.scratch, self.engine.run, self.gpu
        profile = self.profile

        def tensor(spec: TensorSpec) -> Any:
            dtype = np.dtype(spec.dtype)
            size = prod(shapes[spec.name]) * dtype.itemsize
            return gpu.memory(addresses[spec.name], size).view(dtype).reshape(shapes[spec.name])

        def work() -> None:
            assert alive() is not None, "the execution context is gone"
            if self.profiler is not None:
                assert not self.captures, "what is captured reports no layers"
                self.profiler.report_layer_time("first", 4.0)
                self.profiler.report_layer_time("second", 6.0)
            gpu.memory(*scratch)[:] = 0xEE
            gpu.clock_ms += 10
            feeds = {spec.name: tensor(spec).copy() for spec in source.inputs}
            owner.batches[source.kind].append(len(feeds[source.inputs[0].name]))
            owner.used_profiles.append(profile)
            for spec, result in zip(source.outputs, run(feeds).values(), strict=True):
                tensor(spec)[...] = result

        gpu.queue(work, stream)
        return True

    def _type(self, name: str) -> str:
        return self.engine.specs[name].dtype


class Place:
    """A machine with a GPU of compute capability ``sm``, TensorRT, and a cache of plans."""

    def __init__(self, name: str, cache: Path, sm: int = 89) -> None:
        self.gpu = StandInGpu(sm=divmod(sm, 10))
        self.trt = StandInTensorRt(name, self.gpu, sm)
        self.cache = PlanCache(cache)
        self.backend = TensorRtBackend(name, self.cache)

    def build(
        self, bundle: Bundle, kind: str, targets: tuple[int, ...] = (89,), **request: Any
    ) -> GraphSource:
        """Enter a plan for a graph into the cache; returns the graph."""
        if kind in TILING:
            source = tiling_graph(kind)
        else:
            variants = bundle.manifest.graphs[kind].variants
            source = bundle.read(kind, "fp16" if "fp16" in variants else "fp32")
        asked = BuildRequest(**{"bundle": "toy", "batches": (1,), **request})
        specs = (*source.inputs, *source.outputs)
        profile = profile_for(kind, specs, bundle.codec, asked.sizes, asked.batches)
        plan = f"{kind} {profile} {asked.each_batch} {targets}".encode()
        self.trt.plans[plan] = source, profile.tuned(asked.each_batch), targets
        with self.cache.scratch() as folder:
            (folder / "plan").write_bytes(plan)
            self.cache.store(
                folder / "plan",
                kind=kind,
                precision=source.variant,
                graph_sha256=source.sha256,
                library=self.trt.library,
                targets=targets,
                profile=profile,
                request=asked,
            )
        return source

    def build_all(self, bundle: Bundle, **request: Any) -> None:
        """Enter plans for all graphs that a decode may run."""
        for kind in (*bundle.kinds, *tiling_kinds(bundle.codec)):
            self.build(bundle, kind, **request)

    def load(self, bundle: Bundle, kind: str, **request: Any) -> Engine:
        return self.backend.load(self.build(bundle, kind, batches=(4,), **request))
