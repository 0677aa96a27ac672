"""Memory, clocks and energy of a stretch of work, from what this machine can read; None where not.

None stands for "unknown" and never for 0: most virtual machines read no energy at all, and on
Jetson boards NVML reads no power, so tegrastats is asked there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["GpuWatch", "Meter", "find_meter", "nvml_gpu", "peak_host_bytes"]

_SAMPLE_SECONDS = 0.02
_TEGRASTATS_MS = 100
# Numbers of nvml.h: clocks, the sensor of the GPU, and why clocks are held down (idle left out).
_CLOCK_SM, _CLOCK_MEMORY, _SENSOR_GPU = 1, 2, 0
_THROTTLE_REASONS = {
    **{0x2: "clocks set by the user", 0x4: "power cap", 0x8: "hardware slowdown"},
    **{0x10: "sync boost", 0x20: "thermal, software", 0x40: "thermal, hardware"},
    **{0x80: "power brake", 0x100: "display clock"},
}
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]+) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)")
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN")


def peak_host_bytes() -> int | None:
    """Most memory that this process has held so far, shared pages included; None: unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):  # unlike ru_maxrss, not that of the parent process
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        resource: Any = importlib.import_module("resource")
        peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return peak if sys.platform == "darwin" else peak * 1024
    return None


@contextlib.contextmanager
def nvml_gpu() -> Iterator[tuple[Any, Any] | None]:
    """The module pynvml and the first GPU that CUDA sees, or None without package, driver or GPU.

    Raises what the module raises when the GPU does not tell what it is asked.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # the package is missing, or the driver
        yield None
        return
    try:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
        gpu = None
        with contextlib.suppress(nvml.NVMLError):
            if first.isdigit():
                gpu = nvml.nvmlDeviceGetHandleByIndex(int(first))
            else:  # GPU-... or MIG-...
                gpu = nvml.nvmlDeviceGetHandleByUUID(first)
        yield None if gpu is None else (nvml, gpu)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


class GpuWatch:
    """Looks at the GPU, with all programs on it, while the ``with`` lasts; not without ``wanted``.

    ``peak_bytes``: the most memory that was in use. None where NVML does not tell.
    """

    def __init__(self, wanted: bool) -> None:
        self.peak_bytes: int | None = None
        self._seen: dict[str, list[float]] = {}
        self._reasons = 0
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True) if wanted else None

    def record(self) -> dict[str, Any] | None:
        """Medians of clocks (MHz) and power, the highest temperature, why clocks were held down.

        None where nothing was told.
        """
        if not self._seen:
            return None
        record: dict[str, Any] = {
            name: max(values) if name == "celsius" else statistics.median(values)
            for name, values in self._seen.items()
        }
        held = [name for bit, name in _THROTTLE_REASONS.items() if self._reasons & bit]
        return {**record, "throttled": ", ".join(held) or "no"}

    def _sample(self) -> None:
        with nvml_gpu() as found:
            while found is not None:
                self._look(*found)
                if self._ends.wait(_SAMPLE_SECONDS):
                    return

    def _look(self, nvml: Any, gpu: Any) -> None:
        def ask(function: str, *arguments: Any) -> Any:
            with contextlib.suppress(nvml.NVMLError, AttributeError):
                return getattr(nvml, function)(gpu, *arguments)
            return None

        memory = ask("nvmlDeviceGetMemoryInfo")
        if memory is not None:
            self.peak_bytes = max(int(memory.used), self.peak_bytes or 0)
        milliwatts = ask("nvmlDeviceGetPowerUsage")
        values = {
            "sm_mhz": ask("nvmlDeviceGetClockInfo", _CLOCK_SM),
            "memory_mhz": ask("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
            "watts": None if milliwatts is None else milliwatts / 1000,
            "celsius": ask("nvmlDeviceGetTemperature", _SENSOR_GPU),
        }
        for name, value in values.items():
            if value is not None:
                self._seen.setdefault(name, []).append(value)
        self._reasons |= ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0

    def __enter__(self) -> GpuWatch:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._ends.set()
        if self._thread is not None:
            self._thread.join()


class Meter(Protocol):
    """Measures energy between ``start`` and ``stop``; ``source`` says what is measured."""

    source: str

    def start(self) -> None:
        """Begin to measure."""

    def stop(self) -> float | None:
        """Joules since ``start``, or None when the reading failed."""
        ...


def find_meter(on_gpu: bool, root: Path = Path("/")) -> Meter | None:
    """The meter of what runs the graphs: the board, the GPU, or the processor; None without one.

    ``root`` is where /sys is found.
    """
    if shutil.which("tegrastats"):
        return _Tegrastats()
    if on_gpu:
        meter = _Nvml()
        return meter if meter.read() is not None else None
    zones = _readable_zones(root / "sys/class/powercap")
    return _Rapl(zones) if zones else None


@dataclass
class _Rapl:
    """Energy counters of the processor packages, in microjoules, which wrap around."""

    zones: list[Path]
    source: str = "RAPL, processor packages"

    def start(self) -> None:
        self._began = [_integer(zone / "energy_uj") for zone in self.zones]

    def stop(self) -> float | None:
        total = 0
        for zone, began in zip(self.zones, self._began, strict=True):
            ended = _integer(zone / "energy_uj")
            if began is None or ended is None:
                return None
            wraps = 0 if ended >= began else _integer(zone / "max_energy_range_uj") or 0
            total += ended - began + wraps
        return total / 1e6 if total > 0 else None


@dataclass
class _Nvml:
    """The energy counter of a GPU, in millijoules; older ones have none."""

    source: str = "NVML, GPU"

    def read(self) -> int | None:
        with nvml_gpu() as found:
            if found is not None:
                nvml, gpu = found
                with contextlib.suppress(nvml.NVMLError):
                    return int(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))
        return None

    def start(self) -> None:
        self._began = self.read()

    def stop(self) -> float | None:
        ended = self.read()
        if ended is None or self._began is None or ended <= self._began:
            return None
        return (ended - self._began) / 1e3


@dataclass
class _Tegrastats:
    """Mean power of a Jetson board by tegrastats, times the time that went by."""

    source: str = "tegrastats"

    def start(self) -> None:
        self._lines: list[str] = []
        self._began = time.perf_counter()
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                ["tegrastats", "--interval", str(_TEGRASTATS_MS)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
            self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        self._lines += process.stdout or ()

    def stop(self) -> float | None:
        seconds = time.perf_counter() - self._began
        if self._process is None:
            return None
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        found = [watts for watts in map(_watts, self._lines) if watts is not None]
        if not found:
            return None
        self.source = f"tegrastats, {found[0][0]}"
        return sum(watts for _, watts in found) / len(found) * seconds


def _watts(line: str) -> tuple[str, float] | None:
    """Rails and power of the whole board in a line of tegrastats; None where it tells none.

    Boards without a rail for the whole have several side by side, which are added up.
    """
    rails = {name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line)}
    for name in _WHOLE_BOARD:
        if name in rails:
            return name, rails[name]
    powers = {name: watts for name, watts in rails.items() if name.startswith(("VDD", "VIN"))}
    return ("+".join(powers), sum(powers.values())) if powers else None


def _readable_zones(folder: Path) -> list[Path]:
    """RAPL's packages; what is inside one ("intel-rapl:0:1") is counted in it already."""
    zones = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
    packages = [zone for zone in zones if zone.name.count(":") == 1]
    return packages if all(_integer(zone / "energy_uj") is not None for zone in packages) else []


def _integer(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
