"""FP16 against FP32, by graph: ``python -m percoedge.export.checks.fp16_report tiny [--save F]``.

Every graph of a bundle is run, through Polygraphy's comparator and on the same feeds, as

    torch fp32       PyTorch in FP32: what the others are measured against
    torch fp16       PyTorch in FP16
    reference fp16   onnx.reference, which rounds after every operation, as the FP16 graph says
    BACKEND fp32     each variant that a backend runs; onnxruntime-cpu unless --backend says others
    BACKEND fp16

ONNX Runtime computes most of an FP16 graph in FP32 on a CPU, which hides overflow. The reference
does not, but is slow: it is given tiny grids. The table also tells the largest number that it met,
for FP16 ends at 65504.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine, GraphSource
from percoedge.engines.selection import select
from percoedge.errors import BackendError, BundleError, PercoedgeError
from percoedge.export.config import Config, load_config
from percoedge.export.exact.integers import reference_weights
from percoedge.export.graphs.modules import graph_plans, graph_ranges
from percoedge.export.graphs.onnx_files import example_feeds
from percoedge.export.models.family import Family, in_precision
from percoedge.export.models.mim import integer_mim
from percoedge.export.training.warm_start import family_from_bundle

Arrays = dict[str, NDArray[Any]]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_GRIDS = ({"n": 1, "h": 2, "w": 3}, {"n": 2, "h": 1, "w": 1})
_BASE = "torch fp32"
_LARGEST_FP16 = 65504.0
_PACKAGES = ("torch", "onnx", "onnxruntime", "polygraphy", "numpy")


class FunctionRunner(BaseRunner):  # type: ignore[misc]
    """A function from feeds to outputs as one of Polygraphy's runners."""

    def __init__(self, name: str, source: GraphSource, function: Callable[[Arrays], Arrays]):
        super().__init__(name=name)
        self._source, self._function = source, function

    def get_input_metadata_impl(self) -> Any:
        """Names, dtypes and shapes of the inputs, as Polygraphy asks for them."""
        metadata = TensorMetadata()
        for spec in self._source.inputs:
            shape = tuple(axis if isinstance(axis, int) else None for axis in spec.shape)
            metadata.add(spec.name, np.dtype(spec.dtype), shape)
        return metadata

    def infer_impl(self, feed_dict: Arrays) -> OrderedDict[str, NDArray[Any]]:
        """Run the function, and keep the time that it took."""
        began = time.perf_counter()
        outputs = OrderedDict(self._function(dict(feed_dict)))
        self.inference_time = time.perf_counter() - began
        return outputs


class EngineRunner(FunctionRunner):
    """A graph on one of percoedge's backends: loaded when it is activated, as a codec loads it."""

    def __init__(self, name: str, source: GraphSource, backend: Backend) -> None:
        super().__init__(name, source, self._run)
        self._backend = backend
        self._engine: Engine | None = None

    def activate_impl(self) -> None:
        """Load the engine."""
        self._engine = self._backend.load(self._source)

    def deactivate_impl(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _run(self, feeds: Arrays) -> Arrays:
        assert self._engine is not None  # Polygraphy activates before it infers
        return {name: np.asarray(output) for name, output in self._engine.run(feeds).items()}


class Reference:
    """onnx.reference on a graph; ``largest`` is the largest magnitude of what it computed in FP16.

    It is 0 for a graph that computes in no FP16, and not finite after an overflow.
    """

    def __init__(self, source: GraphSource) -> None:
        self.largest = 0.0
        self._names = [spec.name for spec in source.outputs]
        with tempfile.TemporaryDirectory() as folder:
            for name, data in {"model.onnx": source.model, **source.data}.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            model = onnx.load(Path(folder, "model.onnx"))
        self._evaluator = ReferenceEvaluator(model)
        self._stored = {tensor.name for tensor in model.graph.initializer}

    def __call__(self, feeds: Arrays) -> Arrays:
        """Compute the outputs by name, and let ``largest`` grow with what was met on the way."""
        with np.errstate(over="ignore", invalid="ignore"):
            values = self._evaluator.run(None, feeds, intermediate=True)
        for name, value in values.items():
            computed = name not in self._stored and isinstance(value, np.ndarray) and value.size
            if computed and value.dtype == np.float16:
                self.largest = float(np.maximum(self.largest, np.abs(value).max()))
        return {name: np.asarray(values[name]) for name in self._names}


def fp16_report(
    family: Family, config: Config, bundle: Bundle, backends: Sequence[Backend]
) -> list[dict[str, Any]]:
    """One row per graph: its largest errors over grids and outputs by runner, as in parity's table.

    ``family``: the bundle's weights, on the CPU. ``largest``: see Reference. A value of None is one
    that is not finite.
    """
    rows = []
    for kind in bundle.kinds:
        variants = bundle.manifest.graphs[kind].variants
        source = bundle.read(kind, "fp16")
        reference = Reference(source)
        runners = [
            *_torch_runners(family, config, kind, source),
            FunctionRunner("reference fp16", source, reference),
            *(
                EngineRunner(f"{backend.name} {variant}", bundle.read(kind, variant), backend)
                for backend in backends
                for variant in variants
                if backend.name == "onnxruntime-cpu" or variant == backend.variant
            ),
        ]
        results = Comparator.run(runners, data_loader=_feeds(config, kind, source))
        errors = {}
        for runner in runners[1:]:
            pairs = zip(results[runner.name], results[_BASE], strict=True)
            found = [relative_error(a[n], b[n]) for a, b in pairs for n in b]
            errors[runner.name] = _finite(float(np.max(found)))
        rows.append({"graph": kind, "errors": errors, "largest": _finite(reference.largest)})
    return rows


def _torch_runners(
    family: Family, config: Config, kind: str, source: GraphSource
) -> list[FunctionRunner]:
    if kind == "entropy":
        model = integer_mim(family.mim)

        def weights(feeds: Arrays) -> Arrays:
            tokens, positions = (feeds[n].astype(np.int64) for n in ("tokens", "positions"))
            return {"weights": reference_weights(model, tokens, positions)}

        return [FunctionRunner(_BASE, source, weights)]
    plan = graph_plans(config).get(kind)
    if plan is None:
        raise BundleError(
            f"expected a bundle with the graphs of the configuration, got one with {kind!r} too; "
            "give the configuration that it was exported with (--config)"
        )

    def run(dtype: torch.dtype, feeds: Arrays) -> Arrays:
        with in_precision(family, plan.parts, dtype), torch.no_grad():
            result = plan.build(family, dtype)(**{n: torch.tensor(a) for n, a in feeds.items()})
        results = result if isinstance(result, tuple) else (result,)
        return {spec.name: r.numpy() for spec, r in zip(source.outputs, results, strict=True)}

    return [
        FunctionRunner(f"torch {name}", source, partial(run, dtype))
        for name, dtype in _DTYPES.items()
    ]


def _feeds(config: Config, kind: str, source: GraphSource) -> list[Arrays]:
    ranges = graph_ranges(config, kind)
    feeds = []
    for grid in _GRIDS:
        cells = grid["h"] * grid["w"]
        sizes = {**grid, "p": -(-cells // 2)}
        tensors = example_feeds(source.inputs, sizes, {**ranges, "positions": cells})
        feeds.append({name: tensor.numpy() for name, tensor in tensors.items()})
    return feeds


def relative_error(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """Share of int32 that differ, or |output - expected| / |expected|; NaN stays."""
    if output.dtype == np.int32:
        return float(np.mean(output != expected))
    with np.errstate(invalid="ignore"):
        difference = float(np.linalg.norm(output.astype(np.float64) - expected))
    return difference / max(1e-12, float(np.linalg.norm(expected)))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def format_report(rows: list[dict[str, Any]]) -> str:
    """The table as text: errors against PyTorch in FP32, and the largest FP16 number."""
    names = list(dict.fromkeys(name for row in rows for name in row["errors"]))
    lines = ["  ".join([f"{'graph':<12}", *(f"{name:>20}" for name in names), f"{'largest':>8}"])]
    for row in rows:
        cells = [f"{row['graph']:<12}"]
        for name in names:
            value = row["errors"].get(name, "-")
            cells.append(f"{value:>20.2e}" if isinstance(value, float) else f"{value!s:>20}")
        largest = "over" if row["largest"] is None else f"{row['largest']:.0f}"
        cells.append(f"{largest:>8}")
        lines.append("  ".join(cells))
    lines.append(
        f"largest: of all that the graph computes in FP16, which ends at {_LARGEST_FP16:.0f}"
    )
    return "\n".join(lines)


def main() -> int:
    """Command line of the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="shipped name, directory or .zip")
    parser.add_argument("--config", help="what it was exported with (default: its family's)")
    parser.add_argument("--backend", action="append", help="default: onnxruntime-cpu")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the table as JSON too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    try:
        bundle = Bundle.open(args.bundle)
        config = load_config(args.config or bundle.manifest.family)
        backends = [select(name, bundle=bundle) for name in args.backend or ["onnxruntime-cpu"]]
        rows = fp16_report(family_from_bundle(bundle, config), config, bundle, backends)
    except PercoedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(format_report(rows))
    if args.save:
        record = {
            "bundle": bundle.name,
            "fingerprint": bundle.fingerprint.hex(),
            "graphs_sha256": {
                kind: {name: variant.model.sha256 for name, variant in graph.variants.items()}
                for kind, graph in bundle.manifest.graphs.items()
            },
            "grids": list(_GRIDS),
            "measured": "against PyTorch in FP32: relative L2 error of floats and pixels, share "
            "that differs of other integers, the largest over grids and outputs; null: not finite",
            "versions": {name: metadata.version(name) for name in _PACKAGES},
            "processor": platform.machine(),
            "table": rows,
        }
        args.save.write_text(json.dumps(record, indent=2) + "\n")
    finite = all(None not in (row["largest"], *row["errors"].values()) for row in rows)
    return 0 if finite else BackendError.exit_code


if __name__ == "__main__":
    sys.exit(main())
