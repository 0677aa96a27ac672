"""How many processors this process may use: the one count that all of percoedge goes by.

A container sees every processor of its machine but is often given the time of a few; threads
beyond its share only get in each other's way. So the count is that of the processors that the
process may run on, capped by the quota of its control group (Linux cgroups, version 1 and 2) and
of the groups around it.

The same count limits what a caller asks for: see `expect_workers`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from percoedge.arguments import expect_int
from percoedge.errors import UsageError

__all__ = ["expect_workers", "most_workers", "shared_threads", "usable_processors"]

_GROUPS = "sys/fs/cgroup"
_MOST_PER_PROCESSOR = 8


def usable_processors(root: Path = Path("/")) -> int:
    """Processors of the affinity mask, at most as many as the CPU quota rounded up; at least 1.

    ``root``: where /proc and /sys are found. What cannot be read is no limit.
    """
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        usable = len(os.sched_getaffinity(0))
    shares = [-(-quota // period) for quota, period in _quotas(root)]
    return max(1, min([usable, *shares]))


def shared_threads(callers: int) -> int:
    """Threads of an engine that so many callers share: as many as make up the processors.

    An engine's threads are that of the caller and others, which all callers share.
    """
    return max(1, usable_processors() - callers + 1)


def most_workers() -> int:
    """The most threads, processes or images at a time that may be asked for: 8 a processor.

    What exceeds the processors is slower already; far beyond them a machine runs out of memory.
    """
    return _MOST_PER_PROCESSOR * usable_processors()


def expect_workers(name: str, value: Any) -> int:
    """Return a number of threads, lanes or jobs: an integer of 1 to `most_workers`.

    Raises UsageError for anything else.
    """
    number = expect_int(name, value, 1)
    if number > most_workers():
        raise UsageError(
            f"expected {name} to be at most {most_workers()}, {_MOST_PER_PROCESSOR} for each "
            f"processor that this process may use, got {number}; ask for about one a processor, or "
            "leave it out"
        )
    return number


def _quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Quota and period, in microseconds, of every control group that this process is in."""
    for folder in _group_folders(root):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number and no limit
            quota, period = _text(folder / "cpu.max").split()
            if int(quota) > 0 and int(period) > 0:
                yield int(quota), int(period)
        with contextlib.suppress(OSError, ValueError):
            quota_us = int(_text(folder / "cpu.cfs_quota_us"))  # -1: no limit
            period_us = int(_text(folder / "cpu.cfs_period_us"))
            if quota_us > 0 and period_us > 0:
                yield quota_us, period_us


def _group_folders(root: Path) -> Iterator[Path]:
    """Folders of this process's groups and of those around them, from the inside out.

    In a container the paths of /proc/self/cgroup are often those outside of it, where the folder
    mounted at the top is its own group: what is not there is passed over, and the top is tried.
    """
    lines = ["0::/"]
    with contextlib.suppress(OSError, ValueError):
        lines += _text(root / "proc/self/cgroup").splitlines()
    for line in dict.fromkeys(lines):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        inner = PurePosixPath(path.lstrip("/"))
        if ".." in inner.parts:  # outside of what is mounted here
            inner = PurePosixPath()
        mounts = ("cpu", controllers) if controllers else (".", "unified")
        for mount in dict.fromkeys(mounts):
            for group in (inner, *inner.parents):
                yield root / _GROUPS / mount / group


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
