"""Memory and energy, from what a machine tells."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from percoedge.runtime.bench import meters


def zone(root: Path, name: str, microjoules: int) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("1000000\n")
    return folder


def test_rapl_adds_packages_and_wraps_around(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        zone(tmp_path, name, 900_000)
    meter = meters.find_meter(on_gpu=False, root=tmp_path)
    assert meter is not None
    assert meter.source.startswith("RAPL")
    meter.start()
    zone(tmp_path, "intel-rapl:0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", 100_000)
    assert meter.stop() == pytest.approx(0.3)


def test_nothing_to_read_is_missing(tmp_path: Path) -> None:
    assert meters.find_meter(on_gpu=False, root=tmp_path) is None
    (zone(tmp_path, "intel-rapl:0", 5) / "energy_uj").unlink()
    assert meters.find_meter(on_gpu=False, root=tmp_path) is None


def test_counters_that_stand_still_are_missing(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5)
    meter = meters.find_meter(on_gpu=False, root=tmp_path)
    assert meter is not None
    meter.start()
    assert meter.stop() is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RAM 2448/7620MB (lfb 4x2MB) CPU [2%@729] VDD_IN 4830mW/4712mW", ("VDD_IN", 4.83)),
        ("RAM 1/2MB EMC_FREQ 0% POM_5V_IN 2532/2600 POM_5V_GPU 40/40", ("POM_5V_IN", 2.532)),
        (
            "GR3D_FREQ 0% VDD_GPU_SOC 2401mW/2401mW VDD_CPU_CV 800mW/700mW",
            ("VDD_GPU_SOC+VDD_CPU_CV", 3.201),
        ),
        ("RAM 2448/7620MB SWAP 0/3810MB cpu@45C", None),
    ],
)
def test_lines_of_tegrastats(line: str, expected: tuple[str, float] | None) -> None:
    found = meters._watts(line)
    assert found == (expected and (expected[0], pytest.approx(expected[1])))


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_tegrastats_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\necho 'VDD_IN 5000mW/5000mW'\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    meter = meters.find_meter(on_gpu=True)
    assert meter is not None
    meter.start()
    deadline = time.monotonic() + 30
    while not meter._lines and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    joules = meter.stop()
    assert joules is not None
    assert joules > 0
    assert meter.source == "tegrastats, VDD_IN"


def test_memory_of_this_process() -> None:
    peak = meters.peak_host_bytes()
    assert peak is not None
    assert 1 << 24 < peak < 1 << 40


def test_what_a_gpu_does_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians, the highest temperature, and every reason that was seen; what fails is left out."""

    class NVMLError(Exception): ...

    looks = iter([(900, 40, 0x1), (1100, 60, 0x4), (1000, 50, 0x24)])
    now: list[int] = []

    def clock(gpu: object, which: int) -> int:
        if which != 1:
            raise NVMLError
        now[:] = next(looks, now)
        return now[0]

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: "gpu",
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=1 << 30),
        nvmlDeviceGetClockInfo=clock,
        nvmlDeviceGetPowerUsage=lambda gpu: 100_000,
        nvmlDeviceGetTemperature=lambda gpu, sensor: now[1],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: now[2],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    watch = meters.GpuWatch(True)
    for _ in range(3):
        watch._look(nvml, "gpu")
    assert watch.record() == {
        **{"sm_mhz": 1000, "watts": 100, "celsius": 60},
        "throttled": "power cap, thermal, software",
    }
    assert watch.peak_bytes == 1 << 30
    with meters.GpuWatch(True) as other:
        pass
    assert other.peak_bytes == 1 << 30
    assert meters.GpuWatch(False).record() is None
