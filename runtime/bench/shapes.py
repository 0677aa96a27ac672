"""Shapes of all tensors of an ONNX graph for given shapes of its inputs.

Sizes are numbers, not symbols: what a graph computes of shapes (Shape, Gather, Concat ...) is
computed here as well, for small tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.runtime.bench.onnx_graph import Graph, Node, Weight
from percoedge.runtime.bench.shape_rules import (
    COMPARISONS,
    Tensor,
    constant_of,
    output_shapes,
    slices_of,
)

__all__ = ["shapes_of"]

_SMALL = 64  # elements
_DTYPE_OF_ONNX = {
    **{1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool"},
    **{10: "float16", 11: "float64"},
}
# Where the type of the output is not that of the first input: an integer's is its zero point's.
_DTYPE_OF_INPUT = {
    "DequantizeLinear": 1,
    "QLinearConv": 7,
    "QLinearMatMul": 7,
    "QuantizeLinear": 2,
    "Where": 1,
    "MatMulIntegerToFloat": 2,
}


def shapes_of(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a graph by name. Raises ValueError for an operator that has no rule here."""
    tensors = dict(inputs)
    for name, weight in graph.weights.items():
        tensors[name] = Tensor(weight.shape, weight.dtype, weight.value, constant=True)
    for node in graph.nodes:
        given = [tensors[name] if name else None for name in node.inputs]
        present = [tensor for tensor in given if tensor is not None]
        constant = all(tensor.constant for tensor in present)
        try:
            shapes = output_shapes(node, given)
        except (IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"expected inputs that {node.op} takes, got {node.inputs}") from error
        dtype = _dtype(node, present)
        for index, (name, shape) in enumerate(zip(node.outputs, shapes, strict=False)):
            value = _value(node, given, shape, dtype) if index == 0 else None
            tensors[name] = Tensor(shape, dtype, value, constant)
    return tensors


def _dtype(node: Node, given: list[Tensor]) -> str:
    if node.op == "Cast":
        return _DTYPE_OF_ONNX[node.attributes["to"]]
    if node.op in ("Shape", "Size", "ArgMax", "ArgMin"):
        return "int64"
    if node.op in COMPARISONS or node.op in ("Not", "IsNaN"):
        return "bool"
    if node.op in _DTYPE_OF_INPUT:
        return given[min(_DTYPE_OF_INPUT[node.op], len(given) - 1)].dtype
    if node.op == "MatMulInteger":
        return "int32"
    if node.op == "QGemm":  # sums in float, like their scales, or what a zero point is given for
        return given[8 if len(given) > 8 else 1].dtype
    if node.op == "Constant":
        return constant_of(node).dtype
    if node.op == "ConstantOfShape":
        filler = node.attributes.get("value")
        return filler.dtype if isinstance(filler, Weight) else "float32"
    return given[0].dtype


def _value(
    node: Node, given: list[Tensor | None], shape: tuple[int, ...], dtype: str
) -> NDArray[Any] | None:
    """The first output where it is small and known."""
    if math.prod(shape) > _SMALL:
        return None
    if node.op == "Constant":
        return constant_of(node).value
    present = [tensor for tensor in given if tensor is not None]
    if node.op == "Shape":
        start, end = node.attributes.get("start", 0), node.attributes.get("end")
        return np.array(present[0].shape[start:end], np.int64)
    if node.op == "Size":
        return np.array(math.prod(present[0].shape), np.int64)
    values = [tensor.value for tensor in present]
    rule = _VALUES.get(node.op)
    if rule is None or any(value is None for value in values):
        return None
    return np.asarray(rule(node, given, values)).astype(dtype).reshape(shape)


def _parts(given: list[Tensor | None], rank: int) -> tuple[slice, ...]:
    parts = slices_of(given, rank)
    return tuple(parts.get(axis, slice(None)) for axis in range(rank))


def _divided(node: Node, given: object, values: list[Any]) -> Any:
    exact = values[0] / values[1]
    return np.trunc(exact) if values[0].dtype.kind in "iu" else exact


_VALUES: dict[str, Callable[[Node, list[Tensor | None], list[Any]], Any]] = {
    "Add": lambda node, given, values: values[0] + values[1],
    "Cast": lambda node, given, values: values[0],
    "Concat": lambda node, given, values: np.concatenate(values, node.attributes["axis"]),
    "ConstantOfShape": lambda node, given, values: np.full(
        tuple(map(int, values[0])), getattr(node.attributes.get("value"), "value", None) or 0
    ),
    "Div": _divided,
    "Equal": lambda node, given, values: values[0] == values[1],
    "Expand": lambda node, given, values: np.broadcast_to(values[0], output_shapes(node, given)[0]),
    "Floor": lambda node, given, values: np.floor(values[0]),
    "Gather": lambda node, given, values: values[0].take(values[1], node.attributes.get("axis", 0)),
    "Identity": lambda node, given, values: values[0],
    "Max": lambda node, given, values: np.maximum.reduce(np.broadcast_arrays(*values)),
    "Min": lambda node, given, values: np.minimum.reduce(np.broadcast_arrays(*values)),
    "Mod": lambda node, given, values: values[0] % values[1],
    "Mul": lambda node, given, values: values[0] * values[1],
    "Neg": lambda node, given, values: -values[0],
    "Range": lambda node, given, values: np.arange(*(value.item() for value in values)),
    "ReduceProd": lambda node, given, values: values[0].prod(),
    "Reshape": lambda node, given, values: values[0],
    "Slice": lambda node, given, values: values[0][_parts(given, values[0].ndim)],
    "Squeeze": lambda node, given, values: values[0],
    "Sub": lambda node, given, values: values[0] - values[1],
    "Unsqueeze": lambda node, given, values: values[0],
    "Where": lambda node, given, values: np.where(*values),
}
