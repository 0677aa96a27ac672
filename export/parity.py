"""Does a graph compute what the PyTorch module computes? Measured per graph and variant."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from percoedge.bitstream.schedules import passes
from percoedge.engines.backends import select
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import GraphSource
from percoedge.export.config import Config
from percoedge.export.exact import integer_mim, reference_weights
from percoedge.export.family import Family
from percoedge.export.graphs import graph_plans
from percoedge.export.onnx_files import example_feeds

# Relative L2 error of float outputs; share of integers (tokens, pixels) that differ.
BOUNDS = {
    ("encoder", "fp32"): 0.001,
    ("encoder", "fp16"): 0.02,
    ("flow", "fp32"): 1e-5,
    ("flow", "fp16"): 5e-3,
    ("flow_guided", "fp32"): 1e-5,
    ("flow_guided", "fp16"): 5e-3,
    ("decoder", "fp32"): 0.001,
    ("decoder", "fp16"): 0.2,
    ("entropy", "fp32"): 0.0,
    ("entropy", "fp16"): 0.0,
}
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
        return self.error <= self.bound


def check_parity(family: Family, config: Config, bundle: Bundle) -> list[Parity]:
    """Run every graph of the bundle through ONNX Runtime on the CPU, beside PyTorch in FP32."""
    reference = copy.deepcopy(family).float().cpu().eval()
    backend = select("onnxruntime-cpu")
    table = []
    for kind in bundle.kinds:
        for variant in bundle.manifest.graphs[kind].variants:
            source = bundle.read(kind, variant)
            with backend.load(source) as engine:
                errors = []
                for feeds, expected in _cases(reference, config, kind, source):
                    (output,) = engine.run(feeds).values()
                    errors.append(_error(np.asarray(output), expected))
            table.append(Parity(kind, variant, max(errors), BOUNDS[kind, variant]))
    return table


def _error(output: NDArray[Any], expected: NDArray[Any]) -> float:
    if output.dtype.kind in "iu":
        return float(np.mean(output != expected))
    difference = output.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / max(1e-12, float(np.linalg.norm(expected))))


def _cases(
    family: Family, config: Config, kind: str, source: GraphSource
) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any]]]:
    """Feeds and what the reference makes of them, per grid."""
    mask_id = config.codec.codebook_size
    for grid in _GRIDS:
        if kind == "entropy":
            rng = np.random.default_rng(0)
            shape = (grid["n"], grid["h"], grid["w"])
            tokens = rng.integers(0, mask_id + 1, shape).astype(np.int32)
            positions = passes("checkerboard", *shape[1:])[0]
            model = integer_mim(family.mim)
            expected = reference_weights(model, tokens.astype(np.int64), positions.astype(np.int64))
            yield {"tokens": tokens, "positions": positions}, expected
        else:
            ranges = {"image": 256, "tokens": mask_id}
            feeds = example_feeds(source.inputs, grid, ranges)
            module = graph_plans(config)[kind].build(family, torch.float32)
            with torch.no_grad():
                expected = module(**feeds).numpy()
            yield {name: feed.numpy() for name, feed in feeds.items()}, expected


def format_table(rows: list[Parity]) -> str:
    """The table as text, one row per graph and variant."""
    lines = [f"{'graph':<12} {'variant':<8} {'error':>10} {'bound':>10}"]
    for row in rows:
        verdict = "" if row.ok else "  FAILED"
        lines.append(
            f"{row.kind:<12} {row.variant:<8} {row.error:>10.2e} {row.bound:>10.0e}{verdict}"
        )
    return "\n".join(lines)
