"""An engine made of one plan of TensorRT: checks it against its graph, and keeps its bindings."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from percoedge.engines.contract import Buffer, TensorSpec, check_tensors
from percoedge.engines.plans.cache import PlanCache
from percoedge.engines.plans.record import BuildRequest, PlanRecord, rebuild_command
from percoedge.engines.tensorrt.binding import Binding
from percoedge.engines.tensorrt.contexts import Contexts
from percoedge.engines.tensorrt.device import Device, Lane
from percoedge.engines.tensorrt.layers import Layers, measure_layers
from percoedge.engines.tensorrt.library import DTYPES
from percoedge.errors import BackendError

__all__ = ["TensorRtEngine"]

_MAX_BINDINGS = 32  # shapes kept ready in a lane: the passes of a few sizes of picture


class TensorRtEngine:
    """One plan; see the contract of Engine. Threads may share it, each in its lane of ``device``.

    ``engine`` is the library's; ``record`` the plan's manifest in ``cache``; ``specs`` the graph's
    inputs and outputs. Raises BackendError when the plan has other tensors than these.
    """

    def __init__(
        self,
        device: Device,
        engine: Any,
        cache: PlanCache,
        record: PlanRecord,
        specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    ) -> None:
        self.inputs, self.outputs = specs
        self.max_batch = record.profile.ranges["n"][2] if "n" in record.profile.ranges else None
        self._names = tuple(spec.name for spec in self.inputs)
        self._record = record
        self._where = f"graph {record.kind!r} ({record.precision}, {record.library})"
        self._device = device
        trt = device.library.module
        self._check_interface(engine, trt.TensorIOMode.INPUT, self.inputs)
        self._check_interface(engine, trt.TensorIOMode.OUTPUT, self.outputs)
        # In this order: an engine that nobody closed lets go of its contexts first.
        self._bindings: dict[Lane, OrderedDict[object, Binding]] = {}
        with device.lock:
            self._contexts: Contexts | None = Contexts(trt, engine, cache, record)
        device.join(self)

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        """Run the engine in the calling thread's lane; see the contract of Engine.

        Where memory is too short for that, all lanes but one are closed; see ``with_memory``.
        """
        return self._device.with_memory(lambda: self._run(feeds, on_device))

    def _run(self, feeds: Mapping[str, Buffer], on_device: bool) -> dict[str, Buffer]:
        with self._device.entered() as lane:
            binding = self._binding_for(lane, feeds, self._opened(lane))
            binding.upload(feeds)
            binding.execute()
            if on_device:
                return binding.left_on_device()
            outputs, fetched = binding.fetch()
        fetched.wait()  # other threads may queue their work meanwhile
        return outputs

    def layers(self, feeds: Mapping[str, Buffer], runs: int = 10) -> Layers:
        """How long each layer takes on these feeds, in runs of their own that are not captured.

        Raises BackendError as ``run`` does, and when the library reports no layers.
        """
        return self._device.with_memory(lambda: self._layers(feeds, runs))

    def _layers(self, feeds: Mapping[str, Buffer], runs: int) -> Layers:
        with self._device.entered() as lane:
            contexts = self._opened(lane)
            binding = self._bind(lane, feeds, contexts.make_plain, captures=False)
            try:
                times_ms = measure_layers(self._device.library, lane.gpu, binding, feeds, runs)
                return Layers(times_ms, contexts.describe(binding.context))
            finally:
                with contextlib.suppress(BackendError):  # of a lost GPU
                    lane.gpu.wait()
                binding.free()

    def close(self) -> None:
        """Free the engine and its memory; see the contract of Engine."""
        with self._device.lock:
            contexts, self._contexts = self._contexts, None
        if contexts is None:
            return
        for lane in self._device.lanes:
            self.leave(lane)
        with contextlib.suppress(Exception):  # of a lost GPU
            contexts.keep_kernels()
        with self._device.lock:
            del contexts  # the last reference to the library's engine
        self._device.leave(self)

    def leave(self, lane: Lane) -> None:
        """Free what the engine has in a lane, once that is done; see Device."""
        with lane.lock:
            bindings = self._bindings.pop(lane, None)
            if bindings is None:
                return
            with contextlib.suppress(Exception):  # of a lost GPU, on which nothing runs
                lane.gpu.enter()
                lane.gpu.wait()
            while bindings:
                bindings.popitem()[1].free()

    def __enter__(self) -> TensorRtEngine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _binding_for(self, lane: Lane, feeds: Mapping[str, Buffer], contexts: Contexts) -> Binding:
        """The binding for feeds of these shapes; the feeds are checked when it is made."""
        bindings = self._bindings.setdefault(lane, OrderedDict())
        key: object = None
        if len(feeds) == len(self._names):
            with contextlib.suppress(KeyError, AttributeError, TypeError):
                key = tuple((feeds[name].shape, feeds[name].dtype) for name in self._names)
                bindings.move_to_end(key)
                return bindings[key]
        if len(bindings) >= _MAX_BINDINGS:
            lane.gpu.wait()  # the one unused for longest may still be at work
            bindings.popitem(last=False)[1].free()
        bindings[key] = self._bind(lane, feeds, contexts.make, contexts.captures)
        return bindings[key]

    def _bind(
        self,
        lane: Lane,
        feeds: Mapping[str, Buffer],
        make: Callable[[Mapping[str, int], int], Any],
        captures: bool,
    ) -> Binding:
        """A new binding for feeds of these shapes, which are checked."""
        sizes = check_tensors(self._where + ": input", self.inputs, feeds)
        if not self._record.profile.covers(sizes):
            raise self._beyond(sizes)
        with self._device.lock:
            return Binding(
                self._device,
                lane,
                self._where,
                self._record.kind,
                make,
                self.inputs,
                [feeds[name].shape for name in self._names],
                self.outputs,
                sizes,
                captures,
            )

    def _opened(self, lane: Lane) -> Contexts:
        """Contexts of an engine that is not closed, on a GPU that this thread may use."""
        if self._contexts is None:
            raise BackendError(f"{self._where} is closed; load it again")
        lane.gpu.enter()
        return self._contexts

    def _beyond(self, sizes: Mapping[str, int]) -> BackendError:
        """The error for feeds outside the plan's profile, with the command that widens it."""
        record = self._record
        got = ", ".join(f"{symbol} {size}" for symbol, size in sizes.items())
        message = f"{self._where}: expected {record.profile} as it was built for, got {got}"
        wider = _widened(record, sizes)
        if wider == record.request:
            return BackendError(f"{message}; no engine file is built for more: cut it into tiles")
        command = rebuild_command(record.library, targets=record.targets, request=wider)
        return BackendError(f"{message}; build for it: {command}")

    def _check_interface(self, engine: Any, mode: Any, specs: tuple[TensorSpec, ...]) -> None:
        """Check the plan's inputs or outputs against the specs; sizes where both are fixed."""
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name for name in names if engine.get_tensor_mode(name) == mode}
        what = f"{self._where}: {str(mode).rpartition('.')[2].lower()}"
        if found != {spec.name for spec in specs}:
            raise BackendError(
                f"{what}: expected {[spec.name for spec in specs]} as in the manifest, got "
                f"{sorted(found)}; {self._rebuild()}"
            )
        for spec in specs:
            dtype = engine.get_tensor_dtype(spec.name).name
            shape = tuple(engine.get_tensor_shape(spec.name))
            fits = len(shape) == len(spec.shape) and all(
                size == axis or -1 in (size, axis) or isinstance(axis, str)
                for size, axis in zip(shape, spec.shape, strict=True)
            )
            if DTYPES.get(dtype) != spec.dtype or not fits:
                raise BackendError(
                    f"{what} {spec.name!r}: expected {spec} as in the manifest, got {dtype} "
                    f"{shape}; {self._rebuild()}"
                )

    def _rebuild(self) -> str:
        record = self._record
        command = rebuild_command(
            record.library, kind=record.kind, targets=record.targets, request=record.request
        )
        return f"build it again: {command}"


def _widened(record: PlanRecord, sizes: Mapping[str, int]) -> BuildRequest:
    """The request of a plan with what these sizes need added."""
    request, ranges = record.request, record.profile.ranges
    pictures = max(request.batches)
    together = ranges["n"][2] // pictures if "n" in ranges else 1  # tiles of each, for the flow
    batch = -(-sizes.get("n", 1) // together)
    if batch > pictures:
        request = msgspec.structs.replace(request, batches=(*request.batches, batch))
    grid = [(axis, ranges[axis][2]) for axis in "hw" if axis in ranges]
    if request.sizes and any(sizes[axis] > high for axis, high in grid):
        width, height = (max(sides) for sides in zip(*request.sizes, strict=True))
        largest = {"h": height, "w": width}
        # Pixels a token, as far as the ranges tell; never too few.
        strides = [(largest[axis] - 1) // (high - 1) for axis, high in grid if high > 1]
        every_size: tuple[tuple[int, int], ...] = ()
        size = tuple(sizes[axis] * min(strides) for axis in "wh") if strides else None
        wider = (*request.sizes, size) if size else every_size
        request = msgspec.structs.replace(request, sizes=wider)
    return request
