"""Part "cuda": what engines/tensorrt/cuda.py promises, on a GPU and without any library above it.

The kernel adds 1 to every number of an array; it is given as text that the driver compiles.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.record import Options, Record, Skipped
from percoedge.engines.tensorrt.cuda import Captured, DeviceMemory, Gpu
from percoedge.errors import BackendError

_MIB = 1 << 20
_THREADS = 256
_CYCLES = 200
_ADD_ONE = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry add_one(.param .u64 data, .param .u32 count)
{
  .reg .pred %p0;
  .reg .u32 %r<5>;
  .reg .u64 %d<3>;
  .reg .f32 %f<2>;
  ld.param.u64 %d0, [data];
  ld.param.u32 %r0, [count];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.u32 %r4, %r1, %r2, %r3;
  setp.ge.u32 %p0, %r4, %r0;
  @%p0 bra DONE;
  mul.wide.u32 %d1, %r4, 4;
  add.u64 %d2, %d0, %d1;
  ld.global.f32 %f0, [%d2];
  add.f32 %f1, %f0, 0f3F800000;
  st.global.f32 [%d2], %f1;
DONE:
  ret;
}
\0"""


class Kernel:
    """Adds 1 to ``count`` float32 at an address."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver = driver
        text = np.frombuffer(_ADD_ONE, np.uint8)
        self._module = self._call("cuModuleLoadData", text.ctypes.data)
        self._function = self._call("cuModuleGetFunction", self._module, b"add_one")

    def queue(self, stream: int, address: int, count: int) -> bool:
        """Queue it on a stream."""
        data = np.array([address], np.uint64), np.array([count], np.uint32)
        pointers = np.array([one.ctypes.data for one in data], np.uint64)
        blocks = -(-count // _THREADS)
        shape = (blocks, 1, 1, _THREADS, 1, 1, 0)
        self._call("cuLaunchKernel", self._function, *shape, stream, pointers.ctypes.data, 0)
        return True

    def refused(self, stream: int) -> bool:
        """What must not be done while work is captured: wait for it."""
        self._call("cuStreamSynchronize", stream)
        return True

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._driver, name)(*arguments)
        if code:
            raise RuntimeError(f"{name} failed: {code}")
        return values[0] if values else None


def cuda(record: Record, options: Options) -> None:
    """Every promise by itself; what fails does not stop the next."""
    try:
        gpu = Gpu()
    except BackendError as error:
        raise Skipped(f"needs a GPU: {error}") from error
    record.attempt("allocate", _allocate, gpu)
    record.attempt("copy", _copy, gpu)
    record.attempt("events", _events, gpu)
    kernel = record.attempt("kernel", _kernel, gpu) and Kernel()
    if kernel:
        record.attempt("capture", _capture, gpu, kernel)
        record.attempt("capture_refused", _capture_refused, gpu, kernel)
    record.attempt("pool_threshold", _pool, gpu)
    record.attempt("illegal_address", _illegal_address)
    record.attempt("out_of_memory", _out_of_memory, gpu)  # last: it may leave none to others


def _allocate(gpu: Gpu) -> dict[str, Any]:
    before, total = gpu.memory_bytes()
    blocks = [gpu.allocate(size) for size in (1, 100, 3 * _MIB, 256 * _MIB)]
    gpu.wait()
    within = gpu.memory_bytes()[0]
    aligned = all(block.address % 256 == 0 for block in blocks)
    for block in blocks:
        block.free()
    gpu.wait()
    freed = gpu.memory_bytes()[0]
    gpu.trim()
    trimmed = gpu.memory_bytes()[0]
    free = {"before": before, "within": within, "freed": freed, "trimmed": trimmed, "total": total}
    return {"aligned": aligned, **{f"{name}_mib": size >> 20 for name, size in free.items()}}


def _copy(gpu: Gpu) -> dict[str, Any]:
    size = 64 * _MIB
    there = gpu.allocate(size)
    source, target = gpu.pinned(size), gpu.pinned(size)
    source.array[:] = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    target.array[:] = 0
    rates = {}
    for name, ends in {
        "host_to_device": (there.address, source.address),
        "device_to_host": (target.address, there.address),
    }.items():
        gpu.copy(*ends, size)
        began, ended = gpu.mark(timed=True), gpu.mark(timed=True)
        began.put()
        for _ in range(10):
            gpu.copy(*ends, size)
        ended.put()
        gpu.wait()
        rates[f"{name}_gb_per_s"] = 10 * size / ended.since_ms(began) / 1e6
    equal = bool((source.array == target.array).all())
    count = 1000
    began_s = time.perf_counter()
    for _ in range(count):
        gpu.copy(there.address, source.address, 4096)
    queued_us = (time.perf_counter() - began_s) / count * 1e6
    gpu.wait()
    done_us = (time.perf_counter() - began_s) / count * 1e6
    return {"equal": equal, **rates, "queueing_us": queued_us, "copy_of_4_kib_us": done_us}


def _events(gpu: Gpu) -> dict[str, Any]:
    size = 64 * _MIB
    one, two, host = gpu.allocate(size), gpu.allocate(size), gpu.pinned(4096)
    with gpu.trace() as times_ms, gpu.timed("copy"):
        gpu.copy(one.address, two.address, size)
    mark = gpu.mark()

    def wait_for_event() -> None:
        mark.put()
        mark.wait()

    def copy_and_wait() -> None:
        gpu.copy(one.address, host.address, 4096)
        gpu.wait()

    costs = {
        "waiting_for_a_reached_event_us": _each_us(wait_for_event),
        "waiting_for_an_idle_stream_us": _each_us(gpu.wait),
        "copying_4_kib_and_waiting_us": _each_us(copy_and_wait),
        "making_an_event_us": _each_us(gpu.mark),
    }
    return {"trace_ms": dict(times_ms), **costs}


def _each_us(function: Callable[[], object], count: int = 1000) -> float:
    began = time.perf_counter()
    for _ in range(count):
        function()
    return (time.perf_counter() - began) / count * 1e6


def _kernel(gpu: Gpu) -> dict[str, Any]:
    kernel, count = Kernel(), 1 << 20
    data = _zeros(gpu, count)
    kernel.queue(gpu.stream, data.address, count)
    host = _fetch(gpu, data, count)
    queueing_us = _each_us(lambda: kernel.queue(gpu.stream, data.address, count))
    gpu.wait()
    return {"right": bool((host == 1).all()), "queueing_us": queueing_us}


def _capture(gpu: Gpu, kernel: Kernel) -> dict[str, Any]:
    count, kernels = 1 << 10, 20
    data = _zeros(gpu, count)

    def plain(stream: int = gpu.stream) -> bool:
        return all(kernel.queue(stream, data.address, count) for _ in range(kernels))

    captured = gpu.capture(plain)
    if not isinstance(captured, Captured):
        raise RuntimeError(f"expected captured work, got {captured!r}")
    before = _fetch(gpu, data, count)
    for _ in range(3):
        captured.launch()
    after = _fetch(gpu, data, count)
    launch_us = _each_us(captured.launch)
    gpu.wait()
    plain_us = _each_us(plain)
    gpu.wait()
    captured.free()
    return {
        "nothing_ran_while_capturing": bool((before == 0).all()),
        "three_launches_are_right": bool((after == 3 * kernels).all()),
        "kernels": kernels,
        "launch_us": launch_us,
        "one_by_one_us": plain_us,
    }


def _capture_refused(gpu: Gpu, kernel: Kernel) -> dict[str, Any]:
    """What cannot be captured does no harm: neither to the next capture nor to plain work."""
    count = 1 << 10
    data = _zeros(gpu, count)
    said = {
        "returned_false": repr(gpu.capture(lambda stream: False)),
        "waited": repr(gpu.capture(kernel.refused)),
        "raised": repr(gpu.capture(lambda stream: bool(1 // 0))),
    }
    kernel.queue(gpu.stream, data.address, count)
    plain = bool((_fetch(gpu, data, count) == 1).all())
    captured = gpu.capture(lambda stream: kernel.queue(stream, data.address, count))
    if isinstance(captured, Captured):
        captured.launch()
    again = bool((_fetch(gpu, data, count) == 2).all())
    return {**said, "plain_work_goes_on": plain, "the_next_capture_is_right": again}


def _pool(gpu: Gpu) -> dict[str, Any]:
    """An allocation, a copy and a wait, over and over, by what the pool keeps."""
    from cuda.bindings import driver

    pool = driver.CUmemoryPool(int(gpu._memory.handle))
    attribute = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    code, own = driver.cuMemPoolGetAttribute(pool, attribute)
    found: dict[str, Any] = {"of_the_backend": str(code) if code else int(own)}
    host = gpu.pinned(4096)

    def cycle(size: int, times_us: dict[str, list[float]]) -> None:
        block: list[DeviceMemory] = []
        steps: dict[str, Callable[[], object]] = {
            "allocate": lambda: block.append(gpu.allocate(size)),
            "queue a copy": lambda: gpu.copy(block[0].address, host.address, 4096),
            "wait for it": gpu.wait,
            "free": lambda: block[0].free(),
            "wait for that": gpu.wait,
        }
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times_us.setdefault(name, []).append((time.perf_counter() - began) * 1e6)

    for name, threshold in {"zero": 0, "max": (1 << 64) - 1}.items():
        (code,) = driver.cuMemPoolSetAttribute(pool, attribute, driver.cuuint64_t(threshold))
        if code:
            raise RuntimeError(f"cuMemPoolSetAttribute failed: {code}")
        for size in (1, 16, 256):
            cycle(size * _MIB, {})
            times_us: dict[str, list[float]] = {}
            for _ in range(_CYCLES):
                cycle(size * _MIB, times_us)
            medians = {step: statistics.median(times) for step, times in times_us.items()}
            found[f"{name}, {size} MiB, us"] = medians
    driver.cuMemPoolSetAttribute(pool, attribute, driver.cuuint64_t(int(own)))
    return found


def _out_of_memory(gpu: Gpu) -> dict[str, Any]:
    total = gpu.memory_bytes()[1]
    try:
        gpu.allocate(2 * total)
        said = "nothing was raised"
    except BackendError as error:
        said = str(error)
    gpu.wait()
    gpu.allocate(_MIB).free()
    return {"said": said, "goes_on": True}


def _illegal_address() -> dict[str, Any]:
    """In a process of its own, to which the GPU is lost."""
    command = [sys.executable, "-m", "benchmarks.gpu.driver"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    print(done.stdout, done.stderr)
    said = sorted(set(done.stdout.splitlines()))
    wrong = done.stderr.strip().splitlines()[-5:]  # what ended it, if it did not come to its end
    return {"code": done.returncode, "said": said, "one_error": len(said) == 1, "wrong": wrong}


def lose() -> None:
    """Make the GPU unusable to this process; print what every call says then."""
    gpu, kernel = Gpu(), Kernel()
    memory = gpu.allocate(_MIB)
    kernel.queue(gpu.stream, 1 << 8, 1)
    calls: list[Callable[[], object]] = [gpu.wait, gpu.wait, lambda: gpu.allocate(_MIB), gpu.enter]
    calls += [lambda: gpu.pinned(1 << 22), lambda: gpu.copy(memory.address, memory.address, 16)]
    for call in calls:
        try:
            call()
            print("nothing was raised", flush=True)
        except BackendError as error:
            print(error, flush=True)
    memory.free()


def _zeros(gpu: Gpu, count: int) -> Any:
    data, host = gpu.allocate(4 * count), gpu.pinned(4 * count)
    host.array[:] = 0
    gpu.copy(data.address, host.address, 4 * count)
    gpu.wait()
    return data


def _fetch(gpu: Gpu, data: Any, count: int) -> Any:
    host = gpu.pinned(4 * count)
    gpu.copy(host.address, data.address, 4 * count)
    gpu.wait()
    return host.array.view(np.float32).copy()


if __name__ == "__main__":
    lose()
