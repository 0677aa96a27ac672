"""The exact entropy model: its integers, an int64 reference, the proof of its bounds, its graph.

Weights and activations are small integers carried in float32. As long as every partial sum stays
below 2^24 in magnitude, float32 additions are exact in any order and with or without fused
multiply-add, so every backend gives the same integers. ``prove`` checks that and the export refuses
a model that fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from percoedge.export.mim import (
    ACTIVATION_MAX,
    LOGIT_EXPONENT,
    NORM_EXPONENT,
    NORM_PIECES,
    SQUARE_SHIFT,
    STREAM_EXPONENT,
    STREAM_MAX,
    Integers,
    Mim,
)

IntArray = NDArray[np.int64]
EXACT_LIMIT = 1 << 24  # float32 holds every integer up to here
WEIGHT_MAX = 1 << 16


class ExactnessError(ValueError):
    """A bound of the exact model does not hold, so its results could differ between machines."""


@dataclass(frozen=True)
class IntegerLayer:
    """y = (x * weight + bias + 2^(shift-1)) >> shift, per output channel.

    ``weight`` (in,out), or (C,k,k) for a depthwise layer; all int64.
    """

    weight: IntArray
    bias: IntArray
    shift: IntArray

    @property
    def offset(self) -> IntArray:
        """Bias and rounding together."""
        return self.bias + (1 << (self.shift - 1))


@dataclass(frozen=True)
class IntegerMim:
    """All numbers of the exact model: embedding (K+1,C), blocks (mix, up, down), head, two tables.

    ``norm_table`` float32 of at most 12 significant bits; ``weight_table`` int64:
    frequency of a symbol by its distance from the largest logit.
    """

    embedding: IntArray
    blocks: tuple[tuple[IntegerLayer, IntegerLayer, IntegerLayer], ...]
    head: IntegerLayer
    norm_table: NDArray[np.float32]
    weight_table: IntArray


def frequency_table() -> IntArray:
    """max(1, round(2^16 * 2^(-d/16))) for d = 0..2*STREAM_MAX: the softmax in integers."""
    distance = np.arange(2 * STREAM_MAX + 1)
    octaves = distance / 2.0**LOGIT_EXPONENT
    return np.maximum(1, np.rint(WEIGHT_MAX * 2.0**-octaves)).astype(np.int64)


def integer_mim(mim: Mim) -> IntegerMim:
    """Read the integers off a trained model."""

    def array(tensor: torch.Tensor) -> IntArray:
        result: IntArray = tensor.detach().double().round().numpy().astype(np.int64)
        return result

    def layer(integers: Integers) -> IntegerLayer:
        weight = array(integers.weight)
        weight = weight.T.copy() if weight.ndim == 2 else weight[:, 0]
        return IntegerLayer(weight, array(integers.bias), array(integers.shift))

    mim = mim.cpu()
    scaled = torch.floor(mim.embedding * 2.0**STREAM_EXPONENT + 0.5)
    blocks = []
    for block in mim.blocks:
        mix, up, down = (layer(integers) for integers in mim.block_integers(block))
        blocks.append((mix, up, down))
    return IntegerMim(
        embedding=array(scaled.clamp(-STREAM_MAX, STREAM_MAX)),
        blocks=tuple(blocks),
        head=layer(mim.head.integers(NORM_EXPONENT, LOGIT_EXPONENT)),
        norm_table=mim.table.numpy(),
        weight_table=frequency_table(),
    )


def prove(model: IntegerMim) -> dict[str, int]:
    """Largest magnitude that any partial sum of each layer can reach, by name.

    The bound of a layer, max over outputs of L1(weight) * max|input| + |bias| + rounding, holds
    for every order of summation. Raises ExactnessError for a bound of 2^24 or more, or a number
    outside its format.
    """
    bounds: dict[str, int] = {}
    width = model.embedding.shape[1]

    def check(name: str, value: int) -> None:
        bounds[name] = int(value)
        if value >= EXACT_LIMIT:
            raise ExactnessError(
                f"{name}: expected every partial sum below 2^24, got up to {value}; "
                "narrow the layer or lower its weights' exponent"
            )

    def check_layer(name: str, layer: IntegerLayer) -> None:
        columns = layer.weight.reshape(len(layer.weight), -1)
        depthwise = layer.weight.ndim == 3
        sums = np.abs(columns).sum(axis=1 if depthwise else 0)
        largest, shifts = np.abs(columns).max(), (layer.shift.min(), layer.shift.max())
        if largest > ACTIVATION_MAX or shifts[0] < 1 or shifts[1] > 24:
            raise ExactnessError(
                f"{name}: expected weights within {ACTIVATION_MAX} and shifts of 1 to 24, got "
                f"{largest} and {shifts[0]}..{shifts[1]}"
            )
        check(name, (sums * ACTIVATION_MAX + np.abs(layer.bias) + (1 << (layer.shift - 1))).max())

    largest_square = ((STREAM_MAX >> SQUARE_SHIFT) + 1) ** 2
    check("sum of squares", width * largest_square)
    mantissa = np.frexp(model.norm_table.astype(np.float64))[0] * 4096
    if not np.array_equal(mantissa, np.rint(mantissa)):
        raise ExactnessError("norm table: expected significands of 12 bits, got longer ones")
    check("norm product", STREAM_MAX * 4096)
    for number, (mix, up, down) in enumerate(model.blocks):
        check_layer(f"block {number} mix", mix)
        check_layer(f"block {number} up", up)
        check_layer(f"block {number} down", down)
    check_layer("head", model.head)
    return bounds


def reference_weights(model: IntegerMim, tokens: IntArray, positions: IntArray) -> IntArray:
    """The exact model in numpy int64: tokens (n,h,w), flat positions (p,) -> weights (n,p,K)."""
    batch, height, width = tokens.shape
    x = model.embedding[tokens]
    for mix, up, down in model.blocks:
        mixed = _depthwise(_reference_norm(x, model), mix)
        hidden = np.clip(_linear(np.clip(mixed, -ACTIVATION_MAX, ACTIVATION_MAX), up), 0, None)
        x = x + _linear(np.minimum(hidden, ACTIVATION_MAX), down)
        x = np.clip(x, -STREAM_MAX, STREAM_MAX)
    chosen = x.reshape(batch, height * width, -1)[:, positions]
    logits = np.clip(_linear(_reference_norm(chosen, model), model.head), -STREAM_MAX, STREAM_MAX)
    result: IntArray = model.weight_table[logits.max(axis=-1, keepdims=True) - logits]
    return result


def _linear(x: IntArray, layer: IntegerLayer) -> IntArray:
    result: IntArray = (x @ layer.weight + layer.offset) >> layer.shift
    return result


def _depthwise(x: IntArray, layer: IntegerLayer) -> IntArray:
    kernel = layer.weight.shape[-1]
    pad = kernel // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = np.zeros_like(x)
    for row in range(kernel):
        for column in range(kernel):
            window = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
            total += window * layer.weight[:, row, column]
    return (total + layer.offset) >> layer.shift


def _reference_norm(x: IntArray, model: IntegerMim) -> IntArray:
    squares = ((x >> SQUARE_SHIFT) ** 2).sum(axis=-1, keepdims=True)
    index = np.zeros_like(squares)
    for below, shift, first in reversed(NORM_PIECES):
        index = np.where(squares < below, first + (squares >> shift), index)
    # 11 by 12 significant bits: exact in float64
    scaled = np.floor(x * model.norm_table.astype(np.float64)[index] + 0.5).astype(np.int64)
    return np.clip(scaled, -ACTIVATION_MAX, ACTIVATION_MAX)


class _GraphBuilder:
    """Nodes and constants of an ONNX graph; constants are shared and stored as small integers."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names: dict[bytes, str] = {}

    def constant(self, value: NDArray[np.generic]) -> str:
        key = value.dtype.str.encode() + repr(value.shape).encode() + value.tobytes()
        if key not in self._names:
            self._names[key] = name = f"c{len(self._names)}"
            self.initializers.append(numpy_helper.from_array(value, name))
        return self._names[key]

    def carried(self, value: IntArray) -> str:
        """Integers as a float32 constant, stored in the narrowest type and cast when loaded."""
        for dtype in (np.int8, np.int16, np.int32):
            limits = np.iinfo(dtype)
            if limits.min <= value.min() and value.max() <= limits.max:
                stored = self.constant(value.astype(dtype))
                return self.add("Cast", stored, to=TensorProto.FLOAT)
        raise ExactnessError(f"expected constants of 32 bits, got {value.min()}..{value.max()}")

    def real(self, value: float | NDArray[np.float64]) -> str:
        return self.constant(np.asarray(value, np.float32))

    def axes(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def clip(self, x: str, low: int, high: int) -> str:
        return self.add("Clip", x, self.real(low), self.real(high))

    def shift_down(self, x: str, shift: int) -> str:
        return self.add("Floor", self.add("Mul", x, self.real(2.0**-shift)))

    def norm(self, x: str, table: str) -> str:
        shifted = self.shift_down(x, SQUARE_SHIFT)
        squared = self.add("Mul", shifted, shifted)
        squares = self.add("ReduceSum", squared, self.axes(-1), keepdims=1)
        index = ""
        for below, shift, first in reversed(NORM_PIECES):
            entry = self.add("Add", self.shift_down(squares, shift), self.real(first))
            if index:
                smaller = self.add("Less", squares, self.real(below))
                entry = self.add("Where", smaller, entry, index)
            index = entry
        scale = self.add("Gather", table, self.add("Cast", index, to=TensorProto.INT32))
        rounded = self.add("Floor", self.add("Add", self.add("Mul", x, scale), self.real(0.5)))
        return self.clip(rounded, -ACTIVATION_MAX, ACTIVATION_MAX)

    def scaled(self, accumulator: str, layer: IntegerLayer, *trailing: int) -> str:
        factor = np.exp2(-layer.shift.astype(np.float64)).reshape(-1, *trailing)
        return self.add("Floor", self.add("Mul", accumulator, self.real(factor)))

    def linear(self, x: str, layer: IntegerLayer) -> str:
        product = self.add("MatMul", x, self.carried(layer.weight))
        return self.scaled(self.add("Add", product, self.carried(layer.offset)), layer)


def entropy_graph(model: IntegerMim, opset: int) -> onnx.ModelProto:
    """The ONNX graph: tokens int32 (n,h,w), positions int32 (p,) -> weights int32 (n,p,K)."""
    prove(model)
    graph = _GraphBuilder()
    width, classes = model.embedding.shape[1], model.head.weight.shape[1]
    shape = graph.add("Shape", "tokens")  # n, h, w
    grid = graph.add("Slice", shape, graph.axes(1), graph.axes(3))
    batch = graph.add("Slice", shape, graph.axes(0), graph.axes(1))
    planes = graph.add("Concat", batch, graph.axes(width), grid, axis=0)  # n, C, h, w
    rows = graph.add("Concat", batch, graph.axes(width, -1), axis=0)  # n, C, h*w
    flat = graph.add("Concat", batch, graph.axes(-1), axis=0)
    table = graph.constant(model.norm_table)
    embedding = graph.carried(model.embedding)
    x = graph.add("Gather", embedding, graph.add("Reshape", "tokens", flat))  # n, h*w, C
    for mix, up, down in model.blocks:
        normed = graph.add("Transpose", graph.norm(x, table), perm=[0, 2, 1])
        kernel = mix.weight.shape[-1]
        mixed = graph.add(
            "Conv",
            graph.add("Reshape", normed, planes),
            graph.carried(mix.weight[:, None]),
            graph.carried(mix.offset),
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            group=width,
        )
        mixed = graph.clip(graph.scaled(mixed, mix, 1, 1), -ACTIVATION_MAX, ACTIVATION_MAX)
        mixed = graph.add("Transpose", graph.add("Reshape", mixed, rows), perm=[0, 2, 1])
        hidden = graph.clip(graph.linear(mixed, up), 0, ACTIVATION_MAX)
        x = graph.clip(graph.add("Add", x, graph.linear(hidden, down)), -STREAM_MAX, STREAM_MAX)
    chosen = graph.add("Gather", x, "positions", axis=1)  # n, p, C
    logits = graph.clip(
        graph.linear(graph.norm(chosen, table), model.head), -STREAM_MAX, STREAM_MAX
    )
    top = graph.add("ReduceMax", logits, graph.axes(-1), keepdims=1)
    distance = graph.add("Cast", graph.add("Sub", top, logits), to=TensorProto.INT32)
    frequencies = graph.constant(model.weight_table.astype(np.int32))
    graph.nodes.append(helper.make_node("Gather", [frequencies, distance], ["weights"]))
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT32, ["n", "h", "w"]),
        helper.make_tensor_value_info("positions", TensorProto.INT32, ["p"]),
    ]
    output = helper.make_tensor_value_info("weights", TensorProto.INT32, ["n", "p", classes])
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "entropy", inputs, [output], graph.initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto
