"""How much memory is left, read from a made-up /proc and /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from percoedge.engines import memory
from percoedge.errors import BackendError

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8192 kB\n"}


def test_unknown_systems_tell_nothing(tmp_path: Path) -> None:
    assert memory.available_bytes(tmp_path) is None


def test_the_machine_alone(tmp_path: Path) -> None:
    assert memory.available_bytes(write(tmp_path, MACHINE)) == 8 * MIB


@pytest.mark.parametrize(
    ("limit", "used", "cache", "left"),
    [("max", 1, 0, 8), (4 * MIB, 3 * MIB, MIB, 2), (MIB, 2 * MIB, 0, 0), (64 * MIB, 0, 0, 8)],
)
def test_a_control_group_of_version_2(
    tmp_path: Path, limit: object, used: int, cache: int, left: int
) -> None:
    group = "sys/fs/cgroup/user/session"
    files = {
        **MACHINE,
        "proc/self/cgroup": "0::/user/session\n",
        f"{group}/memory.max": f"{limit}\n",
        f"{group}/memory.current": f"{used}\n",
        f"{group}/memory.stat": f"anon 5\ninactive_file {cache}\n",
    }
    assert memory.available_bytes(write(tmp_path, files)) == left * MIB


def test_an_outer_group_counts_too(tmp_path: Path) -> None:
    files = {
        **MACHINE,
        "proc/self/cgroup": "0::/user/session\n",
        "sys/fs/cgroup/user/session/memory.max": "max\n",
        "sys/fs/cgroup/user/session/memory.current": "0\n",
        "sys/fs/cgroup/user/memory.max": f"{3 * MIB}\n",
        "sys/fs/cgroup/user/memory.current": f"{MIB}\n",
    }
    assert memory.available_bytes(write(tmp_path, files)) == 2 * MIB


def test_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    files = {
        **MACHINE,
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{5 * MIB}\n",
        "sys/fs/cgroup/memory.current": f"{MIB}\n",
    }
    assert memory.available_bytes(write(tmp_path, files)) == 4 * MIB


def test_a_control_group_of_version_1(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/docker/x"
    files = {
        **MACHINE,
        "proc/self/cgroup": "9:cpu,cpuacct:/docker/x\n4:memory:/docker/x\nrubbish\n",
        f"{group}/memory.limit_in_bytes": f"{6 * MIB}\n",
        f"{group}/memory.usage_in_bytes": f"{5 * MIB}\n",
        f"{group}/memory.stat": f"total_inactive_file {2 * MIB}\n",
    }
    assert memory.available_bytes(write(tmp_path, files)) == 3 * MIB


def test_too_little_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 3 * MIB)
    memory.require(3 * MIB, "loading")
    with pytest.raises(BackendError, match="loading: expected 4 MiB of free memory, got 3 MiB; "):
        memory.require(4 * MIB, "loading")


def test_unknown_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    memory.require(1 << 60, "loading")


def test_half_precision_files_grow_when_run_in_float32() -> None:
    assert memory.load_bytes(100 * MIB, "fp32") > memory.load_bytes(100 * MIB, "fp16") > 100 * MIB


def test_a_plan_that_is_not_written_as_it_is_made_takes_its_size_more() -> None:
    size = 1 << 30
    assert memory.build_bytes(size, streams=False) - memory.build_bytes(size) == size
