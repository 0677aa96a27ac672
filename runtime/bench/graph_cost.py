"""What one run of a graph costs at least: arithmetic of its matrix products, and bytes moved.

Counted from the ONNX graph for the shapes of a call, whoever runs it. Only matrix products and
convolutions count as operations, two for each multiplication with its addition, so that the figure
compares with a rate of matrix products; those of 8-bit integers by themselves. On convolutions a
backend may need fewer (Winograd).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from percoedge.runtime.bench.onnx_graph import Graph, Node
from percoedge.runtime.bench.shape_rules import FACTORS, Tensor, einsum_sizes
from percoedge.runtime.bench.shapes import shapes_of

__all__ = ["GraphCost", "cost_of"]

# These give another view of the same memory, or numbers that are known beforehand.
_FREE = {"Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze", "Constant"}
_PRODUCTS = {
    "Conv",
    "ConvTranspose",
    "Einsum",
    "Gemm",
    "MultiHeadAttention",
    *FACTORS,
}


@dataclass(frozen=True)
class GraphCost:
    """Of one call.

    ``float_ops`` and ``int8_ops``: of matrix products. ``weight_bytes`` and ``io_bytes`` (inputs
    and outputs) must be moved once by any backend. ``traffic_bytes``: if every node read and wrote
    memory by itself; what a backend fuses, or what stays in a cache, saves of these.
    """

    float_ops: int
    int8_ops: int
    weight_bytes: int
    io_bytes: int
    traffic_bytes: int

    def __add__(self, other: GraphCost) -> GraphCost:
        return GraphCost(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def cost_of(graph: Graph, inputs: Mapping[str, Tensor], outputs: tuple[str, ...]) -> GraphCost:
    """Count a graph for given inputs; raises ValueError for operators that have no rule.

    Weights are counted as a backend holds them: casts and the like are done when it loads.
    """
    tensors = shapes_of(graph, inputs)
    ops = {True: 0, False: 0}  # by whether it multiplies integers
    traffic = 0
    weights: dict[str, int] = {}
    for node in graph.nodes:
        made = [tensors[name] for name in node.outputs if name in tensors]
        if all(tensor.constant for tensor in made):
            continue
        ops["Integer" in node.op or node.op.startswith("Q")] += _operations(node, tensors)
        if node.op in _FREE:
            continue
        read = {name: tensors[name] for name in node.inputs if name}
        traffic += sum(tensor.size_bytes for tensor in (*read.values(), *made))
        for name, tensor in read.items():
            if tensor.constant:
                weights[name] = tensor.size_bytes
    moved = [*inputs.values(), *(tensors[name] for name in outputs)]
    io_bytes = sum(tensor.size_bytes for tensor in moved)
    return GraphCost(ops[False], ops[True], sum(weights.values()), io_bytes, traffic)


def _operations(node: Node, tensors: Mapping[str, Tensor]) -> int:
    """Twice the multiplications of a matrix product or convolution; 0 for all others."""
    if node.op not in _PRODUCTS:
        return 0
    shapes = [tensors[name].shape if name else () for name in node.inputs]
    output = math.prod(tensors[node.outputs[0]].shape)
    if node.op == "Einsum":
        sizes, _ = einsum_sizes(node, shapes)
        return 2 * math.prod(sizes.values()) if len(shapes) > 1 else 0
    if node.op == "MultiHeadAttention":
        (n, queries, channels), (_, keys, _), (*_, values) = shapes[:3]
        return 2 * n * queries * keys * (channels + values)
    left, right = (shapes[index] for index in FACTORS.get(node.op, (0, 1)))
    if "Conv" in node.op:
        return 2 * output * math.prod(right[1:])
    return 2 * output * left[0 if node.attributes.get("transA") else -1]
