"""The profile of a graph, node by node."""

from __future__ import annotations

import numpy as np

from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.onnxruntime.layers import node_runs


def test_every_node_of_every_run(bundle: Bundle) -> None:
    backend = OnnxRuntimeBackend(threads=1, optimization="off")
    graph = bundle.graph("decoder", "fp32")
    feeds = {"x": np.ones((1, 4, 4, 6), np.float32)}
    once, thrice = (node_runs(backend, graph, feeds, runs) for runs in (1, 3))
    assert once and [node.name for node in thrice] == [node.name for node in once] * 3
    assert {node.provider for node in once} == {"CPUExecutionProvider"}
    assert all(node.operator and node.host_us >= 0 for node in once)
