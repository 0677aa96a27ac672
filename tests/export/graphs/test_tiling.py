"""The graphs that come with percoedge are those that the exporter writes."""

from __future__ import annotations

import pytest

pytest.importorskip("onnx")

from percoedge.engines.tiling import TILING, tiling_graph
from percoedge.export.graphs.tiling import tiling_models


def test_the_files_are_what_is_written() -> None:
    models = tiling_models()
    assert tuple(models) == TILING
    for kind, model in models.items():
        assert tiling_graph(kind).model == model
