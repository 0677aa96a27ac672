"""The driver layer on a GPU made of numpy memory, and its names against the real packages."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from typing import Any

import numpy as np
import pytest
from gpu_stand_in import FRESH, StandInGpu

from percoedge.engines.tensorrt import cuda
from percoedge.engines.tensorrt.cuda import Captured, Gpu
from percoedge.errors import BackendError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> StandInGpu:
    machine = StandInGpu()
    monkeypatch.setattr(cuda, "_import_cuda", lambda: (machine.core, machine.bindings))
    return machine


@pytest.fixture
def gpu(machine: StandInGpu) -> Gpu:
    return Gpu()


def test_what_it_is(gpu: Gpu, machine: StandInGpu) -> None:
    assert (gpu.name, gpu.sm, gpu.cuda_version) == ("Stand-in 4090", 89, "13.1")
    memory = gpu.allocate(1 << 20)
    assert memory.address % 256 == 0
    assert gpu.memory_bytes() == (machine.total_bytes - (1 << 20), machine.total_bytes)


def test_a_round_trip(gpu: Gpu) -> None:
    there, out, back = gpu.allocate(64), gpu.pinned(64), gpu.pinned(64)
    out.array[:] = np.arange(64)
    gpu.copy(there.address, out.address, 64)
    gpu.copy(back.address, there.address + 16, 16)
    assert (back.array == FRESH).all()  # nothing has happened yet
    gpu.wait()
    np.testing.assert_array_equal(back.array[:16], np.arange(16, 32))


def test_a_mark_is_reached_before_what_stands_behind_it(gpu: Gpu) -> None:
    there, out, back = gpu.allocate(64), gpu.pinned(64), gpu.pinned(64)
    mark = gpu.mark()
    mark.wait()  # never put
    out.array[:] = 1
    gpu.copy(there.address, out.address, 64)
    mark.put()
    gpu.copy(back.address, there.address, 64)
    mark.wait()
    out.array[:] = 2
    assert (back.array == FRESH).all()
    gpu.wait()
    assert (back.array == 1).all()


def test_memory_lives_as_long_as_work_that_is_queued(gpu: Gpu, machine: StandInGpu) -> None:
    there, out, back = gpu.allocate(64), gpu.pinned(64), gpu.pinned(64)
    out.array[:] = 3
    gpu.copy(there.address, out.address, 64)
    gpu.copy(back.address, there.address, 64)
    there.free()
    gpu.wait()
    assert (back.array == 3).all()
    assert machine.used_bytes == 0


def test_pinned_memory_is_used_again_when_no_array_is_left(gpu: Gpu, machine: StandInGpu) -> None:
    first = gpu.pinned(5000)
    part = first.array[8:16].view(np.int32)
    address = first.address
    del first
    gc.collect()
    assert gpu.pinned(5000).address != address  # a view still has it
    del part
    gc.collect()
    assert gpu.pinned(4097).address == address  # sizes are rounded up
    before = machine.pinned_bytes
    gpu.trim()
    assert machine.pinned_bytes < before


def test_pinned_memory_is_not_used_again_while_it_is_copied(gpu: Gpu) -> None:
    there = gpu.allocate(64)
    address = gpu.fetch("fetch", there.address, 64).memory.address
    gc.collect()
    other = gpu.pinned(64)
    assert other.address != address  # the copy will be written there
    gpu.wait()
    assert gpu.pinned(64).address == address


def test_captured_work_runs_when_it_is_launched(gpu: Gpu, machine: StandInGpu) -> None:
    there, out, back = gpu.allocate(64), gpu.pinned(64), gpu.pinned(64)

    def enqueue(stream: int) -> bool:
        machine.queue(lambda: machine.memory(there.address, 64).__iadd__(1), stream)
        return True

    captured = gpu.capture(enqueue)
    assert isinstance(captured, Captured)
    out.array[:] = 5
    gpu.copy(there.address, out.address, 64)
    captured.launch()
    captured.launch()
    gpu.copy(back.address, there.address, 64)
    gpu.wait()
    assert (back.array == 7).all()
    captured.free()


def test_work_that_cannot_be_captured(gpu: Gpu, machine: StandInGpu) -> None:
    assert gpu.capture(lambda stream: False) == (
        "the library refuses to queue it while it is recorded"
    )
    assert gpu.capture(lambda stream: bool(1 // 0)) == "integer division or modulo by zero"
    machine.capturable = False
    assert "CAPTURE_INVALIDATED" in str(gpu.capture(lambda stream: True))
    gpu.wait()


def test_what_fails_elsewhere_spoils_no_capture(gpu: Gpu) -> None:
    """Nor is that GPU taken for lost because it may not be waited for as a whole meanwhile."""
    other = Gpu()
    errors: list[BackendError] = []

    def fail() -> None:
        other.enter()
        errors.append(other.failure("a shape", "it is too large"))

    def enqueue(stream: int) -> bool:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return True

    assert isinstance(gpu.capture(enqueue), Captured)
    assert "a shape failed: it is too large" in str(errors[0])
    other.enter()


def test_work_is_captured_when_what_is_queued_is_done(gpu: Gpu) -> None:
    """Libraries set up what they need in a first run, on a stream of their choice."""
    there, out, back = gpu.allocate(64), gpu.pinned(64), gpu.pinned(64)
    out.array[:] = 3
    gpu.copy(there.address, out.address, 64)
    gpu.copy(back.address, there.address, 64)
    gpu.capture(lambda stream: bool((back.array == 3).all()) or bool(1 // 0))
    assert (back.array == 3).all()


def test_memory_that_is_freed_is_kept_until_it_is_needed(gpu: Gpu, machine: StandInGpu) -> None:
    gpu.allocate(200 << 20).free()
    gpu.wait()
    assert machine.kept_bytes == 200 << 20
    assert gpu.memory_bytes()[0] == 56 << 20
    gpu.allocate(100 << 20)  # more than is left: what is kept goes back first
    assert machine.kept_bytes == 0
    gpu.allocate(1 << 20).free()
    gpu.trim()
    assert machine.kept_bytes == 0


def test_an_allocation_in_vain_leaves_nothing_with_the_pool(gpu: Gpu, machine: StandInGpu) -> None:
    with pytest.raises(BackendError, match="expected 1024 MiB of free GPU memory, got 256 of 256"):
        gpu.allocate(1 << 30)
    assert machine.kept_bytes == 0


def test_a_gpu_without_memory_of_its_own_has_what_the_host_has(
    machine: StandInGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.integrated = True
    monkeypatch.setattr("percoedge.engines.memory.available_bytes", lambda: 12345)
    assert Gpu().memory_bytes() == (12345, machine.total_bytes)
    monkeypatch.setattr("percoedge.engines.memory.available_bytes", lambda: None)
    assert Gpu().memory_bytes() == (machine.total_bytes, machine.total_bytes)


def test_a_trace_tells_the_times_of_the_gpu(gpu: Gpu) -> None:
    there, out = gpu.allocate(64), gpu.pinned(64)

    def copies(name: str, count: int) -> None:
        with gpu.timed(name):
            for _ in range(count):
                gpu.copy(there.address, out.address, 64)

    copies("before", 1)
    with gpu.trace() as times_ms:
        copies("up", 2)
        gpu.copy(there.address, out.address, 64)  # nobody times it
        copies("down", 3)
        copies("up", 4)
        assert times_ms == {}
    copies("behind", 1)
    assert 0 < times_ms.pop("enqueue") < 1000
    assert times_ms == {"up": 6, "down": 3}


def test_a_trace_of_work_that_fails(gpu: Gpu, machine: StandInGpu) -> None:
    def broken() -> None:
        with gpu.trace(), gpu.timed("up"):
            machine.break_down()

    with pytest.raises(BackendError, match="ILLEGAL_ADDRESS"):
        broken()


def test_other_threads_enter_first(gpu: Gpu) -> None:
    problems: list[Exception] = []

    def work() -> None:
        try:
            gpu.enter()
            gpu.allocate(16).free()
            gpu.wait()
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert problems == []


def test_too_little_memory_is_no_loss(gpu: Gpu, machine: StandInGpu) -> None:
    with pytest.raises(BackendError, match=r"expected 1024 MiB .* got 256 of 256 MiB; load graphs"):
        gpu.allocate(1 << 30)
    gpu.enter()
    gpu.allocate(16)


def test_a_wrong_call_is_no_loss(gpu: Gpu, machine: StandInGpu) -> None:
    machine.bindings.cuMemGetInfo = lambda: (1, 0, 0)
    with pytest.raises(BackendError, match="cuMemGetInfo failed: 1"):
        gpu.memory_bytes()
    assert "copying failed: sizes" in str(gpu.failure("copying", "sizes"))
    gpu.enter()


def test_a_lost_gpu_fails_everywhere_in_the_same_words(gpu: Gpu, machine: StandInGpu) -> None:
    memory, host, mark = gpu.allocate(16), gpu.pinned(16), gpu.mark()
    captured = gpu.capture(lambda stream: True)
    assert isinstance(captured, Captured)
    machine.break_down()
    said = set()
    for call in (
        gpu.wait,
        gpu.enter,
        mark.put,
        mark.wait,
        lambda: gpu.copy(memory.address, host.address, 16),
        lambda: gpu.allocate(16),
        lambda: gpu.pinned(1 << 16),
        captured.launch,
        lambda: gpu.capture(lambda stream: True),
    ):
        with pytest.raises(BackendError, match=r"ILLEGAL_ADDRESS.*start the process again") as e:
            call()
        said.add(str(e.value))
    assert len(said) == 1
    memory.free()
    captured.free()


class TestWhatIsMissing:
    def test_the_packages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cuda.core", None)
        with pytest.raises(
            BackendError, match=r"cuda-core and cuda-bindings.*pip install cuda-core"
        ):
            Gpu()

    def test_the_gpu(self, machine: StandInGpu) -> None:
        def refuse(ordinal: int) -> Any:
            raise RuntimeError("CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected")

        machine.core.Device = refuse
        with pytest.raises(BackendError, match=r"expected an NVIDIA GPU .*NO_DEVICE.*nvidia-smi"):
            Gpu()


# Every name that cuda.py uses, by module; cuda.core has them where it has no GPU too.
_NAMES = {
    "cuda.core": {
        "Device": "set_current compute_capability name properties memory_resource create_stream "
        "create_event sync",
        "EventOptions": "timing_enabled",
        "Stream": "handle sync record create_graph_builder",
        "Event": "sync __sub__",
        "Buffer": "handle from_handle copy_from close",
        "DeviceMemoryResource": "allocate",
        "DeviceMemoryResourceOptions": "",
        "LegacyPinnedMemoryResource": "allocate",
    },
    "cuda.core.graph": {
        "GraphBuilder": "begin_building end_building complete",
        "Graph": "launch close",
    },
    "cuda.bindings.driver": {"cuDriverGetVersion": "", "cuMemGetInfo": ""},
}


@pytest.mark.parametrize("module", _NAMES)
def test_names_of_the_real_packages(module: str) -> None:
    found = pytest.importorskip(module, exc_type=ImportError)
    for name, attributes in _NAMES[module].items():
        for attribute in attributes.split():
            assert hasattr(getattr(found, name), attribute), f"{name}.{attribute}"
        assert hasattr(found, name)


def test_the_real_packages_without_a_driver() -> None:
    pytest.importorskip("cuda.core", exc_type=ImportError)
    try:
        importlib.import_module("cuda.bindings.driver").cuInit(0)
    except Exception:
        with pytest.raises(BackendError, match="expected an NVIDIA GPU with its driver, got: "):
            Gpu()
    else:
        pytest.skip("there is a driver")
