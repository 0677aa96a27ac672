"""The kernels of x86 CPUs that have AVX2 and no more, under QEMU.

They add pairs of products of bytes in 16 bits, and saturate: why weights have seven bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cases import Report, Target

from percoedge.engines.bundle import Bundle

_HERE = Path(__file__).parent


@pytest.mark.slow
def test_x86_without_vnni(
    case_folder: Path, cache: Path, bundle: Bundle, report: Report, target: Target
) -> None:
    qemu = cache / "x86_64" / "qemu"
    if not qemu.exists():
        pytest.skip("no QEMU for x86-64: run tests/exactness/prepare.sh")
    command: list[str | Path] = [qemu, "-cpu", "Haswell", sys.executable]
    command += [_HERE / "run_onnxruntime.py", "--bundle", bundle.path, "--cases", case_folder]
    command += ["--levels", "off", "all", "--max-cells", "256", "--one-batch"]
    report(target([*command, "--target", "x86-64 Haswell (QEMU)"], 600))
