"""ONNX Runtime on this processor: every level, thread count and batch, repeats; and on Haswell."""

from __future__ import annotations

import itertools
import platform
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from cases import Case, Report, Tally, Target, compare
from run_onnxruntime import VARIANTS, opened, run_all

from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OPTIMIZATIONS

THREADS = (1, 2)
REPEATS = 1000
_PROCESSOR = f"{platform.machine()}, onnxruntime {onnxruntime.__version__}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_small_grids(variant: str, bundle: Bundle, small_cases: list[Case], report: Report) -> None:
    tally = Tally(f"{_PROCESSOR}: {variant}, small grids")
    run_all(tally, bundle, small_cases, ["all"], [1], [variant])
    report(tally)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_level_thread_count_and_batch(
    variant: str, bundle: Bundle, cases: list[Case], report: Report
) -> None:
    tally = Tally(f"{_PROCESSOR}: {variant}, levels x threads x batches")
    run_all(tally, bundle, cases, OPTIMIZATIONS, THREADS, [variant])
    assert tally.configurations == len(OPTIMIZATIONS) * len(THREADS)
    report(tally)


@pytest.mark.slow
def test_a_thousand_repeats_in_random_company(
    bundle: Bundle, small_cases: list[Case], report: Report
) -> None:
    tally = Tally(f"{_PROCESSOR}: {REPEATS} repeats, random batches")
    settings = list(itertools.product(OPTIMIZATIONS, THREADS, VARIANTS))
    runs = [(setting, opened(bundle, *setting)) for setting in settings]
    draws = np.random.Philox(key=2024).random_raw(11 * REPEATS).reshape(REPEATS, 11)
    began = time.perf_counter()
    for draw in draws.tolist():
        setting, run = runs[draw[0] % len(runs)]
        case = small_cases[draw[1] % len(small_cases)]
        largest = 8 if case.cells < 100 else 2
        slots = [slot % len(case.tokens) for slot in draw[3 : 4 + draw[2] % largest]]
        compare(run, case, [slots], str(setting), tally)
    tally.seconds = time.perf_counter() - began
    tally.configurations = len(settings)
    report(tally)


@pytest.mark.slow
def test_x86_without_vnni(
    case_folder: Path, cache: Path, bundle: Bundle, report: Report, target: Target
) -> None:
    """Under QEMU: the kernels of CPUs that have AVX2 and no more.

    They add pairs of products of bytes in 16 bits, and saturate: why weights have seven bits.
    """
    qemu = cache / "x86_64" / "qemu"
    if not qemu.exists():
        pytest.skip("no QEMU for x86-64: run tests/exactness/prepare.sh")
    command: list[str | Path] = [qemu, "-cpu", "Haswell", sys.executable]
    command.append(Path(__file__).with_name("run_onnxruntime.py"))
    command += ["--bundle", bundle.path, "--cases", case_folder]
    command += ["--levels", "off", "all", "--max-cells", "256", "--one-batch"]
    report(target([*command, "--target", "x86-64 Haswell (QEMU)"], 600))
