"""Part "device": the GPU, its driver, its memory pools, and what it does at the moment."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

from benchmarks.gpu.record import Options, Record, Skipped
from percoedge.engines.selection import available
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.runtime.bench.machine import describe
from percoedge.runtime.bench.meters import nvml_gpu

_PROPERTIES = (
    *("multiprocessor_count", "clock_rate", "memory_clock_rate", "global_memory_bus_width"),
    *("l2_cache_size", "integrated", "memory_pools_supported", "can_map_host_memory"),
    *("max_threads_per_multiprocessor", "max_shared_memory_per_multiprocessor"),
    *("concurrent_managed_access", "pageable_memory_access", "async_engine_count"),
)


def device(record: Record, options: Options) -> None:
    """Describe the GPU; skipped where neither CUDA nor NVML finds one."""
    record.attempt("machine", describe)
    told = record.attempt("nvml", _nvml)
    record.attempt("nvidia_smi", _nvidia_smi)
    core = record.attempt("cuda", _cuda)
    record.attempt("torch", _torch)
    record.attempt("backends", _backends)
    if told is None and core is None:
        raise Skipped("needs an NVIDIA GPU with its driver")


def _cuda() -> dict[str, Any]:
    gpu = Gpu()
    import cuda.core as core
    from cuda.bindings import driver

    properties = core.Device(0).properties
    free, total = gpu.memory_bytes()
    found = {
        "name": gpu.name,
        "sm": gpu.sm,
        "cuda_of_the_driver": gpu.cuda_version,
        "free_mib": free >> 20,
        "total_mib": total >> 20,
        **{name: _told(properties, name) for name in _PROPERTIES},
    }
    code, pool = driver.cuDeviceGetDefaultMemPool(0)
    if not code:
        attribute = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        code, threshold = driver.cuMemPoolGetAttribute(pool, attribute)
        found["release_threshold_of_the_default_pool"] = str(code) if code else int(threshold)
    return found


def _told(properties: Any, name: str) -> Any:
    try:
        value = getattr(properties, name)
    except Exception as error:
        return f"unknown: {error}"
    return value if isinstance(value, (bool, int, str)) else str(value)


def _nvml() -> dict[str, Any]:
    with nvml_gpu() as found:
        if found is None:
            raise Skipped("needs nvidia-ml-py and a driver")
        nvml, gpu = found
        asked = {
            "name": ("nvmlDeviceGetName",),
            "sm_mhz_now": ("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz_now": ("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            "sm_mhz_most": ("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
            "memory_mhz_most": ("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_MEM),
            "power_mw": ("nvmlDeviceGetPowerUsage",),
            "power_limit_mw": ("nvmlDeviceGetEnforcedPowerLimit",),
            "celsius": ("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": ("nvmlDeviceGetCurrentClocksThrottleReasons",),
            "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration",),
            "pcie_lanes": ("nvmlDeviceGetCurrPcieLinkWidth",),
            "millijoules": ("nvmlDeviceGetTotalEnergyConsumption",),
        }
        told: dict[str, Any] = {"driver": str(nvml.nvmlSystemGetDriverVersion())}
        for name, (function, *arguments) in asked.items():
            try:
                told[name] = getattr(nvml, function)(gpu, *arguments)
            except Exception as error:
                told[name] = f"unknown: {error}"
        return told


def _nvidia_smi() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        raise Skipped("needs nvidia-smi")
    done = subprocess.run(["nvidia-smi", "-q"], capture_output=True, text=True, timeout=30)
    print(done.stdout)
    return [line for line in done.stdout.splitlines() if "Version" in line or "Product" in line]


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise Skipped("needs torch") from error
    if not torch.cuda.is_available():
        raise Skipped(f"needs torch with CUDA, got {torch.__version__}")
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _backends() -> dict[str, str]:
    return {one.name: "works" if one.available else one.reason for one in available()}
