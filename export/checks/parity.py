"""Does a graph compute what the PyTorch module computes? Measured per graph and variant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from percoedge.bitstream.schedules import passes
from percoedge.engines.bundle import Bundle
from percoedge.engines.selection import select
from percoedge.export.config import Config
from percoedge.export.exact.integers import reference_weights
from percoedge.export.graphs.modules import graph_plans, graph_ranges
from percoedge.export.graphs.onnx_files import example_feeds
from percoedge.export.models.family import Family, in_precision
from percoedge.export.models.mim import integer_mim

# Relative L2 error of float outputs; share of integers (tokens, pixels) that differ, but relative
# L2 error of pixels made in INT8, where one level up or down is the rule. The largest of a graph's
# outputs counts. Flow and text have the bounds below.
BOUNDS = {
    ("encoder", "fp32"): 0.001,
    ("encoder", "fp16"): 0.02,
    ("decoder", "fp32"): 0.001,
    ("decoder", "fp16"): 0.2,
    ("decoder", "int8"): 0.05,
    ("entropy", "fp32"): 0.0,
    ("entropy", "fp16"): 0.0,
    ("entropy", "int8"): 0.0,
}
_OTHER_BOUNDS = {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.05}
_GRIDS = ({"n": 1, "h": 16, "w": 16}, {"n": 2, "h": 5, "w": 7}, {"n": 1, "h": 1, "w": 1})


@dataclass(frozen=True)
class Parity:
    """``error`` as described at BOUNDS, the largest over the grids tried, and its ``bound``."""

    kind: str
    variant: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound


def check_parity(family: Family, config: Config, bundle: Bundle) -> list[Parity]:
    """Run every graph of the bundle through ONNX Runtime on the CPU, beside PyTorch in FP32.

    ``family``: as the export left it, on the CPU; its parts are in FP32 one after the other.
    """
    backend = select("onnxruntime-cpu")
    table = []
    for kind in bundle.kinds:
        cases = list(_cases(family.eval(), config, kind, bundle))
        for variant in bundle.manifest.graphs[kind].variants:
            errors: list[float] = []
            with backend.load(bundle.read(kind, variant)) as engine:
                for feeds, expected in cases:
                    outputs = map(np.asarray, engine.run(feeds).values())
                    errors += (
                        _error(output, wanted, counted=(kind, variant) != ("decoder", "int8"))
                        for output, wanted in zip(outputs, expected, strict=True)
                    )
            bound = BOUNDS.get((kind, variant), _OTHER_BOUNDS[variant])
            table.append(Parity(kind, variant, max(errors), bound))
    return table


def _error(output: NDArray[Any], expected: NDArray[Any], *, counted: bool) -> float:
    if counted and output.dtype.kind in "iu":
        return float(np.mean(output != expected))
    difference = output.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / max(1e-12, float(np.linalg.norm(expected))))


def _cases(
    family: Family, config: Config, kind: str, bundle: Bundle
) -> Iterator[tuple[dict[str, NDArray[Any]], list[NDArray[Any]]]]:
    """Feeds and what the family makes of them, output by output, per grid."""
    if kind == "entropy":
        model = integer_mim(family.mim)
        for grid in _GRIDS:
            rng = np.random.default_rng(0)
            shape = (grid["n"], grid["h"], grid["w"])
            tokens = rng.integers(0, config.codec.codebook_size + 1, shape).astype(np.int32)
            positions = passes("checkerboard", *shape[1:])[0]
            expected = reference_weights(model, tokens.astype(np.int64), positions.astype(np.int64))
            yield {"tokens": tokens, "positions": positions}, [expected]
        return
    plan = graph_plans(config)[kind]
    with in_precision(family, plan.parts, torch.float32), torch.no_grad():
        module = plan.build(family, torch.float32)
        for grid in _GRIDS:
            feeds = example_feeds(plan.inputs, grid, graph_ranges(config, kind))
            result = module(**feeds)
            results = result if isinstance(result, tuple) else (result,)
            yield {n: feed.numpy() for n, feed in feeds.items()}, [r.numpy() for r in results]


def format_table(rows: list[Parity]) -> str:
    """The table as text, one row per graph and variant."""
    lines = [f"{'graph':<12} {'variant':<8} {'error':>10} {'bound':>10}"]
    for row in rows:
        verdict = "" if row.ok else "  FAILED"
        lines.append(
            f"{row.kind:<12} {row.variant:<8} {row.error:>10.2e} {row.bound:>10.0e}{verdict}"
        )
    return "\n".join(lines)
