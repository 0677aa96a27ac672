"""The decoder in 8-bit integers: channels last, over the weights of its FP32 topology.

The first convolution is small and stays in float32, as does the stream that residual blocks add to.
Where a ReLU follows, bytes begin at 0, so that what is negative becomes 0 and no such node is left.

At the resolution next to the picture's, where errors show most, each channel that goes into the
stream comes in a unit of its own: bytes have one step for all channels, and large ones would leave
small ones little of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from percoedge.export.graphs.int8.builder import Affine, Bytes, Int8Graph, float_casts
from percoedge.export.graphs.int8.calibration import Channels, LayerRange
from percoedge.export.graphs.int8.layers import Int8Layers, numpy_of
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.vae import ResidualBlock

# A pixel is 127.5 * value + 127.5; the zero point of bytes is an integer, the bias takes the rest.
_PIXELS = Affine(np.float32(1 / 127.5), np.uint8(127))
_PIXEL_BIAS = 0.5 / 127.5

_LEAST_UNIT = 1e-3


def int8_decoder(
    model: onnx.ModelProto, family: Family, ranges: Mapping[str, LayerRange]
) -> onnx.ModelProto:
    """Build the graph, x float32 (n,C,H,W) -> image uint8 (n,8H,8W,3).

    ``model``: the topology in FP32, used up. ``ranges``: of the family's layers.
    """
    return _Decoder(model, family, ranges).build()


class _Decoder:
    """Layers go by their numbers in ``vae.decoder``."""

    def __init__(
        self, model: onnx.ModelProto, family: Family, ranges: Mapping[str, LayerRange]
    ) -> None:
        self._graph = Int8Graph(model)
        self._put = Int8Layers(self._graph, family, ranges)
        self._vae = family.vae
        self._layers = list(family.vae.decoder)
        *_, self._last_upsampling, self._last = (
            number for number, layer in enumerate(self._layers) if isinstance(layer, nn.Conv2d)
        )
        for cast in float_casts(model):
            self._graph.keep(cast)

    def build(self) -> onnx.ModelProto:
        graph = self._graph
        scaled = graph.add("Mul", "x", graph.constant(numpy_of(self._vae.latent_std)))
        latent = graph.add("Add", scaled, graph.constant(numpy_of(self._vae.latent_mean)))
        parameters = ("vae.decoder.0.weight", "vae.decoder.0.bias")
        features = graph.add("Conv", latent, *parameters, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        stream = graph.add("Transpose", features, perm=[0, 2, 3, 1])
        for number, layer in enumerate(self._layers[1:], 1):
            if isinstance(layer, ResidualBlock):
                stream = graph.add("Add", stream, self._change(stream, number))
            elif isinstance(layer, nn.Conv2d) and number < self._last:
                stream = self._upsampled(stream, number)
            elif isinstance(layer, nn.Conv2d):
                self._image(stream)
        return graph.finish()

    def _change(self, stream: str, number: int) -> str:
        """What a residual block adds to the stream."""
        put, first, second = self._put, _name(number, ".conv1"), _name(number, ".conv2")
        seen = put.range(second)
        hidden = put.convolution(put.entering(stream, first), first, put.bytes_before(second))
        unit = self._unit(number, seen.low_out, seen.high_out)
        outer = Affine.over(seen.low_out / unit, seen.high_out / unit)
        change = put.convolution(hidden, second, outer, unit=unit)
        return self._floats(change, number, unit)

    def _upsampled(self, stream: str, number: int) -> str:
        """The stream at twice the resolution."""
        name = _name(number)
        seen = self._put.range(name)
        low, high = seen.low_out.reshape(-1, 4).min(1), seen.high_out.reshape(-1, 4).max(1)
        # ReLUs look at the stream: what no block lifts above 0 may be any negative number
        low = np.maximum(low, -self._lift_behind(number))
        unit = self._unit(number, low, high)
        x, affine = self._put.entering(stream, name), Affine.over(low / unit, high / unit)
        order = _shuffle(len(unit))
        y = self._put.convolution(x, name, affine, unit=np.repeat(unit, 4), outputs=order)
        return self._floats(self._spread(y, len(unit)), number, unit)

    def _image(self, stream: str) -> None:
        """The picture: a fourth channel is made too, for kernels that want multiples of 16."""
        graph, name = self._graph, _name(self._last)
        x, order = self._put.entering(stream, name), np.minimum(_shuffle(4), 11)
        y = self._put.convolution(x, name, _PIXELS, outputs=order, shift=_PIXEL_BIAS)
        ends = (graph.integers(0), graph.integers(3), graph.integers(3))  # of the channels
        graph.add("Slice", self._spread(y, 4).name, *ends, output="image")

    def _lift_behind(self, number: int) -> Channels:
        """The most that the residual blocks between an upsampling and the next add together."""
        layers = self._layers[number + 1 :]
        behind = itertools.takewhile(lambda layer: not isinstance(layer, nn.Conv2d), layers)
        total = np.zeros(self._layers[number].out_channels // 4, np.float32)
        for later, layer in enumerate(behind, number + 1):
            if isinstance(layer, ResidualBlock):
                total += self._put.range(_name(later, ".conv2")).high_out
        return total

    def _unit(self, number: int, low: Channels, high: Channels) -> Channels:
        """Units in which the channels of layer ``number`` have one range, the largest being 1."""
        if number < self._last_upsampling:
            return np.ones_like(high)
        size = np.maximum(-low, high)
        return np.maximum(size / max(size.max(), _LEAST_UNIT), _LEAST_UNIT)

    def _floats(self, x: Bytes, number: int, unit: Channels) -> str:
        """What layer ``number`` gives to the stream."""
        y = self._graph.dequantize(x)
        if number < self._last_upsampling:
            return y
        return self._graph.add("Mul", y, self._graph.constant(unit))

    def _spread(self, x: Bytes, channels: int) -> Bytes:
        """Pixel shuffle: bytes (n,h,w,4*channels), in the order of _shuffle, to (n,2h,2w,...)."""
        graph = self._graph
        size = graph.add("Mul", graph.add("Shape", x.name, end=3), graph.integers(1, 2, 2))
        shape = graph.add("Concat", size, graph.integers(channels), axis=0)
        rows = graph.add("Reshape", x.name, graph.integers(0, 0, 0, 2, 2 * channels))
        rows = graph.add("Transpose", rows, perm=[0, 1, 3, 2, 4])
        return Bytes(graph.add("Reshape", rows, shape), x.affine)


def _name(number: int, part: str = "") -> str:
    """The name of a layer in the family."""
    return f"vae.decoder.{number}{part}"


def _shuffle(channels: int) -> NDArray[np.int64]:
    """From PyTorch's order of channels (channel, row, column) to (row, column, channel)."""
    return np.arange(4 * channels).reshape(channels, 2, 2).transpose(1, 2, 0).ravel()
