"""The encoder in 8-bit integers: channels last, over the weights of its FP32 topology.

Convolutions take bytes, the first one those of the picture as they are. The stream that blocks add
to stays in float32; where a 1x1 convolution ends in it, it is a product of matrices whose result is
not rounded. So does all that is small and decides which token it is: from features to tokens the
topology is the one in FP32. Where a ReLU follows, bytes begin at 0, and no such node is left.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from torch import nn

from percoedge.export.graphs.int8.builder import Affine, Bytes, Int8Graph, float_casts
from percoedge.export.graphs.int8.calibration import LayerRange
from percoedge.export.graphs.int8.layers import Int8Layers, numpy_of
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.hyper import AttentionBlock, Bottleneck
from percoedge.export.models.percov2.vae import ResidualBlock

# A value is (byte - 127.5) / 127.5; the zero point of bytes is an integer, the bias takes the rest.
_PIXELS = Affine(np.float32(1 / 127.5), np.uint8(127))
_PIXEL_SHIFT = np.float32(-0.5 / 127.5)

_FEATURES = "quantizer.project_in.weight"  # what they are multiplied with


def int8_encoder(
    model: onnx.ModelProto, family: Family, ranges: Mapping[str, LayerRange]
) -> onnx.ModelProto:
    """Build the graph, image uint8 (n,16h,16w,3) -> tokens int32 (n,h,w).

    ``model``: the topology in FP32, used up. ``ranges``: of the family's layers.
    """
    return _Encoder(model, family, ranges).build()


class _Encoder:
    """Layers go by their names in the family, such as ``hyper.body.8.mask.3``."""

    def __init__(
        self, model: onnx.ModelProto, family: Family, ranges: Mapping[str, LayerRange]
    ) -> None:
        self._model, self._graph, self._family = model, Int8Graph(model), family
        self._layers = Int8Layers(self._graph, family, ranges)
        for cast in float_casts(model):
            self._graph.keep(cast)

    def build(self) -> onnx.ModelProto:
        graph, vae = self._graph, self._family.vae
        pixels, first, second = self._pixels(), "vae.encoder.1", "vae.encoder.3"
        if isinstance(vae.encoder[2], nn.ReLU):  # and then a convolution
            stream, start = self._floats(self._hidden(pixels, first, second), second), 4
        else:
            stream, start = self._floats(pixels, first), 2
        latent = self._sequence(stream, "vae.encoder", vae.encoder, start)
        centred = graph.add("Sub", latent, graph.constant(numpy_of(vae.latent_mean).ravel()))
        scaled = graph.add("Div", centred, graph.constant(numpy_of(vae.latent_std).ravel()))
        stream = self._sequence(scaled, "hyper.body", self._family.hyper.body)
        self._tokens(graph.add("Transpose", stream, perm=[0, 3, 1, 2]))
        return graph.finish()

    def _pixels(self) -> Bytes:
        """The picture (n,h,w,12), squares of 2x2 pixels being the channels of one place."""
        graph = self._graph
        size = graph.add("Div", graph.add("Shape", "image"), graph.integers(1, 2, 2, 1))
        ends = [graph.add("Slice", size, graph.integers(i), graph.integers(i + 1)) for i in (1, 2)]
        two, six = graph.integers(2), graph.integers(6)
        shape = graph.add("Concat", graph.integers(0), ends[0], two, ends[1], six, axis=0)
        rows = graph.add("Transpose", graph.add("Reshape", "image", shape), perm=[0, 1, 3, 2, 4])
        return Bytes(graph.add("Reshape", rows, graph.integers(0, 0, 0, 12)), _PIXELS)

    def _sequence(self, stream: str, name: str, layers: nn.Sequential, start: int = 0) -> str:
        """The stream behind some layers; ReLUs of it are in the bytes of the next layer."""
        for number, layer in enumerate(list(layers)[start:], start):
            if not isinstance(layer, nn.ReLU):
                stream = self._layer(stream, f"{name}.{number}", layer)
        return stream

    def _layer(self, stream: str, name: str, layer: nn.Module) -> str:
        """The stream behind a layer or block."""
        graph, layers = self._graph, self._layers
        if isinstance(layer, ResidualBlock):
            x = layers.entering(stream, f"{name}.conv1")
            hidden = self._hidden(x, f"{name}.conv1", f"{name}.conv2")
            return graph.add("Add", stream, self._floats(hidden, f"{name}.conv2"))
        if isinstance(layer, Bottleneck):
            x = layers.entering(stream, f"{name}.body.0")
            x = self._hidden(x, f"{name}.body.0", f"{name}.body.2")
            x = self._hidden(x, f"{name}.body.2", f"{name}.body.4")
            return graph.add("Add", stream, layers.pointwise(x, f"{name}.body.4"))
        if isinstance(layer, AttentionBlock):
            trunk = self._sequence(stream, f"{name}.trunk", layer.trunk)
            gate = graph.add("Sigmoid", self._sequence(stream, f"{name}.mask", layer.mask))
            return graph.add("Add", stream, graph.add("Mul", trunk, gate))
        x = layers.entering(stream, name)
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            return layers.pointwise(x, name)
        return self._floats(x, name)

    def _hidden(self, x: Bytes, name: str, following: str) -> Bytes:
        """A convolution whose only user is another one, with a ReLU between them."""
        return self._convolution(x, name, self._layers.bytes_before(following))

    def _floats(self, x: Bytes, name: str) -> str:
        """A convolution that ends in the stream."""
        seen = self._layers.range(name)
        y = self._convolution(x, name, Affine.over(seen.low_out, seen.high_out))
        return self._graph.dequantize(y)

    def _convolution(self, x: Bytes, name: str, affine: Affine) -> Bytes:
        if x.affine is not _PIXELS:
            return self._layers.convolution(x, name, affine)
        weight = numpy_of(self._family.get_submodule(name).weight)
        shift = _PIXEL_SHIFT * weight.sum(axis=(1, 2, 3))
        # from PyTorch's order of channels (channel, row, column) to (row, column, channel)
        order = np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0).ravel()
        return self._layers.convolution(x, name, affine, inputs=order, shift=shift)

    def _tokens(self, features: str) -> None:
        """The rest of the topology, from the features (n,M,h,w) on."""
        nodes = list(self._model.graph.node)
        sizes = [node for node in nodes if node.op_type == "Shape" and node.input[0] == "image"]
        (start,) = (
            number
            for number, node in enumerate(nodes)
            if node.op_type == "Conv" and _FEATURES in node.input
        )
        nodes[start].input[0] = features
        for node in (*sizes, *nodes[start:]):
            self._graph.keep(node)
