"""Encoder, flow and decoder in 8-bit integers, for CPUs: made from their FP32 topologies.

Faster than these on every CPU, most of all where it multiplies bytes (docs/cpu-speed.md), with
pictures that look the same. The encoder chooses other tokens in some places, no worse ones; what a
token stands for, and the bytes of a stream of given tokens, are untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import helper

from percoedge.engines.bundle import GraphFiles
from percoedge.export.config import Config
from percoedge.export.graphs.int8.builder import MICROSOFT, Affine, Bytes, Int8Graph
from percoedge.export.graphs.int8.calibration import LayerRange, layer_ranges
from percoedge.export.graphs.int8.decoder import int8_decoder
from percoedge.export.graphs.int8.encoder import int8_encoder
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.vae import TinyVae

Ranges = Mapping[str, LayerRange]

_KINDS = ("encoder", "flow", "flow_guided", "decoder")
_FLOAT_LAYERS = ("flow.transformer.proj_out",)  # small, and its errors go into the latent as such


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
    for kind, graph in graphs.items():
        if kind not in _KINDS:
            continue
        topology, *data = graph.variants["fp32"]
        model = onnx.load(out / topology, load_external_data=False)
        if kind == "encoder":
            model = int8_encoder(model, family, ranges)
        elif kind == "decoder":
            model = int8_decoder(model, family, ranges)
        else:
            model = int8_flow(model, family, config.flow.heads, ranges)
        file = f"{kind}.int8.onnx"
        (out / file).write_bytes(model.SerializeToString())
        variants = {**graph.variants, "int8": (file, *data)}
        described[kind] = replace(graph, variants=variants)
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
        if node.op_type == "Expand" and node.input[0] == "t":
            # one for all pictures, and so what is made of it; norms run another way on one for each
            graph.add("Identity", "t", output=node.output[0])
        elif first is None:
            graph.keep(node)
        elif first.op_type == "MatMul":
            (x, weight), bias = first.input, node.input[1]
            name = bias.removesuffix(".bias")
            if x not in bytes_of:
                seen = ranges[name]
                bytes_of[x] = graph.quantize(x, Affine.over(seen.low_in, seen.high_in))
            value = family.get_submodule(name).weight.detach().numpy().T
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


def int8_layers(model: onnx.ModelProto) -> set[str]:
    """Names, within the family, of the layers that compute in integers in such a variant."""
    maker = {name: node for node in model.graph.node for name in node.output}
    layers = set()
    for node in model.graph.node:
        if node.op_type == "MatMulIntegerToFloat":
            layers.add(node.input[6].removesuffix(".bias"))
        elif node.op_type == "QLinearConv":
            name = node.input[3]
            while name in maker and not name.endswith(".weight"):
                name = maker[name].input[0]
            layers.add(name.removesuffix(".weight"))
    return layers


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
