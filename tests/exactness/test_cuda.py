"""The same cases on a GPU, where there is one: ``pytest -m gpu``."""

from __future__ import annotations

import pytest
from cases import Case, Report
from run_cuda import missing_provider, missing_torch, try_provider, try_torch

from percoedge.engines.bundle import Bundle
from percoedge.export.exact.integers import IntegerMim

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session")  # as that of the cases, which need not be made where it skips
def provider() -> None:
    if reason := missing_provider():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def torch_cuda() -> None:
    if reason := missing_torch():
        pytest.skip(reason)


@pytest.mark.parametrize("tf32", [False, True])
def test_onnxruntime_cuda(
    provider: None, bundle: Bundle, cases: list[Case], tf32: bool, report: Report
) -> None:
    report(try_provider(bundle, cases, tf32))


def test_torch_cuda(torch_cuda: None, model: IntegerMim, cases: list[Case], report: Report) -> None:
    report(try_torch(model, cases))
