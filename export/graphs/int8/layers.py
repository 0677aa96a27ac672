"""Convolutions of a family in 8-bit integers, channels last: what encoder and decoder share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from percoedge.export.graphs.int8.builder import Affine, Bytes, Int8Graph
from percoedge.export.graphs.int8.calibration import Channels, LayerRange

_MOST_BIAS = 2.0**30


class Int8Layers:
    """Puts layers into a graph by their names in the family, such as ``vae.decoder.8.conv1``."""

    def __init__(
        self, graph: Int8Graph, family: nn.Module, ranges: Mapping[str, LayerRange]
    ) -> None:
        self._graph, self._family, self._ranges = graph, family, ranges

    def range(self, name: str) -> LayerRange:
        """What enters and leaves a layer."""
        return self._ranges[name]

    def bytes_before(self, name: str) -> Affine:
        """The bytes that a layer takes."""
        seen = self._ranges[name]
        return Affine.over(seen.low_in, seen.high_in)

    def entering(self, stream: str, name: str) -> Bytes:
        """A float stream as a layer takes it."""
        return self._graph.quantize(stream, self.bytes_before(name))

    def convolution(
        self,
        x: Bytes,
        name: str,
        affine: Affine,
        *,
        unit: Channels | None = None,
        inputs: NDArray[np.int64] | None = None,
        outputs: NDArray[np.int64] | None = None,
        shift: Channels | float = 0.0,
    ) -> Bytes:
        """A convolution from bytes (n,h,w,in) to bytes.

        ``unit`` (out,): what its output channels are multiples of. ``inputs``, ``outputs``: order
        of its channels in the graph. ``shift`` is added to its bias.
        """
        layer = self._family.get_submodule(name)
        value, bias = numpy_of(layer.weight), numpy_of(layer.bias) + np.float32(shift)
        weight = f"{name}.weight"
        if inputs is not None:
            weight = self._graph.add("Gather", weight, self._graph.integers(*inputs), axis=1)
        least = np.abs(bias) / (x.affine.step * _MOST_BIAS)
        weights = self._graph.weights(weight, value, 0, least)
        unit = np.ones_like(bias) if unit is None else unit
        if outputs is not None:
            weights = self._graph.reorder(weights, outputs)
            bias, unit = bias[outputs], unit[outputs]
        (stride, _), (padding, _) = layer.stride, layer.padding
        return self._graph.convolution(
            x, weights, bias, affine, unit, value.shape[2], stride, padding
        )

    def pointwise(self, x: Bytes, name: str) -> str:
        """A 1x1 convolution as a product of matrices: bytes (n,h,w,in) to float32, not rounded."""
        graph = self._graph
        value = numpy_of(self._family.get_submodule(name).weight)[:, :, 0, 0].T
        matrix = graph.add("Squeeze", f"{name}.weight", graph.integers(2, 3))
        weights = graph.weights(graph.add("Transpose", matrix, perm=[1, 0]), value, 1)
        return graph.linear(x, weights, f"{name}.bias", "")


def numpy_of(tensor: torch.Tensor) -> NDArray[np.float32]:
    """A parameter as float32."""
    array: NDArray[np.float32] = tensor.detach().float().numpy()
    return array
