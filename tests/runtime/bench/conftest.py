"""One case on the codec without models, measured with as few decodes as will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from percoedge.engines.bundle import Bundle
from percoedge.runtime.bench.case import Case, Limits
from percoedge.runtime.bench.measure import measure_on
from percoedge.runtime.codec import Codec


@pytest.fixture(scope="session")
def case() -> Case:
    return Case("fake", "auto", 70, 50, 1, 3, None)


@pytest.fixture(scope="session")
def measured(fakes: Any, case: Case) -> Callable[..., dict[str, Any]]:
    """``measured(bundle)`` or ``measured(bundle, another_case)``: the result of four decodes."""

    def measure(bundle: Bundle, case: Case = case) -> dict[str, Any]:
        backend = fakes.backend()
        stream = Codec(bundle, backend).encode(fakes.photo(case.height, case.width))
        return measure_on(bundle, backend, case, Limits(0, 0, 4), stream)

    return measure
