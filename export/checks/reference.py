"""A graph in onnx.reference: FP16 rounded after every operation, and its largest number.

ONNX Runtime computes most of an FP16 graph in FP32 on a CPU, which hides overflow. The reference
does not, but is slow: give it tiny grids.
"""

from __future__ import annotations

import numpy as np
from onnx.reference import ReferenceEvaluator

from percoedge.engines.comparison import Arrays
from percoedge.engines.contract import GraphSource
from percoedge.export.graphs.whole_model import whole_model

LARGEST_FP16 = 65504.0


class Reference:
    """onnx.reference on a graph; ``largest`` is the largest magnitude of what it computed in FP16.

    It is 0 for a graph that computes in no FP16, and not finite after an overflow.
    """

    def __init__(self, source: GraphSource) -> None:
        self.largest = 0.0
        self._names = [spec.name for spec in source.outputs]
        model = whole_model(source)
        self._evaluator = ReferenceEvaluator(model)
        self._stored = {tensor.name for tensor in model.graph.initializer}

    def __call__(self, feeds: Arrays) -> Arrays:
        """Outputs by name; numbers beyond FP16 become infinite, as they do on a GPU."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = self._evaluator.run(None, feeds, intermediate=True)
        for name, value in values.items():
            computed = name not in self._stored and isinstance(value, np.ndarray) and value.size
            if computed and value.dtype == np.float16:
                self.largest = float(np.maximum(self.largest, np.abs(value).max()))
        return {name: np.asarray(values[name]) for name in self._names}
