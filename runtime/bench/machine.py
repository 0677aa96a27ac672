"""What a measurement was made on: device, driver, versions, clocks, power mode, commit.

Whatever the machine does not tell is None. Paths and host names are left out: results are passed
on to others.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import percoedge
from percoedge.engines.processors import usable_processors
from percoedge.runtime.bench.meters import nvml_gpu

__all__ = ["commit", "describe", "processor", "versions_of"]

_PACKAGES = (
    *("numpy", "pillow", "constriction", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-rtx", "cuda-core", "cuda-bindings"),
)
_CPU0 = "sys/devices/system/cpu/cpu0/cpufreq"


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """All of it, as values that JSON can hold; ``root`` is where /proc and /sys are found."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(root),
        "board": _text(root / "proc/device-tree/model"),
        "cores": os.cpu_count(),
        "cores_usable": usable_processors(root),
        "memory_bytes": _memory_bytes(root),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "cpu_mhz": _cpu_mhz(root),
        "cpu_governor": _text(root / _CPU0 / "scaling_governor"),
        "power_mode": _power_mode(),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "percoedge": percoedge.__version__,
        "commit": commit(),
        "versions": versions_of(_PACKAGES),
    }


def processor(root: Path = Path("/")) -> str:
    """The processor's name."""
    return _cpuinfo(root, "model name") or platform.processor() or platform.machine()


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of the packages that are installed."""
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def commit() -> str | None:
    """The commit of a source tree, "-dirty" where it was edited; None for an installed wheel."""
    folder = Path(os.path.realpath(__file__)).parent
    root = next((parent for parent in folder.parents if (parent / ".git").exists()), None)
    if root is None or root.joinpath("pyproject.toml").is_file() is False:
        return None
    return _output("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12")


@functools.cache
def _gpu() -> dict[str, Any] | None:
    """What NVML tells of the GPU that CUDA takes first."""
    with nvml_gpu() as found:
        if found is None:
            return None
        nvml, gpu = found

        def ask(name: str, *arguments: Any) -> Any:
            with contextlib.suppress(nvml.NVMLError, AttributeError):
                answer = getattr(nvml, name)(*arguments)
                return answer.decode() if isinstance(answer, bytes) else answer
            return None

        memory = ask("nvmlDeviceGetMemoryInfo", gpu)
        limit_mw = ask("nvmlDeviceGetEnforcedPowerLimit", gpu)
        return {
            "name": ask("nvmlDeviceGetName", gpu),
            "driver": ask("nvmlSystemGetDriverVersion"),
            "memory_bytes": None if memory is None else int(memory.total),
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
            "sm_mhz": ask("nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_SM),
            "memory_mhz": ask("nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_MEM),
        }


def _power_mode() -> str | None:
    """The power mode of a Jetson board, as nvpmodel calls it."""
    said = _output("nvpmodel", "-q")
    lines = [line for line in (said or "").splitlines() if "Power Mode" in line]
    return lines[0].partition(":")[2].strip() if lines else None


def _cpu_mhz(root: Path) -> int | None:
    """The clock that the processor may reach, else the one at the moment."""
    most_khz = _text(root / _CPU0 / "cpuinfo_max_freq")
    if most_khz is not None and most_khz.isdigit():
        return int(most_khz) // 1000
    with contextlib.suppress(ValueError):
        return round(float(_cpuinfo(root, "cpu MHz") or ""))
    return None


def _memory_bytes(root: Path) -> int | None:
    words = (_text(root / "proc/meminfo") or "").split()
    return int(words[1]) * 1024 if words[:1] == ["MemTotal:"] else None


def _cpuinfo(root: Path, key: str) -> str | None:
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _output(*command: str) -> str | None:
    """What a program prints, or None when it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
