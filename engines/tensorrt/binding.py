"""One shape of one plan of TensorRT, made ready to be run again and again.

A binding owns an execution context and the memory of its inputs and outputs, so that addresses
never change; from its second run on it is one launch of a CUDA graph. Feeds are copied in and
results are copied out: what was handed out is never overwritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from percoedge.engines.contract import Buffer, TensorSpec, check_tensors
from percoedge.engines.tensorrt.cuda import Captured, DeviceMemory, Fetched, Gpu, Mark
from percoedge.engines.tensorrt.device import Device, Lane
from percoedge.engines.tensorrt.library import log_to
from percoedge.engines.tensorrt.pinned import HostMemory

__all__ = ["COMPUTE", "Binding", "TensorRtBuffer"]

_ALIGNMENT = 256
_SETTLING_RUNS = 2  # in which a library prepares kernels, and captures where it does so itself
_CHANCES = 2  # to capture: something else in this process may have spoilt the first
_MAX_STAGES = 8  # uploads of one shape that may be on their way: steps of the flow queued ahead
# Names in traces of the GPU.
_TO_DEVICE, _TO_HOST = "host to device", "device to host"
_ON_DEVICE = "device to device"
COMPUTE = "compute "
"""In traces of the GPU: what comes before the kind of a graph."""


@dataclass(frozen=True)
class _Slot:
    """Where a tensor of known shape lies in a block of memory."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    def array(self, block: NDArray[np.uint8]) -> NDArray[Any]:
        """The tensor in a block on the host."""
        part = block[self.offset : self.offset + self.size_bytes]
        return part.view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class _Stage:
    """Pinned memory for one upload, and when that was done."""

    memory: HostMemory
    uploaded: Mark


class TensorRtBuffer:
    """A tensor on the GPU, behind work that may still be queued; it outlives its engine."""

    def __init__(self, gpu: Gpu, memory: DeviceMemory, slot: _Slot) -> None:
        self.gpu = gpu
        self.address = memory.address + slot.offset
        self._memory = memory  # shared by the outputs of one run
        self._begun: Fetched | None = None
        self._slot = slot

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return self._slot.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return self._slot.dtype

    def begin_fetch(self) -> None:
        """Queue the copy to the host; see the contract of DeviceBuffer."""
        self._begun = self._begun or self._queue_fetch()

    def _queue_fetch(self) -> Fetched:
        self.gpu.enter()
        return self.gpu.fetch(_TO_HOST, self.address, self._slot.size_bytes)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        fetched = self._begun or self._queue_fetch()
        self._begun = None  # what is handed out is the caller's
        self.gpu.enter()
        fetched.wait()
        array = fetched.memory.array.view(self.dtype).reshape(self.shape)
        return array if dtype is None else array.astype(dtype, copy=False)


class Binding:
    """A context with one shape of every input, bound to memory of its own, in one lane.

    ``where`` starts messages; ``kind`` of the graph; ``make`` makes the context for sizes and a
    stream; ``shapes`` of ``inputs``; ``sizes`` of their symbols; ``captures``: whether to capture
    CUDA graphs. Nobody else holds on to ``context``, so that it ends under the device's lock, which
    whoever makes a binding holds. Raises BackendError when the shapes do not fit the plan or the
    memory is short.
    """

    def __init__(
        self,
        device: Device,
        lane: Lane,
        where: str,
        kind: str,
        make: Callable[[Mapping[str, int], int], Any],
        inputs: Sequence[TensorSpec],
        shapes: Sequence[tuple[int, ...]],
        outputs: Sequence[TensorSpec],
        sizes: Mapping[str, int],
        captures: bool,
    ) -> None:
        self._device, self._lane, self._gpu = device, lane, lane.gpu
        self._where, self._kind = where, kind
        self._chances = _CHANCES if captures else 0  # to capture
        self._messages: list[str] = []
        self._graph: Captured | None = None
        self._scratch: DeviceMemory | None = None
        self._ran = False
        self._runs_here = 0  # with this scratch memory
        self.context = make(sizes, self._gpu.stream)
        if self.context is None:
            raise self._gpu.failure(where, "TensorRT made no execution context")
        try:
            self._bind(inputs, shapes, outputs, sizes)
        except BaseException:
            self.context = None  # now, not when somebody lets go of the error
            raise

    def _bind(
        self,
        inputs: Sequence[TensorSpec],
        shapes: Sequence[tuple[int, ...]],
        outputs: Sequence[TensorSpec],
        sizes: Mapping[str, int],
    ) -> None:
        """Set shapes and addresses."""
        with log_to(self._device.library, self._note):
            for spec, shape in zip(inputs, shapes, strict=True):
                self._require(self.context.set_input_shape(spec.name, shape), f"shape {shape}")
            found = [tuple(self.context.get_tensor_shape(spec.name)) for spec in outputs]
            self._require(all(side >= 0 for shape in found for side in shape), "its outputs")
            self._scratch_bytes = int(self.context.update_device_memory_size_for_shapes())
            self._sources, size_bytes = _lay_out(inputs, shapes)
            self._results, self._result_bytes = _lay_out(outputs, found)
            views = {
                slot.name: np.broadcast_to(np.zeros((), slot.dtype), slot.shape)
                for slot in self._results
            }
            check_tensors(self._where + ": output", outputs, views, sizes)
            self._input = self._gpu.allocate(size_bytes)
            self._output = self._gpu.allocate(self._result_bytes)
            self._input_bytes = size_bytes
            self._stages: list[_Stage] = []
            for memory, slots in ((self._input, self._sources), (self._output, self._results)):
                for slot in slots:
                    address = memory.address + slot.offset
                    self._require(self.context.set_tensor_address(slot.name, address), slot.name)

    def upload(self, feeds: Mapping[str, Buffer]) -> None:
        """Queue copies of the feeds to where the graph reads them."""
        from_host, from_device = [], []
        for slot in self._sources:
            feed = feeds[slot.name]
            if isinstance(feed, TensorRtBuffer) and feed.gpu is self._gpu:
                from_device.append((slot, feed))
            else:
                from_host.append((slot, feed))
        if from_host:
            stage = self._free_stage()
            for slot, feed in from_host:
                np.copyto(slot.array(stage.memory.array), np.asarray(feed))
            # One copy for all of them; what lies between is overwritten below.
            first, last = from_host[0][0], from_host[-1][0]
            size_bytes = last.offset + last.size_bytes - first.offset
            with self._gpu.timed(_TO_DEVICE):
                self._gpu.copy(
                    self._input.address + first.offset,
                    stage.memory.address + first.offset,
                    size_bytes,
                )
            stage.uploaded.put()
        if from_device:
            with self._gpu.timed(_ON_DEVICE):
                for slot, feed in from_device:
                    target = self._input.address + slot.offset
                    self._gpu.copy(target, feed.address, slot.size_bytes)

    def _free_stage(self) -> _Stage:
        """Pinned memory that no upload reads any more; the host waits for it only with too many."""
        for stage in self._stages:
            if stage.uploaded.reached:
                return stage
        if len(self._stages) < _MAX_STAGES:
            uploaded = self._gpu.mark()
            stage = _Stage(self._gpu.pinned(self._input_bytes, uploaded), uploaded)
        else:
            stage = self._stages.pop(0)
            stage.uploaded.wait()
        self._stages.append(stage)
        return stage

    def execute(self) -> None:
        """Queue the graph: as it is at first, and as a captured CUDA graph from then on.

        Libraries prepare kernels in a first run, and while work is captured, by the library or
        here, nobody may wait for all of the GPU, as libraries may when they make and free things.
        So such runs are made under the lock that guards these.
        """
        scratch = self._lane.scratch(self._scratch_bytes)
        if scratch is not self._scratch:
            settled = False
        elif self._chances:
            settled = self._graph is not None
        else:
            settled = self._runs_here >= _SETTLING_RUNS
        with contextlib.nullcontext() if settled else self._device.lock:
            self._execute(scratch)
        self._ran = True
        self._runs_here += 1

    def _execute(self, scratch: DeviceMemory) -> None:
        if scratch is not self._scratch:
            self._forget_graph()
            self.context.set_device_memory(scratch.address, scratch.size_bytes)
            self._scratch, self._runs_here = scratch, 0
        if self._graph is None and self._chances and self._ran:
            captured = self._gpu.capture(self._enqueue)
            if not isinstance(captured, str):
                self._graph = captured
            elif self._runs_here:  # else a run as it is may be all that was missing
                self._chances -= 1
                if not self._chances:
                    self._lane.captures.refusals[self._where] = captured
        self._lane.captures.runs += 1
        self._lane.captures.launches += self._graph is not None
        with self._gpu.timed(f"{COMPUTE}{self._kind}"):
            if self._graph is not None:
                self._graph.launch()
            else:
                with log_to(self._device.library, self._note):
                    self._require(self._enqueue(self._gpu.stream), "a run")

    def left_on_device(self) -> dict[str, Buffer]:
        """Copies of the outputs on the GPU."""
        memory = self._gpu.allocate(self._result_bytes)
        with self._gpu.timed(_ON_DEVICE):
            self._gpu.copy(memory.address, self._output.address, self._result_bytes)
        return {slot.name: TensorRtBuffer(self._gpu, memory, slot) for slot in self._results}

    def fetch(self) -> tuple[dict[str, Buffer], Fetched]:
        """Copies of the outputs on the host, and what to wait for before they are there."""
        fetched = self._gpu.fetch(_TO_HOST, self._output.address, self._result_bytes)
        block = fetched.memory.array
        return {slot.name: slot.array(block) for slot in self._results}, fetched

    def free(self) -> None:
        """Let go of everything; nothing that was queued with this binding may still run."""
        if self._graph is not None:
            self._graph.free()
        with self._device.lock:
            self.context = None
        self._input.free()
        self._output.free()

    def _enqueue(self, stream: int) -> bool:
        return bool(self.context.execute_async_v3(stream))

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._gpu.wait()  # it may still run
            self._graph.free()
            self._graph = None

    def _note(self, severity: str, text: str) -> None:
        if "ERROR" in severity:
            self._messages.append(text)

    def _require(self, done: object, what: str) -> None:
        """Raise BackendError with what the library said unless it was done."""
        if not done:
            said = "; ".join(self._messages) or "it gives no reason"
            self._messages.clear()
            name, version = self._device.library.name, self._device.library.version
            raise self._gpu.failure(f"{self._where}: {name} {version} refuses {what}", said)


def _lay_out(
    specs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]]
) -> tuple[list[_Slot], int]:
    """Place tensors one behind the other, aligned; also the size of the block in bytes."""
    slots, end = [], 0
    for spec, shape in zip(specs, shapes, strict=True):
        dtype = np.dtype(spec.dtype)
        size_bytes = prod(shape) * dtype.itemsize
        slots.append(_Slot(spec.name, dtype, tuple(shape), end, size_bytes))
        end += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
    return slots, end
