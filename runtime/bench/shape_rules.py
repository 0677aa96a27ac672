"""Shape of an ONNX operator's outputs, given its inputs.

The rules are those of https://onnx.ai/onnx/operators/ up to opset 25, with the few of ONNX Runtime
that int8 graphs use. An operator without a rule is refused rather than guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.runtime.bench.onnx_graph import Node, Weight

__all__ = [
    "COMPARISONS",
    "FACTORS",
    "Tensor",
    "constant_of",
    "einsum_sizes",
    "output_shapes",
    "slices_of",
]

Shape = tuple[int, ...]

_SAME = {
    *("BatchNormalization", "Cast", "Ceil", "Clip", "Cos", "CumSum", "Dropout", "Erf", "Exp"),
    *("Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity"),
    *("InstanceNormalization", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Neg"),
    *("Not", "RMSNormalization", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin"),
    *("Softmax", "Softplus", "Sqrt", "Swish", "Tanh", "Trilu", "Abs", "QuantizeLinear"),
    "DequantizeLinear",
}
COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"}
_BROADCAST = {"Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Mean", "Sum", "Where"}
_BROADCAST |= COMPARISONS
_REDUCTIONS = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"} | {
    "ReduceSum",
    "ReduceSumSquare",
}
_WINDOWS = {"AveragePool", "Conv", "MaxPool"}
FACTORS = {
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QGemm": (0, 3),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "MatMulIntegerToFloat": (0, 1),
}
"""Which inputs of an operator are multiplied."""
_CONSTANTS = {
    "value_int": "int64",
    "value_ints": "int64",
    "value_float": "float32",
    "value_floats": "float32",
}


@dataclass(frozen=True)
class Tensor:
    """Shape and numpy dtype name; ``value`` where it is small and known before the graph runs.

    ``constant``: made of weights alone, so that a backend computes it once, when it loads.
    """

    shape: Shape
    dtype: str
    value: NDArray[Any] | None = None
    constant: bool = False

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def einsum_sizes(node: Node, given: list[Shape]) -> tuple[dict[str, int], str]:
    """Size of every index of an Einsum, and the indices of its output; without ellipsis."""
    terms, arrow, output = node.attributes["equation"].replace(" ", "").partition("->")
    names = terms.split(",")
    if not arrow or "." in terms:
        raise ValueError(f"expected an Einsum without ellipsis, got {node.attributes['equation']}")
    sizes: dict[str, int] = {}
    for term, shape in zip(names, given, strict=True):
        for index, size in zip(term, shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return sizes, output


def output_shapes(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shapes = [tensor.shape if tensor is not None else () for tensor in given]
    if node.op in _SAME:
        return [shapes[0]]
    if node.op in _BROADCAST:
        return [np.broadcast_shapes(*shapes)]
    if node.op in _REDUCTIONS or node.op in ("ArgMax", "ArgMin"):
        return [_reduced(node, given)]
    if node.op in _WINDOWS:
        return [_window(node, shapes)]
    if node.op in FACTORS:
        left, right = FACTORS[node.op]
        if node.op == "QLinearConv":
            return [_window(node, [shapes[left], shapes[right]])]
        return [_product(shapes[left], shapes[right])]
    rule = _RULES.get(node.op)
    if rule is None:
        raise ValueError(f"expected operators that percoedge counts, got {node.op}")
    return rule(node, given)


def _reduced(node: Node, given: list[Tensor | None]) -> Shape:
    shape = _at(given, 0).shape
    if "Arg" in node.op:
        axes = [node.attributes.get("axis", 0)]
    else:
        listed = node.attributes.get("axes")
        if len(given) > 1 and given[1] is not None:
            listed = _known(given, 1)
        axes = list(range(len(shape))) if listed is None else list(listed)
        if listed is None and node.attributes.get("noop_with_empty_axes"):
            return shape
    gone = {int(axis) % len(shape) for axis in axes}
    keep = node.attributes.get("keepdims", 1)
    return tuple(1 if a in gone else size for a, size in enumerate(shape) if keep or a not in gone)


def _window(node: Node, shapes: list[Shape]) -> Shape:
    """Conv and pooling over the axes behind batch and channels."""
    attributes, image = node.attributes, shapes[0]
    if last := attributes.get("channels_last"):
        image = (image[0], image[-1], *image[1:-1])
    kernel = attributes.get("kernel_shape") or shapes[1][2:]
    ones = (1,) * len(kernel)
    strides = attributes.get("strides") or ones
    dilations = attributes.get("dilations") or ones
    pads = attributes.get("pads") or (0,) * (2 * len(kernel))
    same = attributes.get("auto_pad", "NOTSET").startswith("SAME")
    rounded = math.ceil if attributes.get("ceil_mode") else math.floor
    sides = []
    for axis, (size, side, stride, gap) in enumerate(
        zip(image[2:], kernel, strides, dilations, strict=True)
    ):
        if same:
            sides.append(-(-size // stride))
            continue
        padded = size + pads[axis] + pads[axis + len(kernel)]
        sides.append(rounded((padded - gap * (side - 1) - 1) / stride) + 1)
    channels = image[1] if "Pool" in node.op else shapes[1][0]
    return (image[0], *sides, channels) if last else (image[0], channels, *sides)


def _product(left: Shape, right: Shape) -> Shape:
    if len(left) == 1 or len(right) == 1:
        first = left[:-1] if len(left) > 1 else ()
        return (*first, *(right[:-2] + right[-1:] if len(right) > 1 else ()))
    return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])


def _attention(node: Node, given: list[Tensor | None]) -> list[Shape]:
    query, key, value = (_at(given, index).shape for index in range(3))
    if not len(query) == len(key) == len(value) == 3:
        raise ValueError("expected queries, keys and values of (n,tokens,channels)")
    return [(*query[:2], value[2])]


def _gemm(node: Node, given: list[Tensor | None]) -> list[Shape]:
    left, right = _at(given, 0).shape, _at(given, 1).shape
    rows = left[1 if node.attributes.get("transA") else 0]
    return [(rows, right[0 if node.attributes.get("transB") else 1])]


def _einsum(node: Node, given: list[Tensor | None]) -> list[Shape]:
    sizes, output = einsum_sizes(node, [tensor.shape for tensor in given if tensor is not None])
    return [tuple(sizes[index] for index in output)]


def _reshape(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape = _at(given, 0).shape
    wanted = [int(size) for size in _known(given, 1)]
    if not node.attributes.get("allowzero"):
        wanted = [shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    if -1 in wanted:
        others = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(shape) // max(others, 1)
    return [tuple(wanted)]


def _transpose(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape = _at(given, 0).shape
    order = node.attributes.get("perm") or range(len(shape))[::-1]
    return [tuple(shape[axis] for axis in order)]


def _concat(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shapes = [list(tensor.shape) for tensor in given if tensor is not None]
    axis = node.attributes["axis"]
    shapes[0][axis] = sum(shape[axis] for shape in shapes)
    return [tuple(shapes[0])]


def _split(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape, axis = list(_at(given, 0).shape), node.attributes.get("axis", 0)
    if len(given) > 1 and given[1] is not None:
        sizes = [int(size) for size in _known(given, 1)]
    else:
        count = len(node.outputs)
        part = -(-shape[axis] // count)
        sizes = [part] * (count - 1) + [shape[axis] - part * (count - 1)]
    axis %= len(shape)
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _slice(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape = list(_at(given, 0).shape)
    for axis, part in slices_of(given, len(shape)).items():
        shape[axis] = len(range(*part.indices(shape[axis])))
    return [tuple(shape)]


def slices_of(given: list[Tensor | None], rank: int) -> dict[int, slice]:
    starts, ends = _known(given, 1), _known(given, 2)
    axes = _known(given, 3) if len(given) > 3 and given[3] is not None else range(len(starts))
    steps = _known(given, 4) if len(given) > 4 and given[4] is not None else [1] * len(starts)
    parts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        lowest = end < -(1 << 31) and step < 0  # ONNX's way of saying "to the very first"
        parts[int(axis) % rank] = slice(int(start), None if lowest else int(end), int(step))
    return parts


def _squeeze(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape = _at(given, 0).shape
    axes = _axes(node, given)
    if axes is None:
        return [tuple(size for size in shape if size != 1)]
    gone = {axis % len(shape) for axis in axes}
    return [tuple(size for axis, size in enumerate(shape) if axis not in gone)]


def _unsqueeze(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape, axes = _at(given, 0).shape, _axes(node, given) or []
    return [tuple(np.expand_dims(np.broadcast_to(np.int8(0), shape), tuple(axes)).shape)]


def _axes(node: Node, given: list[Tensor | None]) -> list[int] | None:
    listed = node.attributes.get("axes")
    if len(given) > 1 and given[1] is not None:
        listed = _known(given, 1)
    return None if listed is None else [int(axis) for axis in listed]


def _gather(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape, axis = _at(given, 0).shape, node.attributes.get("axis", 0)
    axis %= len(shape)
    return [(*shape[:axis], *_at(given, 1).shape, *shape[axis + 1 :])]


def _depth_to_space(node: Node, given: list[Tensor | None]) -> list[Shape]:
    (n, channels, height, width), side = _at(given, 0).shape, node.attributes["blocksize"]
    return [(n, channels // side**2, height * side, width * side)]


def _resize(node: Node, given: list[Tensor | None]) -> list[Shape]:
    shape = _at(given, 0).shape
    if len(given) > 3 and given[3] is not None:
        return [tuple(int(size) for size in _known(given, 3))]
    scales = _known(given, 2)
    return [tuple(math.floor(s * float(f)) for s, f in zip(shape, scales, strict=True))]


def _range(node: Node, given: list[Tensor | None]) -> list[Shape]:
    start, limit, delta = (_known(given, index).item() for index in range(3))
    return [(max(0, math.ceil((limit - start) / delta)),)]


def _shape(node: Node, given: list[Tensor | None]) -> list[Shape]:
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return [(len(_at(given, 0).shape[start:end]),)]


def _expand(node: Node, given: list[Tensor | None]) -> list[Shape]:
    return [np.broadcast_shapes(_at(given, 0).shape, tuple(map(int, _known(given, 1))))]


_RULES: dict[str, Callable[[Node, list[Tensor | None]], list[Shape]]] = {
    "Concat": _concat,
    "Constant": lambda node, given: [constant_of(node).shape],
    "ConstantOfShape": lambda node, given: [tuple(map(int, _known(given, 0)))],
    "DepthToSpace": _depth_to_space,
    "Einsum": _einsum,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "MultiHeadAttention": _attention,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Size": lambda node, given: [()],
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def _at(given: list[Tensor | None], index: int) -> Tensor:
    tensor = given[index]
    if tensor is None:
        raise ValueError(f"expected an input {index}, got none")
    return tensor


def _known(given: list[Tensor | None], index: int) -> NDArray[Any]:
    value = _at(given, index).value
    if value is None:
        raise ValueError("expected shapes that follow from those of the inputs, got others")
    return value


def constant_of(node: Node) -> Weight:
    """What a Constant holds."""
    for name, dtype in _CONSTANTS.items():
        if name in node.attributes:
            value = np.array(node.attributes[name], dtype)
            return Weight(value.shape, dtype, value)
    weight = node.attributes.get("value")
    if not isinstance(weight, Weight):
        raise ValueError(f"expected a numeric Constant, got {', '.join(node.attributes)}")
    return weight
