"""PyTorch's CPU kernels, in float32 and in the faster ways that it may multiply float32."""

from __future__ import annotations

import pytest
from cases import Case, Report, Tally

from percoedge.export.exact.integers import IntegerMim

torch = pytest.importorskip("torch", reason="without PyTorch: pip install '.[export]'")


@pytest.mark.slow
def test_torch_at_every_matmul_precision(
    model: IntegerMim, cases: list[Case], report: Report
) -> None:
    from torch_model import run_precisions

    tally = Tally(f"torch {torch.__version__}, CPU: matmul highest, high, medium")
    run_precisions(tally, model, "cpu", [case for case in cases if case.cells <= 1024])
    report(tally)
