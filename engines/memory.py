"""Is there enough host memory? Asked before a graph is loaded, not found out by the kernel.

Figures are in bytes of main memory. Nothing here knows about the memory of a GPU.
"""

from __future__ import annotations

from pathlib import Path

from percoedge.errors import BackendError

__all__ = ["available_bytes", "build_bytes", "load_bytes", "require"]

_MIB = 1 << 20
_SESSION_BYTES = 48 * _MIB
_BUILDER_BYTES = 512 * _MIB


def load_bytes(file_bytes: int, variant: str) -> int:
    """Estimate the peak growth while a graph of ``file_bytes`` is made into an engine.

    The file bytes themselves are not counted. "fp16": one copy for the session and one on its way
    to the device. Others: half-precision weights become float32 (twice the size), are folded and
    then packed for the kernels, with the sources still there: measured 4.6 times the files for
    "fp32" with ONNX Runtime 1.32 on a CPU.
    """
    return _SESSION_BYTES + file_bytes * (2 if variant == "fp16" else 5)


def build_bytes(file_bytes: int, *, streams: bool = True) -> int:
    """Estimate the peak growth while a graph of ``file_bytes`` is built into a plan of TensorRT.

    ``streams``: whether the plan is written as it is made; else all of it is in memory, too.
    Measured with TensorRT-RTX 1.7: 0.3 GiB and 1.2 times the files, for graphs of up to 1.1 GiB;
    the rest is for larger ones. Pages of mapped files, which the kernel may drop, do not count.
    """
    return _BUILDER_BYTES + (2 if streams else 3) * file_bytes


def require(needed_bytes: int, purpose: str) -> None:
    """Raise BackendError when the host has less than ``needed_bytes`` to spare for ``purpose``.

    Passes when the system does not tell how much is free.
    """
    free_bytes = available_bytes()
    if free_bytes is not None and needed_bytes > free_bytes:
        raise BackendError(
            f"{purpose}: expected {_mib(needed_bytes)} of free memory, got {_mib(free_bytes)}; "
            "close other programs, load graphs one at a time (low memory), or use a smaller bundle"
        )


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take, or None when the system does not tell (not Linux).

    The smallest of MemAvailable and what each enclosing control group (version 2, or the memory
    controller of version 1) leaves; page cache that can be dropped counts as free. ``root`` is
    where /proc and /sys are found.
    """
    machine = _fields(root / "proc/meminfo").get("MemAvailable")
    if machine is None:
        return None
    limits = [machine * 1024]
    for group, limit, usage, cache in _control_groups(root):
        limit_bytes, used_bytes = _integer(group / limit), _integer(group / usage)
        if limit_bytes is not None and used_bytes is not None:
            cache_bytes = _fields(group / "memory.stat").get(cache, 0)
            limits.append(max(0, limit_bytes - used_bytes + cache_bytes))
    return min(limits)


def _control_groups(root: Path) -> list[tuple[Path, str, str, str]]:
    """Folders of the groups this process is in, each with its names of limit, usage and cache."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in name.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            found.append((top.joinpath(*parts[:depth]), *names))
    return found


def _fields(path: Path) -> dict[str, int]:
    """Read lines of "name: number unit" or "name number"; others are left out."""
    fields = {}
    for line in _text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            fields[words[0]] = int(words[1])
    return fields


def _integer(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None  # "max" means no limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.0f} MiB"
