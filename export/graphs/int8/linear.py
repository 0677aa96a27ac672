"""Linear layers of any family's graph in 8-bit integers, for CPUs: from its FP32 topology.

Ranges are measured while the family decodes made-up tokens. Whether what comes out is near enough
is measured too: a variant that is not is left out of the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from percoedge.engines.bundle import GraphFiles
from percoedge.engines.comparison import example_feeds
from percoedge.engines.contract import GraphSource
from percoedge.engines.selection import select
from percoedge.export.graphs.int8.builder import Affine, Bytes, Int8Graph
from percoedge.export.graphs.int8.calibration import LayerRange, range_of, watched
from percoedge.export.models.exportable import GraphPlan

LEAST_PSNR_DB = 40.0
_GRIDS = 4
_SIDE = 16  # tokens


def with_int8_linear(
    graphs: Mapping[str, GraphFiles],
    module: nn.Module,
    plans: Mapping[str, GraphPlan],
    codebook_size: int,
    out: Path,
) -> tuple[dict[str, GraphFiles], dict[str, float]]:
    """Write variants "int8" of the graphs whose plans name layers.

    ``module``: in FP32, on the CPU. The new topologies share the weights of the FP32 ones.
    Returns all graphs, with the variants whose pictures have LEAST_PSNR_DB or more against FP32,
    and by kind what those that were tried have, in dB.
    """
    described, measured = dict(graphs), dict[str, float]()
    for kind, plan in plans.items():
        if not plan.int8 or "fp32" not in graphs[kind].variants:
            continue
        files = graphs[kind].variants["fp32"]
        model = onnx.load(out / files[0], load_external_data=False)
        model = int8_linear(model, module, plan.int8, _ranges(module, plan, codebook_size))
        file = f"{kind}.int8.onnx"
        (out / file).write_bytes(model.SerializeToString())
        variants = {**graphs[kind].variants, "int8": (file, *files[1:])}
        tried = replace(graphs[kind], variants=variants)
        measured[kind] = round(_psnr_db(kind, tried, codebook_size, out), 1)
        if measured[kind] >= LEAST_PSNR_DB:
            described[kind] = tried
        else:
            (out / file).unlink()
    return described, measured


def _psnr_db(kind: str, graph: GraphFiles, codebook_size: int, out: Path) -> float:
    """How far the pictures of tokens at random are from those in FP32, with ONNX Runtime."""
    backend = select("onnxruntime-cpu")
    (spec,) = graph.inputs
    sizes = {"n": 1, "h": _SIDE, "w": _SIDE + 1}
    feeds = example_feeds((spec,), sizes, codebook_size - 1)  # which would be "unknown" else
    pictures = []
    for variant in ("fp32", "int8"):
        topology, *files = graph.variants[variant]
        source = GraphSource(
            kind=kind,
            variant=variant,
            model=(out / topology).read_bytes(),
            data={name: (out / name).read_bytes() for name in files},
            inputs=graph.inputs,
            outputs=graph.outputs,
        )
        with backend.load(source) as engine:
            (picture,) = (np.asarray(array) for array in engine.run(feeds).values())
        pictures.append(picture.astype(np.float64))
    error = np.square(pictures[0] - pictures[1]).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@torch.no_grad()
def _ranges(module: nn.Module, plan: GraphPlan, codebook_size: int) -> Mapping[str, LayerRange]:
    """Ranges of a graph's layers, by name in the family, over grids of tokens.

    Tokens at random, one by one, and grids of one token, whose colours must not change.
    """
    graph = plan.build(module, torch.float32)
    rng = np.random.default_rng(0)
    shape = (1, _SIDE, _SIDE)
    with watched(module) as varied:
        for _ in range(_GRIDS):
            graph(torch.from_numpy(rng.integers(codebook_size, size=shape, dtype=np.int32)))
    with watched(module) as flat:
        for token in rng.integers(codebook_size, size=_GRIDS, dtype=np.int32):
            graph(torch.full(shape, int(token), dtype=torch.int32))
    return {name: range_of(varied[name], flat[name]) for name in varied if varied[name]}


def int8_linear(
    model: onnx.ModelProto,
    module: nn.Module,
    prefixes: tuple[str, ...],
    ranges: Mapping[str, LayerRange],
) -> onnx.ModelProto:
    """Rewrite a topology in FP32: the linear layers whose names begin so multiply bytes."""
    graph = Int8Graph(model)
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    bytes_of: dict[str, Bytes] = {}
    replaced = set()
    for node in model.graph.node:
        if node.output[0] in replaced:
            continue
        following = users.get(node.output[0], [])
        last = following[0] if len(following) == 1 else node
        bias = last.input[-1]
        layer = bias.removesuffix(".bias")
        if (node.op_type, last.op_type) != ("MatMul", "Add") or not layer.startswith(prefixes):
            graph.keep(node)
            continue
        x, weight = node.input
        if x not in bytes_of:
            seen = ranges[layer]
            bytes_of[x] = graph.quantize(x, Affine.over(seen.low_in, seen.high_in))
        value = module.get_submodule(layer).weight.detach().float().numpy().T
        graph.linear(bytes_of[x], graph.weights(weight, value, 1), bias, last.output[0])
        replaced.add(last.output[0])
    return graph.finish()
