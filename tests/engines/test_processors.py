"""percoedge.engines.processors: affinity and quotas of control groups, whichever is less."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from percoedge.engines import processors
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.processors import (
    expect_workers,
    most_workers,
    shared_threads,
    usable_processors,
)
from percoedge.errors import UsageError

SEEN = 64  # processors that the process may run on


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without control groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(SEEN), raising=False)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_processors_of_the_mask_where_there_are_no_groups(root: Path) -> None:
    assert usable_processors(root) == SEEN


def test_all_processors_where_there_is_no_mask(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert usable_processors(root) == 12
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_processors(root) == 1


@pytest.mark.parametrize(
    ("text", "processors"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # rounded up: one thread would leave a third of the time unused
        ("1000 100000\n", 1),
        ("12800000 100000\n", SEEN),  # more than the process sees
        ("max 100000\n", SEEN),
        ("", SEEN),
        ("200000\n", SEEN),
        ("200000 0\n", SEEN),
        ("-5 100000\n", SEEN),
        ("\0\xff", SEEN),
    ],
)
def test_version_2_in_a_container(root: Path, text: str, processors: int) -> None:
    write(root, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text})
    assert usable_processors(root) == processors


def test_version_2_takes_the_least_of_the_groups_around(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "0::/user.slice/job/step\n",
            "sys/fs/cgroup/user.slice/cpu.max": "800000 100000",
            "sys/fs/cgroup/user.slice/job/cpu.max": "300000 100000",
            "sys/fs/cgroup/user.slice/job/step/cpu.max": "max 100000",
            "sys/fs/cgroup/other/cpu.max": "100000 100000",
        },
    )
    assert usable_processors(root) == 3


@pytest.mark.parametrize(
    ("groups", "folder"),
    [
        ("5:cpu,cpuacct:/\n", "cpu,cpuacct"),
        ("5:cpu,cpuacct:/docker/3f\n", "cpu,cpuacct"),  # named from outside of the container
        ("5:cpu,cpuacct:/docker/3f\n", "cpu,cpuacct/docker/3f"),
        ("7:memory:/a\n5:cpu:/docker/3f\n1:name=systemd:/b\n0::/c\n", "cpu/docker"),
        ("5:cpu:/../other\n", "cpu"),
    ],
)
def test_version_1(root: Path, groups: str, folder: str) -> None:
    write(
        root,
        {
            "proc/self/cgroup": groups,
            f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "250000\n",
            f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": "100000\n",
        },
    )
    assert usable_processors(root) == 3
    write(root, {f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "-1\n"})
    assert usable_processors(root) == SEEN


def test_groups_of_other_resources_are_no_limit(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "3:cpuset:/a\n",
            "sys/fs/cgroup/cpuset/a/cpu.cfs_quota_us": "100000",
            "sys/fs/cgroup/cpuset/a/cpu.cfs_period_us": "100000",
        },
    )
    assert usable_processors(root) == SEEN


def test_more_than_a_few_for_each_processor_are_refused() -> None:
    most = most_workers()
    assert expect_workers("threads", most) == most >= usable_processors()
    with pytest.raises(UsageError, match=f"threads to be at most {most}, .*got {most + 1}"):
        expect_workers("threads", most + 1)
    with pytest.raises(UsageError):
        OnnxRuntimeBackend(threads=most + 1)


def test_callers_and_the_threads_that_they_share_make_up_the_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processors, "usable_processors", lambda: 6)
    assert [shared_threads(callers) for callers in (1, 4, 6, 20)] == [6, 3, 1, 1]


def test_this_machine() -> None:
    assert 1 <= usable_processors() <= (os.cpu_count() or 1)
