"""TensorRT and TensorRT-RTX as backends: they run plans that ``percoedge build`` made before.

Nothing is built here: a graph without a plan is refused with the command that builds one.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

from percoedge.engines.contract import Graph
from percoedge.engines.plans.cache import PlanCache
from percoedge.engines.plans.record import PlanRecord, rebuild_command
from percoedge.engines.tensorrt.cuda import Gpu, GpuMemoryError
from percoedge.engines.tensorrt.device import Captures, Device
from percoedge.engines.tensorrt.engine import TensorRtEngine
from percoedge.engines.tensorrt.library import LIBRARIES, find_library, log_to, supported_targets
from percoedge.errors import BackendError, UsageError

__all__ = ["TensorRtBackend"]

_MIB = 1 << 20


class TensorRtBackend:
    """Plans of one library (a name of LIBRARIES) on the first GPU, once for all threads.

    A thread that runs engines has a lane of its own: a stream, and memory to work in.

    ``cache``: where the plans are, by default the user's. Library and GPU are looked for at the
    first use. Raises UsageError for another name.
    """

    variant = "fp16"

    def __init__(self, name: str = "tensorrt-rtx", cache: PlanCache | None = None) -> None:
        if name not in LIBRARIES:
            raise UsageError(f"expected a backend of {', '.join(LIBRARIES)}, got {name!r}")
        self.name = name
        self.cache = cache or PlanCache()
        self._device: Device | None = None
        self._opening = threading.Lock()

    def missing(self) -> str | None:
        """Why this backend cannot be used here, or None; starts the GPU."""
        try:
            self._open()
        except BackendError as error:
            return str(error)
        if not self.cache.records(self.name):
            return (
                f"{self.name}: expected engine files in {self.cache.root}, found none; build them: "
                f"{rebuild_command(self.name)}"
            )
        return None

    def find(self, kind: str, graph_sha256: str) -> PlanRecord:
        """The plan for a graph on this GPU; raises BackendError with the command to run."""
        device = self._open()
        gpu = device.gpu
        return self.cache.find(kind, graph_sha256, device.library, gpu.sm, gpu.model)

    def load(self, graph: Graph) -> TensorRtEngine:
        """Load the plan of a graph onto the GPU; the graph itself is not read.

        Raises BackendError when there is no sound plan that fits, when memory is short, or when
        library or GPU are missing.
        """
        device = self._open()
        device.gpu.enter()
        record = self.find(graph.kind, graph.sha256)
        engine = device.with_memory(lambda: self._deserialize(device, record))
        specs = (graph.inputs, graph.outputs)
        return TensorRtEngine(device, engine, self.cache, record, specs)

    @property
    def captures(self) -> Captures | None:
        """What was captured as CUDA graphs so far; None for TensorRT-RTX: it does that itself."""
        return None if self.name == "tensorrt-rtx" else self._open().captures

    @property
    def gpu(self) -> Gpu:
        """The GPU with the calling thread's stream; raises BackendError as ``load`` does."""
        return self._open().lane.gpu

    def trace(self) -> AbstractContextManager[dict[str, float]]:
        """What the GPU's time goes to in the calling thread's lane; see ``Gpu.trace``."""
        return self.gpu.trace()

    def _deserialize(self, device: Device, record: PlanRecord) -> Any:
        """The library's engine of a plan."""
        where = f"graph {record.kind!r} ({record.precision}, {self.name})"
        gpu, messages = device.gpu, []
        for lane in device.lanes:  # what they keep for later is out of the library's reach
            lane.trim()
        free_bytes, _ = gpu.memory_bytes()
        if record.size > free_bytes:
            raise GpuMemoryError(
                f"loading {where}: expected {record.size / _MIB:.0f} MiB of free GPU memory, got "
                f"{free_bytes / _MIB:.0f} MiB; load graphs one at a time (--low-memory), or close "
                "other programs"
            )
        plan = self.cache.map(record)
        with device.lock, log_to(device.library, lambda *m: messages.append(m)) as logger:
            try:
                if device.runtime is None:
                    device.runtime = device.library.module.Runtime(logger)
                engine = device.runtime.deserialize_cuda_engine(plan)
            except Exception as error:  # pybind11 turns what the library throws into anything
                raise gpu.failure(f"loading {where}", error) from error
        if engine is not None:
            return engine
        said = "; ".join(text for severity, text in messages if "ERROR" in severity)
        built_for = ", ".join(map(str, record.targets))
        cause = gpu.failure(
            f"{where}: loading the engine file built for SM {built_for} by {record.library} "
            f"{record.version} on SM {gpu.sm}",
            said or "the library gives no reason",
        )
        gpu.enter()  # a lost GPU has an error of its own
        command = rebuild_command(
            self.name, kind=record.kind, targets=record.targets, request=record.request
        )
        raise BackendError(f"{cause}; build it again: {command}")

    def _open(self) -> Device:
        with self._opening:
            if self._device is None:
                library = find_library(self.name)
                try:
                    self._device = Device(library)
                except BackendError as error:
                    advice = "; build needs no GPU" if supported_targets(library) else ""
                    raise BackendError(f"{self.name}: {error}{advice}") from error
            return self._device
