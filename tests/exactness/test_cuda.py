"""The same cases on a GPU, where there is one: ``pytest -m gpu``."""

from __future__ import annotations

import pytest
from cases import Case, Report
from run_cuda import missing_provider, missing_torch, try_provider, try_torch

from percoedge.engines.bundle import Bundle
from percoedge.export.exact.integers import IntegerMim

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("tf32", [False, True])
def test_onnxruntime_cuda(bundle: Bundle, cases: list[Case], tf32: bool, report: Report) -> None:
    if reason := missing_provider():
        pytest.skip(reason)
    report(try_provider(bundle, cases, tf32))


def test_torch_cuda(model: IntegerMim, cases: list[Case], report: Report) -> None:
    if reason := missing_torch():
        pytest.skip(reason)
    report(try_torch(model, cases))
