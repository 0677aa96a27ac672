"""One NVIDIA GPU: a stream, memory on both sides of the bus, copies, marks, and captured work.

The only module that imports ``cuda`` (cuda.core 1.x and the bindings below it), and only at use; no
framework is needed. Everything queued here runs in the order in which it was queued, and nothing
has happened on the host's side before ``wait`` returns.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from percoedge.engines import memory
from percoedge.engines.tensorrt.pinned import HostMemory, PinnedMemory
from percoedge.errors import BackendError

__all__ = ["ENQUEUE", "Captured", "DeviceMemory", "Fetched", "Gpu", "GpuMemoryError", "Mark"]

ENQUEUE = "enqueue"
"""In traces: how long the host was busy queueing, on its own clock."""

_MIB = 1 << 20
_KEEP_ALL = (1 << 64) - 1


class GpuMemoryError(BackendError):
    """The GPU has too little memory for what was asked."""


class Gpu:
    """The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses), with one stream of its own.

    ``name``; ``sm``: compute capability, 89 for 8.9; ``model``: name and number of multiprocessors,
    "Orin, 8 multiprocessors", for boards of one name and one SM differ in that; ``clock_hz``: the
    highest of these; ``memory_rate``: bytes a second of its memory at its highest clock (both 0
    where the driver does not tell); ``integrated``: whether its memory is that of the host;
    ``cuda_version``: newest CUDA that the driver knows, "13.0"; ``stream``: the stream's handle as
    an integer. Raises BackendError when there is no driver, no GPU or no cuda.core.

    A GPU that reports an error such as an illegal address is lost to this process: from then on
    every method raises the same BackendError. Methods may be called from any thread, after
    ``enter`` in that thread.
    """

    def __init__(self) -> None:
        self._core, self._bindings = _import_cuda()
        self._lost: str | None = None
        self._spans: list[tuple[str, Mark, Mark, float]] | None = None
        self._entered = threading.local()
        try:
            device = self._core.Device(0)
            device.set_current()
            major, minor = device.compute_capability
            self.name, self.sm = str(device.name), 10 * major + minor
            properties = device.properties
            self.multiprocessors = int(properties.multiprocessor_count)
            self.model = f"{self.name}, {self.multiprocessors} multiprocessors"
            self.clock_hz = 1000 * _told(properties, "clock_rate")
            memory_hz = 1000 * _told(properties, "memory_clock_rate")
            self.memory_rate = 2 * memory_hz * _told(properties, "global_memory_bus_width") // 8
            self.integrated = bool(properties.integrated)
            version = self._driver("cuDriverGetVersion")[0]
            self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
            self._stream = device.create_stream()
            self._capturing = device.create_stream()  # so that no thread's work strays into a graph
            self._memory = device.memory_resource
            self._has_pool = bool(properties.memory_pools_supported)
            if self._has_pool:  # one of our own, which keeps what is freed until ``trim``
                options = self._core.DeviceMemoryResourceOptions()
                self._memory = self._core.DeviceMemoryResource(device, options)
                kept = self._bindings.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
                most = self._bindings.cuuint64_t(_KEEP_ALL)
                self._driver("cuMemPoolSetAttribute", self._memory.handle, kept, most)
        except Exception as error:  # cuda.core's errors have no common base
            raise BackendError(
                f"expected an NVIDIA GPU with its driver, got: {str(error).rstrip('.')}; install "
                "the driver, and see that nvidia-smi (tegrastats on Jetson) lists a GPU"
            ) from error
        self._pinned = PinnedMemory(self._core.LegacyPinnedMemoryResource().allocate)
        self._device = device
        self.stream = int(self._stream.handle)
        self._entered.done = True

    def enter(self) -> None:
        """Let this thread use the GPU; raises BackendError when the GPU is lost."""
        if self._lost is not None:
            raise BackendError(self._lost)
        if not getattr(self._entered, "done", False):
            self._core.Device(0).set_current()
            self._entered.done = True

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total memory of the GPU; free is what the host has where they share it.

        There the driver does not count what the system lends to files and takes back on demand.
        """
        free, total = map(int, self._driver("cuMemGetInfo"))
        if self.integrated:
            free = memory.available_bytes() or free
        return free, total

    def allocate(self, size_bytes: int) -> DeviceMemory:
        """Memory on the GPU, aligned to 256 bytes; raises GpuMemoryError for too little."""
        size_bytes = max(size_bytes, 1)
        try:
            try:
                buffer = self._memory.allocate(size_bytes, stream=self._stream)
            except Exception as error:
                if not _is_shortage(error):
                    raise
                self.trim()
                buffer = self._memory.allocate(size_bytes, stream=self._stream)
        except Exception as error:
            if not _is_shortage(error):
                raise self.failure("allocating memory", error) from error
            self.trim()  # after such a failure an H100 had 13 of 81,079 MiB free
            free, total = self.memory_bytes()
            raise GpuMemoryError(
                f"{self.name}: expected {size_bytes / _MIB:.0f} MiB of free GPU memory, got "
                f"{free / _MIB:.0f} of {total / _MIB:.0f} MiB; load graphs one at a time "
                "(--low-memory), decode fewer or smaller pictures at once, or close other programs"
            ) from error
        return DeviceMemory(int(buffer.handle), size_bytes, buffer)

    def pinned(self, size_bytes: int, until: Mark | None = None) -> HostMemory:
        """Host memory that copies need not stage; it is used again when its array is gone.

        ``until``: will be put behind the copies that are queued with it, before which it is not
        used again either. The contents are whatever was there before.
        """
        with self.doing(f"pinning {size_bytes / _MIB:.1f} MiB"):
            return self._pinned.lend(size_bytes, None if until is None else until._event)

    def fetch(self, name: str, source: int, size_bytes: int) -> Fetched:
        """Queue a copy to pinned memory; ``name``: in traces."""
        mark = self.mark()
        host = self.pinned(size_bytes, mark)
        with self.timed(name):
            self.copy(host.address, source, size_bytes)
        mark.put()
        return Fetched(host, mark)

    def copy(self, target: int, source: int, size_bytes: int) -> None:
        """Queue a copy between two addresses, each on the GPU or pinned."""
        handle = self._core.Buffer.from_handle
        with self.doing("copying"):
            handle(target, size_bytes).copy_from(handle(source, size_bytes), stream=self._stream)

    def mark(self, *, timed: bool = False) -> Mark:
        """A mark to put behind queued work and to wait for; ``timed``: and to tell times by."""
        options = self._core.EventOptions(timing_enabled=True) if timed else None
        return Mark(self, self._device.create_event(options), self._stream)

    @contextlib.contextmanager
    def trace(self) -> Iterator[dict[str, float]]:
        """Milliseconds by name of all work that is ``timed`` inside; they are there at the end.

        Times are the GPU's own, from event to event: where it waits for the host to queue work, as
        that of a graph which is not captured, that is in them. Under ENQUEUE stands what queueing
        took. Raises BackendError when some of the work failed.
        """
        times_ms: dict[str, float] = {}
        self._spans = spans = list[tuple[str, Mark, Mark, float]]()
        try:
            yield times_ms
        finally:
            self._spans = None
        self.wait()
        for name, began, ended, host_ms in spans:
            times_ms[name] = times_ms.get(name, 0.0) + ended.since_ms(began)
            times_ms[ENQUEUE] = times_ms.get(ENQUEUE, 0.0) + host_ms

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the work that is queued inside, while a ``trace`` is kept; else do nothing."""
        spans = self._spans
        if spans is None:
            yield
            return
        began, ended = self.mark(timed=True), self.mark(timed=True)
        began.put()
        before = time.perf_counter()
        yield
        host_ms = (time.perf_counter() - before) * 1000
        ended.put()
        spans.append((name, began, ended, host_ms))

    def capture(self, enqueue: Callable[[int], bool]) -> Captured | str:
        """Record what ``enqueue`` queues on the stream it is given, to be launched as one.

        Nothing runs here; what was queued before is waited for. ``enqueue`` returns whether all
        went well. The reason when this work cannot be recorded, which does no harm: queue it as
        before. Raises BackendError when what was queued before failed.
        """
        self.wait()
        try:
            builder = self._capturing.create_graph_builder()
            builder.begin_building("thread_local")
            try:
                sound = enqueue(int(self._capturing.handle))
            finally:
                builder.end_building()
            if not sound:
                return "the library refuses to queue it while it is recorded"
            return Captured(self, builder.complete(), self._stream)
        except Exception as error:  # cuda.core's errors have no common base
            return str(error) or type(error).__name__

    def wait(self) -> None:
        """Block until everything queued is done; raises BackendError when some of it failed."""
        with self.doing("waiting for the GPU"):
            self._stream.sync()

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Make a failure of this action of whatever cuda.core raises: it has no common base."""
        try:
            yield
        except Exception as error:
            raise self.failure(what, error) from error

    def failure(self, what: str, cause: object) -> BackendError:
        """The error to raise for work that failed; finds out whether the GPU is lost.

        A lost GPU fails at everything, so it is asked for nothing but to wait: for this stream, as
        a wait for all of them would fail, and spoil it, while another thread captures work.
        """
        if self._lost is None:
            try:
                self._stream.sync()
            except Exception as error:
                self._lost = (
                    f"{self.name}: expected it to work on, got: {error}; after such an error "
                    "nothing runs on the GPU in this process: start the process again, and report "
                    "it if it comes back"
                )
        return BackendError(self._lost or f"{self.name}: {what} failed: {cause}")

    def trim(self) -> None:
        """Give back what is kept for later: memory of the GPU that was freed, and pinned memory.

        Waits for what is queued. What is in use goes back when nobody uses it, memory of the GPU at
        the next such call. Raises BackendError when something that was queued failed.
        """
        if self._lost is not None:
            return
        self.wait()  # copies to and from pinned memory, and what is queued to be freed
        with self.doing("asking for an event"):
            self._pinned.trim()
        if self._has_pool:
            self._driver("cuMemPoolTrimTo", self._memory.handle, 0)

    def _driver(self, function: str, *arguments: object) -> tuple[Any, ...]:
        """Call a function of the driver that cuda.core has no name for."""
        code, *values = getattr(self._bindings, function)(*arguments)
        if code:
            raise BackendError(f"{function} failed: {code}")
        return tuple(values)


@dataclass(frozen=True)
class DeviceMemory:
    """Memory on the GPU; freed in the order of the stream, at the latest when nobody refers to it.

    So work that is queued already may still use it.
    """

    address: int
    size_bytes: int
    _buffer: Any

    def free(self) -> None:
        """Give the memory back; doing so twice is harmless."""
        with contextlib.suppress(Exception):  # of a lost GPU; there is nothing left to free
            self._buffer.close()


class Mark:
    """A place in the stream; make one with ``Gpu.mark``."""

    def __init__(self, gpu: Gpu, event: Any, stream: Any) -> None:
        self._gpu = gpu
        self._event = event
        self._stream = stream

    def put(self) -> None:
        """Put the mark behind what is queued now."""
        with self._gpu.doing("recording an event"):
            self._stream.record(self._event)

    @property
    def reached(self) -> bool:
        """Whether what was queued before the mark is done, or it was never put; never waits."""
        with self._gpu.doing("asking for an event"):
            return bool(self._event.is_done)

    def wait(self) -> None:
        """Block until what was queued before the mark is done; at once when it was never put."""
        with self._gpu.doing("waiting for the GPU"):
            self._event.sync()

    def since_ms(self, earlier: Mark) -> float:
        """Milliseconds on the GPU's clock between two timed marks, both of which were reached."""
        with self._gpu.doing("reading the times of events"):
            return float(self._event - earlier._event)


@dataclass(frozen=True)
class Fetched:
    """What is on its way to the host: ``memory`` holds it behind ``wait``."""

    memory: HostMemory
    mark: Mark

    def wait(self) -> None:
        """Block until it is there."""
        if not self.mark.reached:
            self.mark.wait()
        self.memory.settle()


class Captured:
    """Work that was captured; the memory that it names must live as long as it is launched."""

    def __init__(self, gpu: Gpu, graph: Any, stream: Any) -> None:
        self._gpu = gpu
        self._graph = graph
        self._stream = stream

    def launch(self) -> None:
        """Queue the work."""
        with self._gpu.doing("launching a CUDA graph"):
            self._graph.launch(self._stream)

    def free(self) -> None:
        """Give the memory back; doing so twice is harmless."""
        with contextlib.suppress(Exception):
            self._graph.close()


def _told(properties: Any, name: str) -> int:
    """A property of a device, 0 where the driver has none: not all boards tell their clocks."""
    try:
        return int(getattr(properties, name))
    except Exception:
        return 0


def _is_shortage(error: Exception) -> bool:
    return "OUT_OF_MEMORY" in str(error).upper()


def _import_cuda() -> tuple[Any, Any]:
    """cuda.core and the bindings of the driver, which must be there too."""
    try:
        import cuda.core as core
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendError(
            f"expected the packages cuda-core and cuda-bindings, cannot import them ({error}); "
            "install them with: pip install cuda-core cuda-bindings (of the major version of CUDA "
            "that the driver knows: 'cuda-bindings<13' on JetPack 6)"
        ) from error
    return core, driver
