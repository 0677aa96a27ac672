"""What a backend reaches at best."""

from __future__ import annotations

import pytest

from percoedge.engines.selection import select
from percoedge.runtime.bench.ceiling import measure_ceiling


@pytest.mark.slow
def test_the_ceiling_of_a_real_backend() -> None:
    ceiling = measure_ceiling(select("onnxruntime-cpu", threads=1), int8=True, seconds=0)
    assert ceiling.dtype == "float32"
    assert ceiling.float_ops_per_s is not None
    assert ceiling.int8_ops_per_s is not None
    assert ceiling.bytes_per_s is not None
    assert min(ceiling.float_ops_per_s, ceiling.int8_ops_per_s) > 1e8
    assert ceiling.bytes_per_s > 1e7
