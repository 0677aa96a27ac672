"""Does a graph compute what the PyTorch module computes? Measured per graph and variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from percoedge.engines.bundle import Bundle
from percoedge.engines.comparison import (
    Arrays,
    Difference,
    Source,
    backend_source,
    compare_sources,
    difference_cells,
    example_feeds,
    function_source,
)
from percoedge.engines.contract import Backend
from percoedge.engines.selection import select
from percoedge.errors import BundleError
from percoedge.export.config import Config
from percoedge.export.exact.integers import reference_weights
from percoedge.export.graphs.modules import DTYPES, graph_plans
from percoedge.export.models.exportable import GraphPlan, in_precision
from percoedge.export.models.mim import integer_mim
from percoedge.export.models.percov2.family import Family

_COLUMNS = "{:<12}  {:<14}  {:<24}  {:>11}  {:>8}  {:>9}  {:>7}  {:>8}  {}"
_GRIDS = ((1, 16, 16), (2, 5, 7), (1, 1, 1))


def check_parity(family: Family, config: Config, bundle: Bundle) -> list[Difference]:
    """Run every graph of the bundle through ONNX Runtime on the CPU, beside PyTorch in FP32.

    ``family``: as the export left it, on the CPU; its parts are in FP32 one after the other.
    Raises BundleError when the bundle has graphs that the configuration has not.
    """
    backend = select("onnxruntime-cpu")
    rows: list[Difference] = []
    for kind in bundle.kinds:
        base = torch_source(family, config, kind)
        feeds = grid_feeds(bundle, kind, _GRIDS)
        rows += compare_sources(kind, feeds, base, variant_sources(bundle, kind, backend))
    return rows


def variant_sources(bundle: Bundle, kind: str, backend: Backend) -> list[Source]:
    """Every variant of a graph on one backend, which must run them all."""
    variants = bundle.manifest.graphs[kind].variants
    return [backend_source(backend, bundle.graph(kind, variant)) for variant in variants]


def grid_feeds(bundle: Bundle, kind: str, grids: Sequence[tuple[int, int, int]]) -> list[Arrays]:
    """Seeded feeds of a graph for grids of n, h and w tokens; one per n without a grid."""
    inputs = bundle.manifest.graphs[kind].input_specs
    if not any(axis == "h" or str(axis).endswith("*h") for spec in inputs for axis in spec.shape):
        grids = list({grid[0]: grid for grid in grids}.values())
    size = bundle.codec.codebook_size
    return [example_feeds(inputs, dict(zip("nhw", grid, strict=True)), size) for grid in grids]


def torch_source(family: Family, config: Config, kind: str, variant: str = "fp32") -> Source:
    """What PyTorch makes of a graph of this kind, in FP32 or FP16; integers are the same in both.

    Raises BundleError when the configuration has no such graph.
    """
    if kind == "entropy":
        model = integer_mim(family.mim)

        def weights(feeds: Arrays) -> Arrays:
            tokens, positions = (feeds[n].astype(np.int64) for n in ("tokens", "positions"))
            return {"weights": reference_weights(model, tokens, positions)}

        return function_source("torch", variant, weights)
    plan = graph_plans(config).get(kind)
    if plan is None:
        raise BundleError(
            f"expected a bundle with the graphs of the configuration, got one with {kind!r} too; "
            "give the configuration that it was exported with (--config)"
        )
    return module_source(family, plan, variant)


def check_graphs(
    module: nn.Module, plans: Mapping[str, GraphPlan], bundle: Bundle
) -> list[Difference]:
    """As ``check_parity``, for the graphs that any family plans of its module."""
    backend = select("onnxruntime-cpu")
    rows: list[Difference] = []
    for kind, plan in plans.items():
        most = [plan.bounds.get(axis, 1 << 16) for axis in "nhw"]
        grids = [(min(n, most[0]), min(h, most[1]), min(w, most[2])) for n, h, w in _GRIDS]
        base, feeds = module_source(module, plan), grid_feeds(bundle, kind, grids)
        rows += compare_sources(kind, feeds, base, variant_sources(bundle, kind, backend))
    return rows


def module_source(family: nn.Module, plan: GraphPlan, variant: str = "fp32") -> Source:
    """What PyTorch makes of a planned graph, in FP32 or FP16."""
    names = [spec.name for spec in plan.outputs]

    @contextmanager
    def start() -> Iterator[Callable[[Arrays], Arrays]]:
        dtype = DTYPES[variant]
        with in_precision(family, plan.parts, dtype), torch.no_grad():
            module = plan.build(family.eval(), dtype)

            def run(feeds: Arrays) -> Arrays:
                result = module(**{name: torch.from_numpy(feed) for name, feed in feeds.items()})
                results = result if isinstance(result, tuple) else (result,)
                return {n: tensor.numpy() for n, tensor in zip(names, results, strict=True)}

            yield run

    return Source("torch", variant, start)


def format_table(rows: Sequence[Difference]) -> str:
    """The differences as text, one line each."""
    return "\n".join(_COLUMNS.format(*cells).rstrip() for cells in difference_cells(rows))
