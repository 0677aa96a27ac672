"""A GPU made of numpy memory: stands in for cuda.core where there is none.

Work is queued and does nothing before somebody waits for it, as on a GPU. So what reads too early,
overwrites too early, frees too early or uses a wrong address gives wrong results or an error.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRESH = 0xA5  # what memory holds before anything is written


class CudaError(Exception):
    """What cuda.core raises."""


class StandInGpu:
    """``core`` and ``bindings`` take the places of cuda.core and cuda.bindings.driver.

    ``used_bytes`` and ``pinned_bytes`` are allocated, and ``kept_bytes`` were freed but stay with
    the pool until it is trimmed, and are not used again before. ``launches`` counts CUDA graphs
    that were launched, ``fetches`` the copies to pinned memory, ``syncs`` how often the host
    waited, and ``queued`` pieces of work by stream. ``capturable``: whether work can be captured.
    ``clock_ms``: its clock, which a copy moves on by 1. ``break_down`` makes all that is queued
    later fail for good, and ``disturb`` spoils all captures that are under way, as whoever waits
    for the whole GPU does.
    """

    def __init__(self, sm: tuple[int, int] = (8, 9), total_bytes: int = 1 << 28) -> None:
        self.total_bytes = total_bytes
        self.used_bytes = self.pinned_bytes = self.launches = self.fetches = 0
        self.kept_bytes = self.syncs = 0
        self.integrated = False
        self.capturable = True
        self.clock_ms = 0
        self.queued: Counter[int] = Counter()
        self._error: str | None = None
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._pinned: set[int] = set()
        self._queues: dict[int, list[Callable[[], None]]] = {}  # by stream
        self._captures: dict[int, list[Callable[[], None]]] = {}  # likewise
        self._spoilt: set[int] = set()  # streams whose captures are
        self._current = threading.local()  # ``set``, and ``capturing``: streams of this thread
        self._turn = threading.RLock()  # one thread at a time does what is queued
        gpu = self

        class Buffer:
            def __init__(self, handle: int, size: int, free: Callable[[], None] | None) -> None:
                self.handle, self.size, self._free = handle, size, free

            @staticmethod
            def from_handle(handle: int, size: int) -> Buffer:
                return Buffer(handle, size, None)

            def copy_from(self, source: Buffer, *, stream: Any) -> None:
                gpu.check()
                target, start, size = self.handle, source.handle, self.size
                gpu.fetches += target in gpu._pinned
                if source.size != size:
                    raise ValueError("sizes differ")

                def copy() -> None:
                    gpu.clock_ms += 1
                    gpu.memory(target, size)[:] = gpu.memory(start, size)

                gpu.queue(copy, stream.handle)

            def close(self) -> None:
                if self._free is not None:
                    self._free()
                self._free = None

            __del__ = close

        class Pool:
            handle = "pool"

            def __init__(self, device: Any, options: Any) -> None: ...

            def allocate(self, size: int, *, stream: Any) -> Buffer:
                gpu.check()
                gpu._refuse_while_capturing()
                if gpu.used_bytes + gpu.kept_bytes + size > gpu.total_bytes:
                    # On an H100 13 of 81,079 MiB were free after such a failure. Nobody looked at
                    # where the rest was; here the pool has it, which is the worst for callers.
                    gpu.kept_bytes = gpu.total_bytes - gpu.used_bytes
                    raise CudaError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
                address = gpu._add(size)
                with gpu._turn:
                    gpu.used_bytes += size

                def free() -> None:  # in the order of the stream
                    with gpu._turn:
                        gpu.used_bytes -= size
                        gpu._queues[stream.handle].append(lambda: gpu._free(address, size))

                return Buffer(address, size, free)

        class Pinned:
            def allocate(self, size: int) -> Buffer:
                gpu.check()
                address = gpu._add(size)
                gpu._pinned.add(address)
                with gpu._turn:
                    gpu.pinned_bytes += size

                def free() -> None:
                    with gpu._turn:
                        gpu.pinned_bytes -= size
                    gpu._pinned.discard(address)
                    gpu._remove(address)

                return Buffer(address, size, free)

        class Event:
            done, stream, reached_at = True, 0, 0

            def __init__(self, timed: bool) -> None:
                self.timed = timed

            def sync(self) -> None:
                gpu.check()
                gpu.syncs += 1
                while not self.done:
                    gpu._step(self.stream)

            @property
            def is_done(self) -> bool:
                gpu.check()
                return self.done

            def reach(self) -> None:
                self.done, self.reached_at = True, gpu.clock_ms

            def __sub__(self, other: Event) -> float:
                if not (self.timed and other.timed and self.done and other.done):
                    raise CudaError("CUDA_ERROR_NOT_READY: no times")
                return float(self.reached_at - other.reached_at)

        class Builder:
            def __init__(self, stream: Stream) -> None:
                self._stream = stream

            def begin_building(self, mode: str) -> None:
                gpu.check()
                gpu.begin_capture(self._stream.handle)
                gpu._current.capturing = self._stream.handle

            def end_building(self) -> None:
                self._work, sound = gpu.end_capture(self._stream.handle)
                gpu._current.capturing = None
                if not (sound and gpu.capturable):
                    raise CudaError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")

            def complete(self) -> Any:
                work = list(self._work)

                def launch(stream: Stream) -> None:
                    gpu.check()
                    gpu.launches += 1
                    for part in work:
                        gpu.queue(part, stream.handle)

                return SimpleNamespace(launch=launch, close=work.clear)

        class Stream:
            def __init__(self) -> None:
                self.handle = len(gpu._queues) + 1
                gpu._queues[self.handle] = []

            def create_graph_builder(self) -> Builder:
                return Builder(self)

            def sync(self) -> None:
                gpu.check()
                gpu.syncs += 1
                gpu._refuse_while_capturing()
                while gpu._queues[self.handle]:
                    gpu._step(self.handle)

            def record(self, event: Event) -> None:
                event.done, event.stream = False, self.handle
                gpu.queue(event.reach, self.handle)

        class Device:
            name = "Stand-in 4090"
            compute_capability = sm
            memory_resource = None

            def __init__(self, ordinal: int) -> None:
                self.properties = SimpleNamespace(
                    memory_pools_supported=True,
                    multiprocessor_count=128,
                    integrated=gpu.integrated,
                    clock_rate=2_520_000,
                    memory_clock_rate=10_501_000,
                    global_memory_bus_width=384,
                )

            def create_stream(self) -> Stream:
                return Stream()

            def create_event(self, options: Any = None) -> Event:
                return Event(options is not None and options.timing_enabled)

            def set_current(self) -> None:
                gpu._current.set = True

            def sync(self) -> None:
                gpu.check()
                if gpu.disturb():
                    raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

        self.core = SimpleNamespace(
            Device=Device,
            Buffer=Buffer,
            DeviceMemoryResource=Pool,
            EventOptions=SimpleNamespace,
            DeviceMemoryResourceOptions=SimpleNamespace,
            LegacyPinnedMemoryResource=Pinned,
        )
        self.bindings = SimpleNamespace(
            cuDriverGetVersion=lambda: (0, 13010),
            cuMemGetInfo=lambda: (0, self.free_bytes, self.total_bytes),
            cuMemPoolSetAttribute=self._set_threshold,
            cuMemPoolTrimTo=self._trim,
            cuuint64_t=int,
            CUmemPool_attribute=SimpleNamespace(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD="threshold"),
        )
        self._threshold = 0

    @property
    def free_bytes(self) -> int:
        """What is neither allocated nor kept."""
        return self.total_bytes - self.used_bytes - self.kept_bytes

    def memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """Bytes at an address, all of one allocation; raises CudaError."""
        for start in list(self._blocks):
            block = self._blocks.get(start, ())
            if start <= address and address + size <= start + len(block):
                return block[address - start : address - start + size]
        raise CudaError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")

    def queue(self, work: Callable[[], None], stream: int) -> None:
        """Put work behind what is queued, or into the graph that is captured from that stream."""
        self.check()
        if stream in self._captures:
            self._captures[stream].append(work)
        else:
            self._queues[stream].append(work)
            self.queued[stream] += 1

    def begin_capture(self, stream: int) -> None:
        """Note what is queued on a stream, until ``end_capture``."""
        self._captures[stream] = []

    def end_capture(self, stream: int) -> tuple[list[Callable[[], None]], bool]:
        """What was noted, and whether nobody waited for the whole GPU meanwhile."""
        work, spoilt = self._captures.pop(stream), stream in self._spoilt
        self._spoilt.discard(stream)
        return work, not spoilt

    def disturb(self) -> bool:
        """Spoil all captures that are under way; returns whether there were any."""
        self._spoilt |= set(self._captures)
        return bool(self._captures)

    def break_down(self) -> None:
        """Queue an access to address 0 on the first stream."""
        self._queues[1].append(lambda: self._remove(0))

    def check(self) -> None:
        """Raise CudaError for a lost GPU, and in a thread that did not make it current."""
        if self._error is not None:
            raise CudaError(self._error)
        if not getattr(self._current, "set", False):
            raise CudaError("CUDA_ERROR_INVALID_CONTEXT: invalid device context")

    def _refuse_while_capturing(self) -> None:
        """Raise CudaError in a thread that captures: others may go on ("thread_local")."""
        if getattr(self._current, "capturing", None) is not None:
            raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def _step(self, stream: int) -> None:
        with self._turn:
            if not self._queues[stream]:
                return
            try:
                self._queues[stream].pop(0)()
            except CudaError as error:
                self._error = str(error)
                self._queues = {handle: [] for handle in self._queues}
                raise

    def _free(self, address: int, size: int) -> None:
        self._remove(address)
        self.kept_bytes += min(size, max(0, self._threshold - self.kept_bytes))

    def _set_threshold(self, pool: str, attribute: str, value: int) -> tuple[int]:
        assert (pool, attribute) == ("pool", "threshold")
        self._threshold = value
        return (0,)

    def _trim(self, pool: str, size: int) -> tuple[int]:
        self.kept_bytes = min(self.kept_bytes, size)
        return (0,)

    def _remove(self, address: int) -> None:
        if self._blocks.pop(address, None) is None:
            raise CudaError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered")

    def _add(self, size: int) -> int:
        block = np.full(size + 256, FRESH, np.uint8)
        start = -block.ctypes.data % 256
        block = block[start : start + size]
        address = block.ctypes.data
        self._blocks[address] = block
        return address
