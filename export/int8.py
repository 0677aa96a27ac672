"""The flow and the decoder in 8-bit integers, for CPUs: made from their FP32 topologies.

Faster than these on every CPU, most of all where it multiplies bytes (docs/cpu-speed.md), with
pictures that look the same. Tokens are not touched: encoder and entropy model have no such variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import nn

from percoedge.engines.bundle import GraphFiles
from percoedge.export.calibration import LayerRange, layer_ranges
from percoedge.export.config import Config
from percoedge.export.family import Family
from percoedge.export.int8_graph import MICROSOFT, Affine, Bytes, Int8Graph, float_casts
from percoedge.export.vae import ResidualBlock, TinyVae

Ranges = Mapping[str, LayerRange]

_FLOAT_LAYERS = ("flow.transformer.proj_out",)  # small, and its errors go into the latent as such

# A pixel is 127.5 * value + 127.5; the zero point of bytes is an integer, the bias takes the rest.
_PIXELS = Affine(np.float32(1 / 127.5), np.uint8(127))
_PIXEL_BIAS = np.float32(0.5 / 127.5)


def with_int8(
    graphs: Mapping[str, GraphFiles], family: Family, config: Config, out: Path
) -> dict[str, GraphFiles]:
    """Write INT8 variants beside the FP32 ones in ``out``; returns all graphs, with these.

    Families with text or with a large autoencoder come back as they were: their place is a GPU.
    """
    described = dict(graphs)
    if config.flow.text or not isinstance(family.vae, TinyVae):
        return described
    ranges = layer_ranges(family, config)
    for kind in ("flow", "flow_guided", "decoder"):
        topology, *data = graphs[kind].variants["fp32"]
        model = onnx.load(out / topology, load_external_data=False)
        if kind == "decoder":
            model = int8_decoder(model, family.vae, ranges)
        else:
            model = int8_flow(model, family, config.flow.heads, ranges)
        file = f"{kind}.int8.onnx"
        (out / file).write_bytes(model.SerializeToString())
        variants = {**graphs[kind].variants, "int8": (file, *data)}
        described[kind] = replace(graphs[kind], variants=variants)
    return described


def int8_flow(
    model: onnx.ModelProto, family: Family, heads: int, ranges: Ranges
) -> onnx.ModelProto:
    """Rewrite the topology of a flow: linear layers in integers, attention and norms fused."""
    groups = _Groups(model)
    graph = Int8Graph(model)
    bytes_of: dict[str, Bytes] = {}
    for node in model.graph.node:
        first = groups.first.get(node.output[0])
        if first is None:
            graph.keep(node)
        elif first.op_type == "MatMul":
            (x, weight), bias = first.input, node.input[1]
            name = bias.removesuffix(".bias")
            if x not in bytes_of:
                seen = ranges[name]
                bytes_of[x] = graph.quantize(x, Affine.over(seen.low_in, seen.high_in))
            value = _numpy(family.get_submodule(name).weight).T
            graph.linear(bytes_of[x], graph.weights(weight, value, 1), bias, node.output[0])
        elif first.op_type == "LayerNormalization":
            scale = _other_input(groups.user(first), first.output[0])
            shift = _other_input(node, groups.user(first).output[0])
            attributes = {a.name: helper.get_attribute_value(a) for a in first.attribute}
            inputs = (first.input[0], scale, shift)
            graph.add(first.op_type, *inputs, output=node.output[0], **attributes)
        else:
            products = (*groups.maker[first.input[0]].input, groups.user(first).input[1])
            queries_keys_values = (groups.before_heads(name) for name in products)
            graph.add(
                "MultiHeadAttention",
                *queries_keys_values,
                output=node.output[0],
                domain=MICROSOFT,
                num_heads=heads,
            )
    return graph.finish()


class _Groups:
    """Groups of nodes in an exported flow that have a faster form.

    ``maker``: the node that makes a tensor. ``first``: the node that tells a group, by the output
    of the last one: the product of a linear layer with its bias, a norm that is scaled and shifted
    by what comes from the timestep, the softmax of an attention.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self.first: dict[str, onnx.NodeProto] = {}
        for node in model.graph.node:
            if node.op_type == "LayerNormalization":
                last = self._follow(node, "Mul", "Add")
            elif node.op_type == "Softmax":
                last = self._follow(node, "MatMul", "Transpose", "Reshape")
            elif node.op_type == "MatMul" and _is_linear(self._follow(node, "Add")):
                last = self.user(node)
            else:
                continue
            if last is not None:
                self.first[last.output[0]] = node

    def user(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node that takes the output of another."""
        return self._users[node.output[0]][0]

    def _follow(self, node: onnx.NodeProto, *operators: str) -> onnx.NodeProto | None:
        """The last of a chain of nodes that use nothing but one another, or None."""
        for operator in operators:
            if [user.op_type for user in self._users.get(node.output[0], ())] != [operator]:
                return None
            node = self.user(node)
        return node

    def before_heads(self, name: str) -> str:
        """What was split into heads, scaled and transposed to become the tensor ``name``."""
        while self.maker[name].op_type in ("Mul", "Transpose", "Reshape"):
            name = self.maker[name].input[0]
        return name


def _is_linear(add: onnx.NodeProto | None) -> bool:
    """Whether this adds the bias of a layer that is to compute in integers."""
    name, _, parameter = add.input[1].rpartition(".") if add is not None else ("", "", "")
    return parameter == "bias" and name not in _FLOAT_LAYERS


def _other_input(node: onnx.NodeProto, name: str) -> str:
    """The input of a binary operator that is not ``name``."""
    (other,) = (entry for entry in node.input if entry != name)
    return other


def int8_decoder(model: onnx.ModelProto, vae: TinyVae, ranges: Ranges) -> onnx.ModelProto:
    """Build a decoder over the weights of ``model``: channels last, convolutions in integers.

    The stream that residual blocks add to stays in float32. Where a ReLU follows, what is negative
    becomes the byte 0, so that no such node is left; the last convolution gives pixels.
    """
    graph = Int8Graph(model)
    for cast in float_casts(model):
        graph.keep(cast)
    latent = graph.add("Transpose", "x", perm=[0, 2, 3, 1])
    scaled = graph.add("Mul", latent, graph.constant(_numpy(vae.latent_std).ravel()))
    stream = graph.add("Add", scaled, graph.constant(_numpy(vae.latent_mean).ravel()))

    def into(name: str) -> Affine:
        return Affine.over(ranges[f"vae.{name}"].low_in, ranges[f"vae.{name}"].high_in)

    def out_of(name: str) -> Affine:
        return Affine.over(ranges[f"vae.{name}"].low_out, ranges[f"vae.{name}"].high_out)

    layers = list(vae.decoder)
    for number, (layer, after) in enumerate(zip(layers, [*layers[1:], None], strict=True)):
        name = f"decoder.{number}"
        if isinstance(layer, ResidualBlock):
            first, second = f"{name}.conv1", f"{name}.conv2"
            hidden = graph.quantize(stream, into(first))
            hidden = _convolution(graph, vae, hidden, first, into(second))
            change = _convolution(graph, vae, hidden, second, out_of(second))
            stream = graph.add("Add", stream, graph.dequantize(change))
        elif isinstance(layer, nn.Conv2d):
            entering = graph.quantize(stream, into(name))
            if not isinstance(after, nn.PixelShuffle):
                made = _convolution(graph, vae, entering, name, out_of(name))
            elif after is not layers[-1]:
                made = _upsampling(graph, vae, entering, name, out_of(name))
            else:
                made = _upsampling(graph, vae, entering, name, None)
            stream = graph.dequantize(made)
    ends = (graph.integers(0), graph.integers(3), graph.integers(3))  # of the channels
    graph.add("Slice", made.name, *ends, output="image")
    return graph.finish()


def _convolution(graph: Int8Graph, vae: TinyVae, x: Bytes, name: str, affine: Affine) -> Bytes:
    layer = vae.get_submodule(name)
    weights = graph.weights(f"vae.{name}.weight", _numpy(layer.weight), 0)
    return graph.convolution(x, weights, _numpy(layer.bias), affine)


def _upsampling(
    graph: Int8Graph, vae: TinyVae, x: Bytes, name: str, affine: Affine | None
) -> Bytes:
    """A convolution and the pixel shuffle behind it, which wants its channels in another order.

    ``affine`` None gives pixels, with a fourth channel: kernels want a multiple of 16 channels.
    """
    layer = vae.get_submodule(name)
    bias, channels = _numpy(layer.bias), layer.out_channels // 4
    order = np.arange(4 * channels).reshape(channels, 2, 2).transpose(1, 2, 0)
    if affine is None:
        order = np.concatenate([order, order[:, :, :1]], axis=2)
        affine, bias, channels = _PIXELS, bias + _PIXEL_BIAS, channels + 1
    weights = graph.weights(f"vae.{name}.weight", _numpy(layer.weight), 0)
    weights = graph.reorder(weights, order.ravel())
    y = graph.convolution(x, weights, bias[order.ravel()], affine)
    size = graph.add("Mul", graph.add("Shape", y.name, end=3), graph.integers(1, 2, 2))
    shape = graph.add("Concat", size, graph.integers(channels), axis=0)
    rows = graph.add("Reshape", y.name, graph.integers(0, 0, 0, 2, 2 * channels))
    rows = graph.add("Transpose", rows, perm=[0, 1, 3, 2, 4])
    return Bytes(graph.add("Reshape", rows, shape), affine)


def _numpy(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().numpy()
    return array
