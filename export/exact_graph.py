"""The ONNX graph of the exact entropy model, and the way back from the graph to its integers.

Standard operators on float32 alone. The power-of-two scale of a layer stands in its constants, not
behind its sums: sums of scaled integers are scaled sums, and float32 holds either exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from percoedge.export.exact import ExactnessError, IntArray, IntegerLayer, IntegerMim, prove
from percoedge.export.mim import ACTIVATION_MAX, NORM_ENTRIES, NORM_SHIFT, SQUARE_SHIFT, STREAM_MAX


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
        """Integers as a float32 constant, stored in the narrowest type and cast when loaded.

        Halves hold them up to 2048. TensorRT takes constants of 8 and 16 bits for quantised ones.
        """
        if np.abs(value).max() > np.iinfo(np.int32).max:
            raise ExactnessError(f"expected constants of 32 bits, got {value.min()}..{value.max()}")
        dtype = np.float16 if np.abs(value).max() <= 2048 else np.int32
        return self.add("Cast", self.constant(value.astype(dtype)), to=TensorProto.FLOAT)

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
        place = self.add("Mul", squares, self.real(2.0**-NORM_SHIFT))
        place = self.add("Min", place, self.real(NORM_ENTRIES - 1))
        # the cast drops the fraction
        scale = self.add("Gather", table, self.add("Cast", place, to=TensorProto.INT32))
        rounded = self.add("Floor", self.add("Add", self.add("Mul", x, scale), self.real(0.5)))
        return self.clip(rounded, -ACTIVATION_MAX, ACTIVATION_MAX)

    def scaled(self, value: IntArray, shift: IntArray, *trailing: int) -> str:
        """value * 2^-shift: the layer's shift folded into its constants.

        Sums of such products are integers times 2^-shift, so float32 holds them as it holds the
        integers, and ``prove`` speaks for them too.
        """
        factor = np.exp2(-shift.astype(np.float64)).reshape(-1, *trailing)
        return self.add("Mul", self.carried(value), self.real(factor))

    def rounded(self, accumulator: str, low: int, high: int) -> str:
        """Floor and clip; the clip stands first, where libraries fuse it into what precedes."""
        return self.add("Floor", self.clip(accumulator, low, high))

    def linear(self, x: str, layer: IntegerLayer) -> str:
        """Rows (r,in) -> scaled sums (r,out), not yet rounded."""
        weight = self.scaled(layer.weight.T, layer.shift, 1)
        return self.add("Gemm", x, weight, self.scaled(layer.offset, layer.shift), transB=1)


def entropy_graph(model: IntegerMim, opset: int) -> onnx.ModelProto:
    """The ONNX graph: tokens int32 (n,h,w), positions int32 (p,) -> weights int32 (n,p,K)."""
    prove(model)
    graph = _GraphBuilder()
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
        normed = graph.add("Reshape", graph.norm(x, table), by_row)  # n, h, w, C
        kernel = mix.weight.shape[-1]
        mixed = graph.add(
            "Conv",
            graph.add("Transpose", normed, perm=[0, 3, 1, 2]),
            graph.scaled(mix.weight[:, None], mix.shift, 1, 1, 1),
            graph.scaled(mix.offset, mix.shift),
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            group=width,
        )
        mixed = graph.rounded(mixed, -ACTIVATION_MAX, ACTIVATION_MAX)
        mixed = graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 3, 1]), rows)
        if number == len(model.blocks) - 1:  # what follows looks at each cell alone
            x, mixed = chosen(x), chosen(mixed)
        hidden = graph.rounded(graph.linear(mixed, up), 0, ACTIVATION_MAX)
        change = graph.add("Floor", graph.linear(hidden, down))
        x = graph.clip(graph.add("Add", x, change), -STREAM_MAX, STREAM_MAX)
    logits = graph.rounded(graph.linear(graph.norm(x, table), model.head), -STREAM_MAX, STREAM_MAX)
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
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "entropy", inputs, [output], graph.initializers),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )
    onnx.checker.check_model(proto, full_check=True)
    return proto


def integers_of_graph(graph: onnx.GraphProto) -> IntegerMim:
    """Read the model off a graph that ``entropy_graph`` built."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}

    def carried(name: str) -> NDArray[np.int64]:
        """A constant that is stored in a narrow type and cast to float."""
        stored: NDArray[Any] = constants[maker[name].input[0]]
        return stored.astype(np.int64)

    def scaled(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The integers of a scaled constant, and the shift per output channel."""
        value, factor = maker[name].input
        return carried(value), -np.log2(constants[factor].ravel()).astype(np.int64)

    def layer(product: onnx.NodeProto) -> IntegerLayer:
        weight, shift = scaled(product.input[1])
        offset, again = scaled(product.input[2])
        np.testing.assert_array_equal(again, shift)
        weight = weight[:, 0] if product.op_type == "Conv" else weight.T
        return IntegerLayer(weight, offset - (1 << (shift - 1)), shift)

    layers = [layer(node) for node in graph.node if node.op_type in ("Conv", "Gemm")]
    tables = [node.input[0] for node in graph.node if node.op_type == "Gather"]
    embedding, norm_table, weight_table = tables[0], tables[1], tables[-1]
    triples = zip(layers[0:-1:3], layers[1:-1:3], layers[2:-1:3], strict=True)
    return IntegerMim(
        embedding=carried(embedding),
        blocks=tuple(triples),
        head=layers[-1],
        norm_table=constants[maker[norm_table].input[0]].astype(np.float32),
        weight_table=constants[weight_table].astype(np.int64),
    )
