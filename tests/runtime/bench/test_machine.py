"""What a measurement was made on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from percoedge.runtime.bench import machine


def test_a_board(tmp_path: Path) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        "proc/cpuinfo": "processor : 0\nmodel name : ARMv8 rev 1\ncpu MHz : 729.6\n",
        "proc/meminfo": "MemTotal:  7802444 kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = machine.describe(tmp_path)
    expected = {"board": "NVIDIA Jetson Orin Nano", "processor": "ARMv8 rev 1"}
    expected |= {"cpu_mhz": 1510, "cpu_governor": "schedutil", "memory_bytes": 7802444 << 10}
    assert {key: found[key] for key in expected} == expected


def test_nothing_names_the_host_or_its_folders() -> None:
    text = json.dumps(machine.describe())
    assert os.getcwd() not in text
    assert str(Path.home()) not in text
