"""What a run of each graph takes: counted by PyTorch, for every size at once, into the manifest.

    python -m percoedge.export.graphs.costs CONFIG DIRECTORY [--rate RATE]

adds them to a bundle that was exported without; ``percoedge.export.bundle`` does so by itself.

Multiply-accumulates are those of ``torch.utils.flop_counter.FlopCounterMode`` (which counts two
operations for each) on tensors without contents, so that the full size takes seconds. They are
counted at a few sizes, fitted by a sum of products of the graph's symbols, and compared with counts
at other sizes: what does not agree to the last one is left out.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import Cost
from percoedge.engines.bundle.manifest import Graph as GraphRecord
from percoedge.engines.bundle.write import replace_manifest
from percoedge.engines.contract import TensorSpec
from percoedge.errors import PercoedgeError
from percoedge.export.config import Config, at_rate, load_config
from percoedge.export.graphs.int8.graphs import int8_layers
from percoedge.export.graphs.modules import graph_plans
from percoedge.export.models.exportable import GraphPlan
from percoedge.export.models.mim import Mim, QuantLayer
from percoedge.export.models.percov2.family import Family

Sizes = Mapping[str, int]
Counts = Mapping[str, int]
"""Multiply-accumulates of every module that ran, by its name within the graph; "" is all of it."""

_TERMS = ("n", "n*h*w", "n*h*w*h*w", "n*p")
_FITTED = tuple(
    dict(zip("nhwp", sizes, strict=True))
    for sizes in ((1, 2, 2, 1), (1, 2, 4, 1), (1, 4, 6, 2), (1, 2, 2, 3))
)
_COMPARED = tuple(
    dict(zip("nhwp", sizes, strict=True)) for sizes in ((1, 1, 1, 1), (3, 5, 8, 11), (2, 32, 32, 7))
)


def with_costs(bundle: Bundle, config: Config) -> Bundle:
    """As ``with_costs_of``, for a bundle that was exported with ``config``."""
    with _without_contents():
        family = Family(config).eval()
        return _counted(bundle, graph_plans(config), family, family.mim)


def with_costs_of(
    bundle: Bundle,
    *,
    plans: Mapping[str, GraphPlan] | None = None,
    module: nn.Module | None = None,
    mim: Mim | None = None,
) -> Bundle:
    """The bundle of a directory, its manifest written anew with the costs of its graphs.

    ``plans``: of graphs of ``module``, which is in FP32; ``mim``: the entropy model in its float
    form. Other graphs keep what they have. Files and fingerprint stay as they are. Graphs whose
    counts are no sum of products of symbols get no cost, nor do those of captions, which do not
    grow with the image.
    """
    with _without_contents():
        return _counted(bundle, plans or {}, module, mim)


def _without_contents() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def _counted(
    bundle: Bundle, plans: Mapping[str, GraphPlan], module: nn.Module | None, mim: Mim | None
) -> Bundle:
    graphs = dict(bundle.manifest.graphs)
    for kind, graph in bundle.manifest.graphs.items():
        if kind in plans and module is not None and _grows(graph):
            graphs[kind] = replace(graph, cost=_cost(bundle, graph, module, plans[kind]))
        elif kind == "entropy" and mim is not None:
            graphs[kind] = replace(graph, cost=_entropy_cost(bundle, graph, mim))
    return replace_manifest(bundle.path, replace(bundle.manifest, graphs=graphs))


def _grows(graph: GraphRecord) -> bool:
    return any("h" in str(axis) for spec in graph.input_specs for axis in spec.shape)


def _cost(bundle: Bundle, graph: GraphRecord, module: nn.Module, plan: GraphPlan) -> Cost | None:
    """The cost of one graph that is planned of a module."""
    models = _models(bundle, graph)
    layers = int8_layers(models["int8"]) if "int8" in models else set()
    whole = {"h": plan.whole, "w": plan.whole}
    sizes = [
        {a: min(whole.get(a, 1) * size, plan.bounds.get(a, 1 << 16)) for a, size in one.items()}
        for one in (*_FITTED, *_COMPARED)
    ]
    built = plan.build(module, torch.float32)
    counts = [_counts(built, graph.input_specs, one) for one in sizes]
    return _described(
        models,
        _fit(sizes, [one[""] for one in counts]),
        _fit(sizes, [sum(one.get(name, 0) for name in layers) for one in counts]),
        sum(module.get_submodule(name).weight.numel() for name in layers),
    )


def _entropy_cost(bundle: Bundle, graph: GraphRecord, mim: Mim) -> Cost | None:
    """The cost of the entropy model, all of whose layers multiply bytes in "int8"."""
    sizes = (*_FITTED, *_COMPARED)
    counts = [_counts(_EntropyGraph(mim), graph.input_specs, one)[""] for one in sizes]
    macs = _fit(sizes, counts)
    layers = [part for part in mim.modules() if isinstance(part, QuantLayer)]
    return _described(
        _models(bundle, graph), macs, macs, sum(part.weight.numel() for part in layers)
    )


def _models(bundle: Bundle, graph: GraphRecord) -> dict[str, onnx.ModelProto]:
    return {
        name: onnx.load_from_string(bundle.read_file(variant.model))
        for name, variant in graph.variants.items()
    }


def _described(
    models: Mapping[str, onnx.ModelProto],
    macs: dict[str, int] | None,
    int8_macs: dict[str, int] | None,
    int8_weights: int,
) -> Cost | None:
    """A cost, unless something could not be fitted."""
    if macs is None or int8_macs is None:
        return None
    in_bytes = "int8" in models and bool(int8_macs)
    model = next(iter(models.values()))
    return Cost(
        macs=macs,
        weights=sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        int8_macs=int8_macs if in_bytes else {},
        int8_weights=int8_weights if in_bytes else 0,
    )


class _EntropyGraph(nn.Module):
    """The products of the entropy model: those of its float form, which has the same layers."""

    def __init__(self, mim: Mim) -> None:
        super().__init__()
        self.mim = mim

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return self.mim.logits(self.mim.stream(tokens, positions))


def _counts(module: nn.Module, inputs: Iterable[TensorSpec], sizes: Sizes) -> Counts:
    """Count one run of a module at these sizes."""
    feeds = {
        spec.name: torch.zeros(spec.shape_at(sizes), dtype=getattr(torch, spec.dtype))
        for spec in inputs
    }
    # attention as the products that it is made of: the counter does not know all fused kernels
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        module(**feeds)
    root = type(module).__name__
    by_module = {
        name.removeprefix(root).removeprefix("."): sum(operations.values()) // 2
        for name, operations in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    return {**by_module, "": counter.get_total_flops() // 2}


def _fit(everywhere: Sequence[Sizes], counts: Sequence[int]) -> dict[str, int] | None:
    """Coefficients of the terms that give exactly these counts at these sizes, or None."""
    rows = [[_product(term, sizes) for term in _TERMS] for sizes in everywhere]
    solved = np.linalg.solve(np.array(rows[: len(_FITTED)], float), counts[: len(_FITTED)])
    factors = [round(factor) for factor in solved.tolist()]
    found = [sum(f * r for f, r in zip(factors, row, strict=True)) for row in rows]
    if found != list(counts) or min(factors) < 0:
        return None
    return {term: factor for term, factor in zip(_TERMS, factors, strict=True) if factor}


def _product(term: str, sizes: Sizes) -> int:
    return math.prod(sizes[symbol] for symbol in term.split("*"))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="configuration that the bundle was exported with")
    parser.add_argument("directory", type=Path, help="of the bundle")
    parser.add_argument("--rate", help="as for percoedge.export.bundle")
    args = parser.parse_args()
    try:
        config = load_config(args.config)
        config = config if args.rate is None else at_rate(config, args.rate)
        bundle = with_costs(Bundle.open(args.directory), config)
    except (PercoedgeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    for kind, graph in bundle.manifest.graphs.items():
        print(f"{kind}: {graph.cost or 'no cost: it is no sum of products of sizes'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
