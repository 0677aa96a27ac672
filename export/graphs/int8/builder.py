"""Puts 8-bit integer operators into an ONNX graph.

Activations are uint8 with a scale and a zero point that were measured before; weights are int8 with
a scale per output channel, made from the stored ones while the graph is loaded, so that they take
no room in the bundle. Operators beyond the standard are ONNX Runtime's (domain ``com.microsoft``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from percoedge.export.exact.integers import WEIGHT_MAX

MICROSOFT = "com.microsoft"

_TINY = 1e-8


@dataclass(frozen=True)
class Affine:
    """A number is ``step * (byte - zero)``."""

    step: np.float32
    zero: np.uint8

    @classmethod
    def over(cls, low: NDArray[np.float32], high: NDArray[np.float32]) -> Affine:
        """The bytes that cover all of ``low`` to ``high``, and 0 exactly."""
        bottom, top = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
        step = max((top - bottom) / 255, _TINY)
        return cls(np.float32(step), np.uint8(round(-bottom / step)))


@dataclass(frozen=True)
class Bytes:
    """A tensor of uint8 in the graph, and what its bytes stand for."""

    name: str
    affine: Affine


@dataclass(frozen=True)
class Weights:
    """A tensor of int8 in the graph, and the scale (out,) of its output channels."""

    name: str
    scale: NDArray[np.float32]


class Int8Graph:
    """The nodes of a new graph over the weights of ``model``, a topology in FP32.

    ``finish`` puts them in place of the model's own and drops what nothing refers to.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[bytes, str] = {}

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        """Name of an initializer that holds a value; equal ones share one."""
        array = np.asarray(value)
        key = array.dtype.str.encode() + repr(array.shape).encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = name = f"int8.constant.{len(self._constants)}"
            self._model.graph.initializer.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """Name of an initializer that holds integers, int64."""
        return self.constant(np.asarray(values, np.int64))

    def keep(self, node: onnx.NodeProto) -> None:
        """Take over a node of the model."""
        self._nodes.append(node)

    def add(
        self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: object
    ) -> str:
        """Add a node; returns its output, under a name of its own unless one is given."""
        output = output or f"int8.{operator.lower()}.{len(self._nodes)}"
        node = helper.make_node(operator, list(inputs), [output], domain=domain, **attributes)
        self._nodes.append(node)
        return output

    def affine(self, affine: Affine) -> tuple[str, str]:
        """Step and zero point as the inputs that operators want."""
        return self.constant(affine.step), self.constant(affine.zero)

    def quantize(self, x: str, affine: Affine) -> Bytes:
        """Float32 to bytes; what lies beyond their range becomes its end."""
        return Bytes(self.add("QuantizeLinear", x, *self.affine(affine)), affine)

    def dequantize(self, x: Bytes) -> str:
        """Bytes back to float32; returns the name of the result."""
        return self.add("DequantizeLinear", x.name, *self.affine(x.affine))

    def weights(
        self, name: str, value: NDArray[np.float32], axis: int, least: Any = _TINY
    ) -> Weights:
        """The float tensor ``name``, which holds ``value``, as int8; ``axis``: of its outputs.

        ``least``: the smallest scale that will do. Outputs are brought to the front to be rounded:
        along another axis ONNX Runtime takes numbers one by one, and graphs are loaded slowly.
        """
        others = tuple(i for i in range(value.ndim) if i != axis)
        largest = np.abs(value).max(axis=others)
        scale = np.maximum(largest / WEIGHT_MAX, least).astype(np.float32)
        zeros = np.zeros(len(scale), np.int8)
        order = [axis, *others]
        if axis:
            name = self.add("Transpose", name, perm=order)
        quantized = self.add(
            "QuantizeLinear", name, self.constant(scale), self.constant(zeros), axis=0
        )
        if axis:
            quantized = self.add("Transpose", quantized, perm=[int(i) for i in np.argsort(order)])
        return Weights(quantized, scale)

    def reorder(self, weights: Weights, order: NDArray[np.int64]) -> Weights:
        """The output channels ``order`` of weights whose first axis they are."""
        return Weights(
            self.add("Gather", weights.name, self.integers(*order)), weights.scale[order]
        )

    def linear(self, x: Bytes, weights: Weights, bias: str, output: str) -> str:
        """Bytes (...,in) by weights (in,out) plus a float bias (out,): float32 (...,out)."""
        step, zero = self.affine(x.affine)
        zeros = self.constant(np.zeros(len(weights.scale), np.int8))
        return self.add(
            "MatMulIntegerToFloat",
            *(x.name, weights.name, step, self.constant(weights.scale), zero, zeros, bias),
            output=output,
            domain=MICROSOFT,
        )

    def convolution(
        self,
        x: Bytes,
        weights: Weights,
        bias: NDArray[np.float32],
        affine: Affine,
        unit: NDArray[np.float32],
        side: int = 3,
        stride: int = 1,
        padding: int = 1,
    ) -> Bytes:
        """Bytes (n,h,w,in), zeros around, weights (out,in,side,side): bytes (n,h,w,out).

        Output channels are given in multiples of ``unit`` (out,). In multiples of the input's step
        and the weights' scale, the bias must be an int32.
        """
        scale = (weights.scale / unit).astype(np.float32)
        total = np.rint(bias / (x.affine.step * weights.scale)).astype(np.int32)
        zeros = np.zeros(len(weights.scale), np.int8)
        strides: dict[str, Any] = {"strides": [stride] * 2} if stride > 1 else {}
        result = self.add(
            "QLinearConv",
            *(x.name, *self.affine(x.affine)),
            *(weights.name, self.constant(scale), self.constant(zeros)),
            *(*self.affine(affine), self.constant(total)),
            domain=MICROSOFT,
            channels_last=1,
            kernel_shape=[side] * 2,
            pads=[padding] * 4,
            **strides,
        )
        return Bytes(result, affine)

    def finish(self) -> onnx.ModelProto:
        """The model with the new nodes."""
        graph = self._model.graph
        needed = {output.name for output in graph.output}
        nodes = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        constants = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(reversed(nodes))
        graph.initializer.extend(constants)
        self._model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return self._model


def float_casts(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that make float32 of constants stored in half precision."""
    stored = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    return [node for node in model.graph.node if node.input and node.input[0] in stored]
