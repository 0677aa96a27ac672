"""The ONNX graphs of the exact entropy model.

One is made of standard operators on float32 alone and runs everywhere. The power-of-two scale of a
layer stands in its constants, not behind its sums: sums of scaled integers are scaled sums, and
float32 holds either exactly. The other is for CPUs and multiplies bytes, with operators of ONNX
Runtime that round as Round does; it gives the same integers three times as fast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from percoedge.export.exact.integers import (
    ACTIVATION_MAX,
    ACTIVATION_MIN,
    HIDDEN_MAX,
    NORM_ENTRIES,
    NORM_SHIFT,
    SQUARE_SHIFT,
    STREAM_MAX,
    ExactnessError,
    IntArray,
    IntegerLayer,
    IntegerMim,
    prove,
)
from percoedge.export.graphs.int8.builder import MICROSOFT
from percoedge.export.graphs.onnx_files import WeightFile


class _GraphBuilder:
    """Nodes and constants of an ONNX graph, and the model's layers in float32.

    Constants are shared and stored as small numbers, the larger ones in a file of weights.
    Activations are rows (r,channels) of float32; a subclass may carry them otherwise.
    """

    def __init__(self, weights: WeightFile) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._names: dict[bytes, str] = {}
        self._weights = weights

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        array = np.asarray(value)
        key = array.dtype.str.encode() + repr(array.shape).encode() + array.tobytes()
        if key not in self._names:
            self._names[key] = name = f"c{len(self._names)}"
            self.initializers.append(self._weights.tensor(name, array))
        return self._names[key]

    def carried(self, value: IntArray, to: int = TensorProto.FLOAT) -> str:
        """Integers as a constant of type ``to``, stored in the narrowest type and cast when loaded.

        Halves hold them up to 2048. TensorRT takes constants of 8 and 16 bits for quantised ones.
        """
        if np.abs(value).max() > np.iinfo(np.int32).max:
            raise ExactnessError(f"expected constants of 32 bits, got {value.min()}..{value.max()}")
        dtype = np.float16 if np.abs(value).max() <= 2048 else np.int32
        return self.add("Cast", self.constant(value.astype(dtype)), to=to)

    def real(self, value: float | NDArray[np.float64]) -> str:
        return self.constant(np.asarray(value, np.float32))

    def axes(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        node = helper.make_node(operator, list(inputs), [name], domain=domain, **attributes)
        self.nodes.append(node)
        return name

    def clip(self, x: str, low: int, high: int) -> str:
        return self.add("Clip", x, self.real(low), self.real(high))

    def rounded(self, sums: str, low: int, high: int) -> str:
        """Clip and round; the clip stands first, where libraries fuse it into what precedes."""
        return self.add("Round", self.clip(sums, low, high))

    def scaled(self, value: IntArray, shift: IntArray) -> str:
        """value * 2^-shift: the layer's shift folded into its constants; channels come last.

        Sums of such products are integers times 2^-shift, so float32 holds them as it holds the
        integers, and ``prove`` speaks for them too.
        """
        return self.add("Mul", self.carried(value), self.real(np.exp2(-shift.astype(np.float64))))

    def normalised(self, x: str, table: str) -> str:
        """The stream by its reciprocal RMS, not yet rounded."""
        shifted = self.add("Round", self.add("Mul", x, self.real(2.0**-SQUARE_SHIFT)))
        squared = self.add("Mul", shifted, shifted)
        squares = self.add("ReduceSum", squared, self.axes(-1), keepdims=1)
        place = self.add("Mul", squares, self.real(2.0**-NORM_SHIFT))
        place = self.add("Min", place, self.real(NORM_ENTRIES - 1))
        # the cast drops the fraction
        scale = self.add("Gather", table, self.add("Cast", place, to=TensorProto.INT32))
        return self.add("Mul", x, scale)

    def norm(self, x: str, table: str) -> str:
        """Stream to activations."""
        return self.rounded(self.normalised(x, table), ACTIVATION_MIN, ACTIVATION_MAX)

    def kernels(self, taps: str) -> str:
        """(k,k,C) -> (C,1,k,k), as convolutions want them."""
        return self.add("Transpose", self.add("Unsqueeze", taps, self.axes(3)), perm=[2, 3, 0, 1])

    def mix(self, x: str, layer: IntegerLayer, grid: str) -> str:
        """The depthwise layer on activations, which are (n,h,w,C) in the shape ``grid``."""
        kernel, width = layer.weight.shape[-1], len(layer.weight)
        planes = self.add("Transpose", self.add("Reshape", x, grid), perm=[0, 3, 1, 2])
        taps = self.scaled(layer.weight.transpose(1, 2, 0), layer.shift)  # k, k, C
        sums = self.add(
            "Conv",
            *(planes, self.kernels(taps), self.scaled(layer.bias, layer.shift)),
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            group=width,
        )
        mixed = self.rounded(sums, ACTIVATION_MIN, ACTIVATION_MAX)
        return self.add(
            "Reshape", self.add("Transpose", mixed, perm=[0, 2, 3, 1]), self.axes(-1, width)
        )

    def linear(self, x: str, layer: IntegerLayer) -> str:
        """Activations (r,in) to float32 sums (r,out), scaled but not yet rounded."""
        weight, bias = (self.scaled(value, layer.shift) for value in (layer.weight, layer.bias))
        return self.add("Gemm", x, weight, bias)

    def up(self, x: str, layer: IntegerLayer) -> str:
        """Activations to hidden ones."""
        return self.rounded(self.linear(x, layer), 0, HIDDEN_MAX)

    def down(self, hidden: str, layer: IntegerLayer) -> str:
        """Hidden activations to float32 sums, scaled but not yet rounded."""
        return self.linear(hidden, layer)


class _ByteGraphBuilder(_GraphBuilder):
    """The same with activations of uint8: 128 stands for 0, but 0 for 0 among hidden ones.

    Scales are powers of two and sums stay below 2^24, so that the float32 in which ONNX Runtime
    rescales a sum holds it exactly.
    """

    _SIGNED, _HIDDEN = 128, 0

    def norm(self, x: str, table: str) -> str:
        return self.add("QuantizeLinear", self.normalised(x, table), *self._units(self._SIGNED))

    def mix(self, x: str, layer: IntegerLayer, grid: str) -> str:
        kernel, width = layer.weight.shape[-1], len(layer.weight)
        weight = self.kernels(self.carried(layer.weight.transpose(1, 2, 0), TensorProto.INT8))
        mixed = self.add(
            "QLinearConv",
            *(self.add("Reshape", x, grid), *self._units(self._SIGNED)),
            *(weight, *self._scale(layer)),
            *(*self._units(self._SIGNED), self.carried(layer.bias, TensorProto.INT32)),
            domain=MICROSOFT,
            channels_last=1,
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            group=width,
        )
        return self.add("Reshape", mixed, self.axes(-1, width))

    def linear(self, x: str, layer: IntegerLayer) -> str:
        return self._product(x, self._SIGNED, layer)

    def up(self, x: str, layer: IntegerLayer) -> str:
        return self._product(x, self._SIGNED, layer, *self._units(self._HIDDEN))

    def down(self, hidden: str, layer: IntegerLayer) -> str:
        return self._product(hidden, self._HIDDEN, layer)

    def _product(self, x: str, zero: int, layer: IntegerLayer, *rounded_to: str) -> str:
        """Float32 sums, or bytes in the units ``rounded_to``."""
        return self.add(
            "QGemm",
            *(x, *self._units(zero)),
            *(self.carried(layer.weight, TensorProto.INT8), *self._scale(layer)),
            *(self.carried(layer.bias, TensorProto.INT32), *rounded_to),
            domain=MICROSOFT,
        )

    def _units(self, zero: int) -> tuple[str, str]:
        return self.real(1.0), self.constant(np.uint8(zero))

    def _scale(self, layer: IntegerLayer) -> tuple[str, str]:
        """Scale and zero point of a layer's weights, per output channel."""
        zeros = self.constant(np.zeros(len(layer.shift), np.int8))
        return self.real(np.exp2(-layer.shift.astype(np.float64))), zeros


class EntropyGraphs(NamedTuple):
    """tokens int32 (n,h,w), positions int32 (p,) -> weights int32 (n,p,K), made of floats or bytes.

    Both refer to one file of weights.
    """

    floats: onnx.ModelProto
    bytes: onnx.ModelProto


def entropy_graphs(model: IntegerMim, opset: int, weights: WeightFile) -> EntropyGraphs:
    """The graphs of a model. Raises ExactnessError when its bounds do not hold."""
    prove(model)
    floats, on_bytes = _GraphBuilder(weights), _ByteGraphBuilder(weights)
    return EntropyGraphs(_graph(floats, model, opset), _graph(on_bytes, model, opset))


def _graph(graph: _GraphBuilder, model: IntegerMim, opset: int) -> onnx.ModelProto:
    width, classes = model.embedding.shape[1], model.head.weight.shape[1]
    shape = graph.add("Shape", "tokens")  # n, h, w
    batch = graph.add("Slice", shape, graph.axes(0), graph.axes(1))
    by_row = graph.add("Concat", shape, graph.axes(width), axis=0)  # n, h, w, C
    rows = graph.axes(-1, width)
    table = graph.add(
        "Cast", graph.constant(model.norm_table.astype(np.float16)), to=TensorProto.FLOAT
    )
    embedding = graph.carried(model.embedding)
    x = graph.add("Gather", embedding, graph.add("Reshape", "tokens", graph.axes(-1)))
    per_grid = graph.add("Concat", batch, graph.axes(-1, width), axis=0)  # n, h*w, C

    def chosen(cells: str) -> str:
        """(n*h*w,C) -> (n*p,C): the cells at the positions."""
        picked = graph.add("Gather", graph.add("Reshape", cells, per_grid), "positions", axis=1)
        return graph.add("Reshape", picked, rows)

    for number, (mix, up, down) in enumerate(model.blocks):
        mixed = graph.mix(graph.norm(x, table), mix, by_row)
        if number == len(model.blocks) - 1:  # what follows looks at each cell alone
            x, mixed = chosen(x), chosen(mixed)
        change = graph.add("Round", graph.down(graph.up(mixed, up), down))
        x = graph.clip(graph.add("Add", x, change), -STREAM_MAX, STREAM_MAX)
    sums = graph.linear(graph.norm(x, table), model.head)
    logits = graph.rounded(sums, -STREAM_MAX, STREAM_MAX)
    top = graph.add("ReduceMax", logits, graph.axes(-1), keepdims=1)
    distance = graph.add("Cast", graph.add("Sub", top, logits), to=TensorProto.INT32)
    frequencies = graph.constant(model.weight_table.astype(np.int32))
    looked_up = graph.add("Gather", frequencies, distance)
    by_grid = graph.add("Concat", batch, graph.axes(-1, classes), axis=0)  # n, p, K
    graph.nodes.append(helper.make_node("Reshape", [looked_up, by_grid], ["weights"]))
    inputs = [
        helper.make_tensor_value_info("tokens", TensorProto.INT32, ["n", "h", "w"]),
        helper.make_tensor_value_info("positions", TensorProto.INT32, ["p"]),
    ]
    output = helper.make_tensor_value_info("weights", TensorProto.INT32, ["n", "p", classes])
    domains = {node.domain for node in graph.nodes}
    return helper.make_model(
        helper.make_graph(graph.nodes, "entropy", inputs, [output], graph.initializers),
        opset_imports=[helper.make_opsetid(name, 1 if name else opset) for name in sorted(domains)],
        ir_version=9,
    )
